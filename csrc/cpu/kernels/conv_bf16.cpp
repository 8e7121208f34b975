// conv_bf16.cpp: convolution in bfloat16 with AVX512_BF16: one instruction adds the products of two pairs to each of 16 sums.
//
// Computes  what bf16.h says
// Tiling    registers = 8 pixels x 2 vectors of filters: a pair of A is broadcast, 16 sums and 2 vectors of w stay in registers
// Cost      Zen 4: twice the rate of float32 FMAs. Intel's Sapphire Rapids: half of it (measured: one instruction in two cycles), where
//           conv_amx is the kernel to have
// Refuses   what bf16.h refuses
// Source    Intel 64 and IA-32 Architectures Software Developer's Manual, vol. 2: VDPBF16PS
#include "cpu/bf16.h"

namespace ck {
namespace CK_ISA {
namespace {

struct Pairs {
  static constexpr double kMacsPerNanosecond = 75;
  static const char* refuse(const ConvProblem&) { return nullptr; }
  static CK_INLINE_MEMBER void begin() {}
  static CK_INLINE_MEMBER void end() {}

  template <int kPixels, int kVecs>
  static CK_INLINE_MEMBER void product(const Operand& x, const bf16* w, float* sums) {
    __m512 acc[kPixels][kVecs];
    CK_UNROLL
    for (int i = 0; i < kPixels; ++i)
      CK_UNROLL
      for (int j = 0; j < kVecs; ++j) acc[i][j] = _mm512_setzero_ps();
    for (int64_t r = 0; r < x.r; ++r)
      for (int64_t s = 0; s < x.s; ++s) {
        const bf16* a = x.a + r * x.step_r + s * x.step_s;
        for (int64_t step = 0; step < x.steps; ++step, a += kStepValues, w += kVecs * kStepWords)
          for (int64_t pair = 0; pair < 16; ++pair) {
            __m512bh b[kVecs];
            CK_UNROLL
            for (int j = 0; j < kVecs; ++j) b[j] = (__m512bh)_mm512_loadu_si512(w + j * kStepWords + pair * 32);
            CK_UNROLL
            for (int i = 0; i < kPixels; ++i) {
              int32_t two;
              __builtin_memcpy(&two, a + i * x.row + 2 * pair, 4);
              const __m512bh v = (__m512bh)_mm512_set1_epi32(two);
              CK_UNROLL
              for (int j = 0; j < kVecs; ++j) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], v, b[j]);
            }
          }
      }
    CK_UNROLL
    for (int i = 0; i < kPixels; ++i)
      CK_UNROLL
      for (int j = 0; j < kVecs; ++j) store(sums + i * kPanel + j * kLanes, acc[i][j]);
  }

  template <int kPixels>
  static CK_INLINE_MEMBER void some(const Operand& x, const bf16* w, int64_t vecs, float* sums) {
    if (vecs > 1) product<kPixels, 2>(x, w, sums);
    else product<kPixels, 1>(x, w, sums);
  }

  static CK_INLINE_MEMBER void multiply(Operand x, const bf16* w, int64_t places, int64_t vecs, float* sums) {
    for (; places >= 8; places -= 8, x.a += 8 * x.row, sums += 8 * kPanel) some<8>(x, w, vecs, sums);
    for (; places >= 2; places -= 2, x.a += 2 * x.row, sums += 2 * kPanel) some<2>(x, w, vecs, sums);
    if (places) some<1>(x, w, vecs, sums);
  }
};

}  // namespace

extern const ConvKernel conv_bf16;
constexpr ConvKernel conv_bf16 = Row<Pairs>::kernel("conv_bf16");

}  // namespace CK_ISA
}  // namespace ck
