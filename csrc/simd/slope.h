// slope.h: derivatives of the activations on vectors: the twins of slope() in core/activation.h.
#pragma once
#include "simd/math.h"

namespace ck {
namespace CK_ISA {

// kOutput: v is the activation's output, else its input. `hi` of a clamp is NaN where there is no upper bound.
template <Act kKind, bool kOutput>
CK_INLINE vf slope(vf v, vf a, vf b) {
  const vf zero = splat(0.0f), one = splat(1.0f), half = splat(0.5f), three = splat(3.0f);
  switch (kKind) {
    case Act::kNone: return one;
    case Act::kClamp: return select((v <= a) | (v >= b), zero, one);
    case Act::kSilu: {
      const vf s = vsigmoid(v);
      return s * (one + v * (one - s));
    }
    case Act::kSigmoid: {
      const vf s = kOutput ? v : vsigmoid(v);
      return s * (one - s);
    }
    case Act::kHardSwish: return select(v <= -three, zero, select(v < three, v / three + half, one));
    case Act::kHardSigmoid: return select((v > -three) & (v < three), splat(1.0f / 6), zero);
    case Act::kGelu: {
      const vf density = splat(0.398942280f) * vexp(-half * v * v);
      return half * (one + verf(v * splat(0.707106781f))) + v * density;
    }
    case Act::kGeluTanh: {
      const vf t = vtanh(splat(0.797884561f) * (v + splat(0.044715f) * v * v * v));
      return half * (one + t) + half * v * (one - t * t) * splat(0.797884561f) * (one + splat(0.134145f) * v * v);
    }
    case Act::kTanh: {
      const vf t = kOutput ? v : vtanh(v);
      return one - t * t;
    }
    case Act::kElu: return select(v > zero, one, kOutput ? v + a : a * vexp(vmin(v, zero)));
    case Act::kLeakyRelu: return select(v > zero, one, a);
    case Act::kSoftplus: return select(v * a > b, one, one / (one + vexp(-v * a)));
    case Act::kExp: return kOutput ? v : vexp(v);
  }
  return one;
}

}  // namespace CK_ISA
}  // namespace ck
