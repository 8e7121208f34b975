// bf16_lanes.h: bfloat16 in memory, float32 in registers, for the objects compiled with AVX512_BF16.
//
// A bfloat16 is the upper half of a float. So of 32 neighbours in a 64-byte register the odd ones are floats once the lower halves are cleared, and
// the even ones once they are shifted up: one instruction for each 16 values, where widening them in order takes two. Sums do not care for the order
// of the channels, and storing brings it back:
//
//            | c31 c30 | ... | c3 c2 | c1 c0 |      32 bfloat16
//     even        c30           c2      c0          16 floats
//     odd         c31           c3      c1          16 floats
//
// Rounding is to nearest, ties to even; NaN stays NaN; denormals are zero.
#pragma once
#include <immintrin.h>

#include "simd/vec.h"

namespace ck {
namespace CK_ISA {
namespace {

typedef uint16_t bf16;

CK_INLINE __m512i round_pair(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
CK_INLINE __m512 widen(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
CK_INLINE __mmask16 lanes(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : n > 0 ? (1u << n) - 1 : 0); }
CK_INLINE __mmask32 lanes32(int64_t n) { return static_cast<__mmask32>(n >= 32 ? ~0u : n > 0 ? (1u << n) - 1 : 0); }

constexpr int64_t kPair = 2 * kLanes;  // channels of Halves

struct Halves {
  vf even, odd;
};

CK_INLINE Halves halves(__m512i v) {
  return {(vf)_mm512_slli_epi32(v, 16), (vf)_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000)))};
}
CK_INLINE __m512i whole(Halves v) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3,
                                         18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, round_pair((__m512)v.even, (__m512)v.odd));
}
CK_INLINE Halves halves(__m512 low, __m512 high) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  return {(vf)_mm512_permutex2var_ps(low, even, high), (vf)_mm512_permutex2var_ps(low, _mm512_add_epi32(even, _mm512_set1_epi32(1)), high)};
}
CK_INLINE __m512 low_of(Halves v) {
  const __m512i order = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutex2var_ps((__m512)v.even, order, (__m512)v.odd);
}
CK_INLINE __m512 high_of(Halves v) {
  const __m512i order = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
  return _mm512_permutex2var_ps((__m512)v.even, order, (__m512)v.odd);
}

// 32 channels, or the first n of them: the I/O policy of these kernels, for either type in memory.
struct Full32 {
  CK_INLINE_MEMBER Halves load(const bf16* p) const { return halves(_mm512_loadu_si512(p)); }
  CK_INLINE_MEMBER Halves load(const float* p) const { return halves(_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16)); }
  CK_INLINE_MEMBER void store(bf16* p, Halves v) const { _mm512_storeu_si512(p, whole(v)); }
  CK_INLINE_MEMBER void store(float* p, Halves v) const { _mm512_storeu_ps(p, low_of(v)), _mm512_storeu_ps(p + 16, high_of(v)); }
};
struct Part32 {
  int64_t n;
  CK_INLINE_MEMBER Halves load(const bf16* p) const { return halves(_mm512_maskz_loadu_epi16(lanes32(n), p)); }
  CK_INLINE_MEMBER Halves load(const float* p) const {
    return halves(_mm512_maskz_loadu_ps(lanes(n), p), n > 16 ? _mm512_maskz_loadu_ps(lanes(n - 16), p + 16) : _mm512_setzero_ps());
  }
  CK_INLINE_MEMBER void store(bf16* p, Halves v) const { _mm512_mask_storeu_epi16(p, lanes32(n), whole(v)); }
  CK_INLINE_MEMBER void store(float* p, Halves v) const {
    _mm512_mask_storeu_ps(p, lanes(n), low_of(v));
    if (n > 16) _mm512_mask_storeu_ps(p + 16, lanes(n - 16), high_of(v));
  }
};

}  // namespace
}  // namespace CK_ISA
}  // namespace ck
