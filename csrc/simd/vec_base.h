// vec_base.h: four lanes in plain vector extensions, for any compiler target. On x86-64 this is SSE2: 16 registers, mul + add (no FMA).
#pragma once

#define CK_ISA base

namespace ck {
namespace base {

constexpr int kLanes = 4;
constexpr int kRegisters = 16;
constexpr int kTile[5] = {0, 6, 6, 4, 2};
constexpr int kMaxTile = 6;

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef float vf_unaligned __attribute__((vector_size(16), aligned(4), may_alias));

CK_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
CK_INLINE void store(float* p, vf v) { *reinterpret_cast<vf_unaligned*>(p) = v; }
CK_INLINE vf load_n(const float* p, int n) {
  vf v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
CK_INLINE void store_n(float* p, vf v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
CK_INLINE vf splat(float v) { return vf{v, v, v, v}; }
CK_INLINE vf vmax(vf v, vf lo) { return v < lo ? lo : v; }  // false for NaN: NaN stays
CK_INLINE vf vmin(vf v, vf hi) { return v > hi ? hi : v; }
CK_INLINE vf vsqrt(vf v) { return vf{__builtin_sqrtf(v[0]), __builtin_sqrtf(v[1]), __builtin_sqrtf(v[2]), __builtin_sqrtf(v[3])}; }
CK_INLINE void add_product(vf& sum, vf a, vf b) { sum += a * b; }
CK_INLINE void add_product(vf& sum, const float* a, vf b) { add_product(sum, splat(*a), b); }

}  // namespace base
}  // namespace ck
