// activation.h: the activations of an epilogue on one number, for the reference kernels (float and double).
//
// Formulas and special values are torch.nn.functional's: NaN passes through, silu(-inf) is NaN because -inf / (1 + inf) is.
// The vectorised twins are in simd/math.h.
#pragma once
#include <cmath>

#include "problem.h"

namespace ck {

template <class T>
static inline T activate(T v, const Activation& act) {
  const T a = static_cast<T>(act.a), b = static_cast<T>(act.b);
  const T zero = 0, one = 1, half = T(0.5), three = 3, six = 6;
  switch (act.kind) {
    case Act::kNone: return v;
    case Act::kClamp:  // comparisons are false for NaN, so NaN stays
      v = v < a ? a : v;
      return v > b ? b : v;
    case Act::kSilu: return v / (one + std::exp(-v));
    case Act::kSigmoid: return one / (one + std::exp(-v));
    case Act::kHardSwish:
    case Act::kHardSigmoid: {
      T gate = v + three;
      gate = gate < zero ? zero : gate;
      gate = gate > six ? six : gate;
      return act.kind == Act::kHardSwish ? v * gate / six : gate / six;
    }
    case Act::kGelu: return half * v * (one + std::erf(v * T(0.70710678118654752440)));
    case Act::kGeluTanh: return half * v * (one + std::tanh(T(0.79788456080286535588) * (v + T(0.044715) * v * v * v)));
    case Act::kTanh: return std::tanh(v);
    case Act::kElu: return v > zero ? v : a * std::expm1(v);
    case Act::kLeakyRelu: return v > zero ? v : a * v;
    case Act::kSoftplus: return v * a > b ? v : std::log1p(std::exp(v * a)) / a;
    case Act::kExp: return std::exp(v);
  }
  return v;
}

}  // namespace ck
