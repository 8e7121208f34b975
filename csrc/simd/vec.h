// vec.h: the thin SIMD layer. One translation unit sees exactly one ISA, chosen by its compile flags; everything is static and always inlined,
// so that no function compiled for a newer ISA can be merged into older code by the linker (checked by CI with nm).
//
// A vector is a GCC vector-extension type, so + - * / and comparisons are plain C++ and a*b+c contracts to an FMA where the ISA has one.
// Each ISA file adds what C++ can't say: partial loads and stores, NaN-keeping max/min, and its register tile sizes.
//   kLanes              floats per vector
//   kTile[nv]           pixels of a register tile that is nv vectors wide: kTile[nv]*nv accumulators + nv filters + 1 broadcast fit the registers
//   load store          unaligned, full vector
//   load_n store_n      the first n lanes, 0 < n <= kLanes; other lanes read as 0 and are not written (nor touched in memory)
//   splat vmax vmin     vmax(v, lo): NaN in v stays NaN
//   add_product         sum += a * b where registers are short: the sum stays where it is (compilers let sums wander, which costs moves)
// and, where it has better than what stands below: maximum, minimum, Quad.
#pragma once
#include <cstdint>

#define CK_INLINE static inline __attribute__((always_inline))
#define CK_UNROLL _Pragma("GCC unroll 32")
#define CK_INLINE_MEMBER inline __attribute__((always_inline))

#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512BW__)
#include "vec_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "vec_avx2.h"
#elif defined(__aarch64__)
#include "vec_neon.h"
#else
#include "vec_base.h"
#endif

namespace ck {
namespace CK_ISA {

// Whole vectors or the first n lanes: the I/O policy that makes one body serve full blocks and tails.
struct Full {
  CK_INLINE_MEMBER vf load(const float* p) const { return CK_ISA::load(p); }
  CK_INLINE_MEMBER void store(float* p, vf v) const { CK_ISA::store(p, v); }
};
struct Part {
  int n;
  CK_INLINE_MEMBER vf load(const float* p) const { return load_n(p, n); }
  CK_INLINE_MEMBER void store(float* p, vf v) const { store_n(p, v, n); }
};

#if !defined(__aarch64__)
// NaN if either is.
CK_INLINE vf maximum(vf a, vf b) { return b != b ? b : vmax(a, b); }
CK_INLINE vf minimum(vf a, vf b) { return b != b ? b : vmin(a, b); }

// Four neighbouring floats, each of which multiplies vectors: broadcast from memory when it is used.
struct Quad {
  const float* x;
  CK_INLINE_MEMBER void load(const float* p) { x = p; }
  CK_INLINE_MEMBER vf operator[](int i) const { return splat(x[i]); }
};
#endif

CK_INLINE vf clamp(vf v, vf lo, vf hi) { return vmin(vmax(v, lo), hi); }

}  // namespace CK_ISA
}  // namespace ck
