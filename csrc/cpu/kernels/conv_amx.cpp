// conv_amx.cpp: convolution in bfloat16 on AMX's tile registers: 16 x 16 sums of 32 products each by one instruction.
//
// Computes  what bf16.h says
// Tiling    32 pixels x 32 filters: four tiles of sums, two of A, two of w, so that each loaded tile feeds two products
//
//                      w0 (tmm6)   w1 (tmm7)      16 rows = pairs of values, 16 filters x 2 a row
//     A0 (tmm4)          tmm0        tmm1         16 rows = pixels, 32 values a row
//     A1 (tmm5)          tmm2        tmm3
//
// Tried     fetching the next steps of w, or of w and A, ahead: 5 to 40 % slower, in the first- and the second-level cache (Sapphire Rapids, November 2026)
//           A step by step, so that each tile is contiguous: no gain
//           fetching the lines of y, of the residual and of the next block of A ahead: 5 % slower (ResNet-50; Granite Rapids, November 2026)
// Cost      16 cycles for 8192 multiply-adds: 16 times the rate of float32 FMAs. Bound by the caches long before that: Granite Rapids has 3.9 TFLOP/s a
//           core with all tiles in the first-level cache, 2.8 from the second, 0.5 (30 GB/s) from what lies beyond (measured)
// Refuses   what bf16.h refuses; where the operating system does not grant the tiles (dispatch/tables.cpp asks for them)
// Source    Intel 64 and IA-32 Architectures Software Developer's Manual, vol. 2: TDPBF16PS
#include "cpu/bf16.h"

namespace ck {
namespace CK_ISA {
namespace {

struct alignas(64) Config {
  uint8_t palette, start, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

struct Tiles {
  static constexpr double kMacsPerNanosecond = 1000;
  static const char* refuse(const ConvProblem& p) {
    return p.bf16 == Bf16::kTiles ? nullptr : "the operating system does not grant AMX's tiles";
  }
  static CK_INLINE_MEMBER void begin() {
    Config c = {};
    c.palette = 1;
    for (int i = 0; i < 8; ++i) c.row_bytes[i] = 64, c.rows[i] = 16;
    asm volatile("" : : "r"(&c) : "memory");  // all of it: the compiler thinks that the next line reads eight bytes
    _tile_loadconfig(&c);
  }
  static CK_INLINE_MEMBER void end() { _tile_release(); }

  template <bool kBelow, bool kRight>
  static CK_INLINE_MEMBER void product(const Operand& x, const bf16* w, float* sums) {
    const int64_t row_bytes = x.row * 2;
    _tile_zero(0);
    if (kRight) _tile_zero(1);
    if (kBelow) _tile_zero(2);
    if (kBelow && kRight) _tile_zero(3);
    for (int64_t r = 0; r < x.r; ++r)
      for (int64_t s = 0; s < x.s; ++s) {
        const bf16 *a = x.a + r * x.step_r + s * x.step_s, *below = a + 16 * x.row;
        for (int64_t i = 0; i < x.steps; ++i, a += kStepValues, below += kStepValues) {
          _tile_loadd(6, w, 64);
          w += kStepWords;
          _tile_loadd(4, a, row_bytes);
          _tile_dpbf16ps(0, 4, 6);
          if (kBelow) {
            _tile_loadd(5, below, row_bytes);
            _tile_dpbf16ps(2, 5, 6);
          }
          if (kRight) {
            _tile_loadd(7, w, 64);
            w += kStepWords;
            _tile_dpbf16ps(1, 4, 7);
            if (kBelow) _tile_dpbf16ps(3, 5, 7);
          }
        }
      }
    constexpr int64_t kRow = kPanel * 4;
    _tile_stored(0, sums, kRow);
    if (kRight) _tile_stored(1, sums + kLanes, kRow);
    if (kBelow) _tile_stored(2, sums + 16 * kPanel, kRow);
    if (kBelow && kRight) _tile_stored(3, sums + 16 * kPanel + kLanes, kRow);
  }

  static CK_INLINE_MEMBER void multiply(const Operand& x, const bf16* w, int64_t places, int64_t vecs, float* sums) {
    asm volatile("" ::: "memory");  // the compiler does not know that tile loads read what was stored before
    if (places > 16) {
      if (vecs > 1) product<true, true>(x, w, sums);
      else product<true, false>(x, w, sums);
    } else {
      if (vecs > 1) product<false, true>(x, w, sums);
      else product<false, false>(x, w, sums);
    }
    asm volatile("" ::: "memory");
  }
};

}  // namespace

extern const ConvKernel conv_amx;
constexpr ConvKernel conv_amx = Row<Tiles>::kernel("conv_amx");

}  // namespace CK_ISA
}  // namespace ck
