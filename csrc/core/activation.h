// activation.h: the activations of an epilogue on one number, for the reference kernels (float and double).
//
// Formulas and special values are torch.nn.functional's: NaN passes through, silu(-inf) is NaN because -inf / (1 + inf) is.
// The vectorised twins are in simd/math.h.
// Derivatives follow torch's backward formulas.
#pragma once
#include <cmath>
#include <limits>

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

// Whether the slope can be told from the output: then the input need not be kept for the way back.
static inline __attribute__((always_inline)) bool slope_from_output(const Activation& act) {
  switch (act.kind) {
    case Act::kNone:
    case Act::kClamp:
    case Act::kSigmoid:
    case Act::kTanh:
    case Act::kExp: return true;
    case Act::kElu:
    case Act::kLeakyRelu: return act.a >= 0;
    default: return false;
  }
}

// The derivative at the input v, or (from_output) where the output is v; at kinks it is torch's.
template <class T>
static inline T slope(T v, const Activation& act, bool from_output) {
  const T a = static_cast<T>(act.a), b = static_cast<T>(act.b);
  const T zero = 0, one = 1, half = T(0.5), three = 3;
  switch (act.kind) {
    case Act::kNone: return one;
    case Act::kClamp: return v <= a || (v >= b && v < std::numeric_limits<T>::infinity()) ? zero : one;
    case Act::kSilu: {
      const T s = one / (one + std::exp(-v));
      return s * (one + v * (one - s));
    }
    case Act::kSigmoid: {
      const T s = from_output ? v : one / (one + std::exp(-v));
      return s * (one - s);
    }
    case Act::kHardSwish: return v <= -three ? zero : v < three ? v / three + half : one;
    case Act::kHardSigmoid: return v > -three && v < three ? one / T(6) : zero;
    case Act::kGelu: {
      const T density = T(0.39894228040143267794) * std::exp(-half * v * v);
      return half * (one + std::erf(v * T(0.70710678118654752440))) + v * density;
    }
    case Act::kGeluTanh: {
      const T t = std::tanh(T(0.79788456080286535588) * (v + T(0.044715) * v * v * v));
      return half * (one + t) + half * v * (one - t * t) * T(0.79788456080286535588) * (one + three * T(0.044715) * v * v);
    }
    case Act::kTanh: {
      const T t = from_output ? v : std::tanh(v);
      return one - t * t;
    }
    case Act::kElu: return v > zero ? one : from_output ? v + a : a * std::exp(v);
    case Act::kLeakyRelu: return v > zero ? one : a;
    case Act::kSoftplus: return v * a > b ? one : one / (one + std::exp(-v * a));
    case Act::kExp: return from_output ? v : std::exp(v);
  }
  return one;
}

}  // namespace ck
