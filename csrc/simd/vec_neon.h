// vec_neon.h: aarch64, whose every machine has NEON: 32 registers of four floats; two halves for tails.
// a*b+c contracts to fmla. The namespace is that of the baseline, as SSE2 is on x86-64.
#pragma once
#include <arm_neon.h>

#define CK_ISA base

namespace ck {
namespace base {

constexpr int kLanes = 4;
constexpr int kRegisters = 32;
constexpr int kTile[5] = {0, 8, 8, 6, 5};  // a Quad for each pixel takes registers too
constexpr int kMaxTile = 8;

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));

CK_INLINE vf load(const float* p) { return vld1q_f32(p); }
CK_INLINE void store(float* p, vf v) { vst1q_f32(p, v); }
CK_INLINE vf load_n(const float* p, int n) {
  if (n == kLanes) return load(p);
  if (n == 1) return vld1q_lane_f32(p, vdupq_n_f32(0.f), 0);
  const float32x4_t v = vcombine_f32(vld1_f32(p), vdup_n_f32(0.f));
  return n == 2 ? v : vld1q_lane_f32(p + 2, v, 2);
}
CK_INLINE void store_n(float* p, vf v, int n) {
  if (n == kLanes) return store(p, v);
  if (n == 1) return vst1q_lane_f32(p, v, 0);
  vst1_f32(p, vget_low_f32(v));
  if (n == 3) vst1q_lane_f32(p + 2, v, 2);
}
CK_INLINE vf splat(float v) { return vdupq_n_f32(v); }
CK_INLINE vf maximum(vf a, vf b) { return vmaxq_f32(a, b); }  // NaN if either is: more than vmax has to promise
CK_INLINE vf minimum(vf a, vf b) { return vminq_f32(a, b); }
CK_INLINE vf vmax(vf v, vf lo) { return maximum(v, lo); }
CK_INLINE vf vmin(vf v, vf hi) { return minimum(v, hi); }
CK_INLINE vf vsqrt(vf v) { return vsqrtq_f32(v); }
CK_INLINE void add_product(vf& sum, vf a, vf b) { sum += a * b; }
CK_INLINE void add_product(vf& sum, const float* a, vf b) { add_product(sum, splat(*a), b); }
CK_INLINE void subtract_product(vf& sum, vf a, vf b) { sum -= a * b; }

// Loaded at once: fmla multiplies by a lane of a register, so that a tile of 8 x 2 takes 16 loads for 64 FMAs.
struct Quad {
  vf x;
  CK_INLINE_MEMBER void load(const float* p) { x = base::load(p); }
  CK_INLINE_MEMBER vf operator[](int i) const { return splat(x[i]); }
};

}  // namespace base
}  // namespace ck
