// math.h: vectorised exp, log, tanh, erf, ... and the activations of an epilogue, on the vectors of simd/vec.h.
//
// Every function is right at +-0, +-inf and NaN, and at any magnitude; results below the normal numbers are 0 (silu: where exp(v) is).
// Worst errors in ulp against float64, measured over the whole range of floats, with and without FMA:
// exp 1.0, expm1 1.5, log 0.8, log1p 1.3, tanh 2.5, sigmoid 2.3, silu 6.3, erf 1.3, x^-0.75 15.
// The polynomials are minimax fits (weighted for relative error of the whole function) rounded to float32.
// Plain C++ on vector types: comparisons give lane masks, mask ? a : b selects lanes.
#pragma once
#include "core/problem.h"
#include "simd/vec.h"

namespace ck {
namespace CK_ISA {

CK_INLINE vi to_bits(vf v) { return (vi)v; }
CK_INLINE vf from_bits(vi v) { return (vf)v; }
CK_INLINE vi splat_int(int32_t v) { return vi{} + v; }
CK_INLINE vf vabs(vf v) { return from_bits(to_bits(v) & 0x7fffffff); }
CK_INLINE vf copy_sign(vf magnitude, vf sign) {
  return from_bits((to_bits(magnitude) & 0x7fffffff) | (to_bits(sign) & splat_int(INT32_MIN)));
}
CK_INLINE vf select(vi mask, vf a, vf b) { return mask ? a : b; }

// 2^n for integers -126 <= n <= 127; 0 for n = -127.
CK_INLINE vf pow2(vi n) { return from_bits((n + 127) << 23); }

// exp(v) = 2^n exp(r) with |r| <= ln 2 / 2 for v >= -88; gives n and exp(r) - 1. Adding 1.5 * 2^23 rounds to an integer and leaves
// it in the low bits. n stops at 127, the largest power that is a float: the polynomial is good up to r = ln 2, where exp(v)
// leaves the floats; beyond, it grows and the product is infinity.
struct Reduced {
  vi n;
  vf expm1_r;
};
CK_INLINE Reduced reduce_exp(vf v) {
  const vf magic = splat(12582912.0f);
  const vf shifted = vmin(v * splat(1.44269504f) + magic, splat(12582912.0f + 127.0f));
  const vf n = shifted - magic;
  const vf r = v - n * splat(0.693145752f) - n * splat(1.42860677e-6f);  // ln 2 in two parts: n times the first is exact
  vf q = splat(0.000226682867f);
  q = q * r + splat(0.00138889381f);
  q = q * r + splat(0.00832748599f);
  q = q * r + splat(0.0416670702f);
  q = q * r + splat(0.16666697f);
  q = q * r + splat(0.5f);
  return {to_bits(shifted) - to_bits(magic), q * r * r + r};
}

CK_INLINE vf vexp(vf v) {
  const Reduced e = reduce_exp(vmax(v, splat(-88.0f)));  // n = -127 there: 0
  return (splat(1.0f) + e.expm1_r) * pow2(e.n);
}

// exp(v) - 1; small v keep their relative precision.
CK_INLINE vf vexpm1(vf v) {
  v = vmax(v, splat(-30.0f));  // -1 beyond
  const Reduced e = reduce_exp(v);
  const vf scale = pow2(e.n);
  return e.expm1_r * scale + (scale - splat(1.0f));
}

CK_INLINE vf vlog(vf v) {
  const vf infinity = splat(__builtin_inff());
  const vi tiny = v < splat(1.17549435e-38f);
  const vf x = select(tiny, v * splat(8388608.0f), v);
  const vi e = (to_bits(x) - 0x3f3504f3) >> 23;  // x = 2^e (1 + f), sqrt(1/2) <= 1 + f < sqrt(2)
  const vf f = from_bits(to_bits(x) - (e << 23)) - splat(1.0f);
  const vf n = __builtin_convertvector(e, vf) - select(tiny, splat(23.0f), splat(0.0f));
  vf p = splat(0.067466408f);
  p = p * f + splat(-0.116756521f);
  p = p * f + splat(0.11888162f);
  p = p * f + splat(-0.124055892f);
  p = p * f + splat(0.142195523f);
  p = p * f + splat(-0.166679963f);
  p = p * f + splat(0.200021192f);
  p = p * f + splat(-0.250000089f);
  p = p * f + splat(0.333333135f);
  const vf f2 = f * f;
  const vf tail = p * f * f2 + n * splat(1.42860677e-6f) - splat(0.5f) * f2;
  vf y = n * splat(0.693145752f) + (f + tail);
  y = select(v < infinity, y, v);  // inf and NaN
  y = select(v == splat(0.0f), -infinity, y);
  return select(v < splat(0.0f), splat(__builtin_nanf("")), y);
}

// log(1 + v) for v >= 0: the rounding error of 1 + v is made good by the first-order term.
CK_INLINE vf vlog1p(vf v) {
  const vf w = v + splat(1.0f);
  const vf y = vlog(w) + (v - (w - splat(1.0f))) / w;
  return select(w < splat(__builtin_inff()), y, w);
}

CK_INLINE vf vtanh(vf v) {
  const vf e = vexpm1(vmin(vabs(v), splat(10.0f)) * splat(2.0f));  // 1 beyond
  return copy_sign(e / (e + splat(2.0f)), v);
}

CK_INLINE vf vsigmoid(vf v) { return splat(1.0f) / (splat(1.0f) + vexp(-v)); }

// v / (1 + exp(-v)), the commonest of the costly activations.
#if defined(__AVX512F__)
alignas(64) static const
    float kRootsOfTwo[32] = {// 2^(i/32)
                             1.0f,        1.02189715f, 1.04427378f, 1.067140401f, 1.0905077f, 1.11438674f, 1.1387886f, 1.1637249f,
                             1.1892071f,  1.2152474f,  1.2418578f,  1.269051f,    1.2968396f, 1.32523664f, 1.3542555f, 1.38391f,
                             1.41421356f, 1.4451808f,  1.47682615f, 1.5091644f,   1.5422108f, 1.57598085f, 1.6104903f, 1.6457555f,
                             1.6817928f,  1.7186193f,  1.7562522f,  1.7947091f,   1.8340081f, 1.87416763f, 1.9152066f, 1.9571441f};

// As v * (e / (1 + e)), e = exp(v), which overflows nowhere below 30, and there the quotient is 1. exp by a table of 32 powers and two terms: 10.6
// cycles a vector in place of 14.7 (Granite Rapids, November 2026); the same with six terms and no table: 13.6.
CK_INLINE vf vsilu(vf v) {
  const vf u = vmin(vmax(v, splat(-88.0f)), splat(30.0f)), magic = splat(393216.0f);  // 1.5 * 2^18 rounds to 32nds
  const vf shifted = u * splat(1.44269504f) + magic, n = shifted - magic, r = u - n * splat(0.693147182f);
  const vf power = times_pow2(choose_of_32(kRootsOfTwo, shifted), n);
  const vf e = (splat(0.5f) * r + splat(1.0000146f)) * r * power + power;
  return v * quotient(e, splat(1.0f) + e);
}
#else
CK_INLINE vf vsilu(vf v) { return v / (splat(1.0f) + vexp(-v)); }
#endif

CK_INLINE vf verf(vf v) {
  const vf x = vmin(vabs(v), splat(4.0f));  // 1 beyond
  const vf s = x * x;
  vf near = splat(7.85386146e-05f);  // |v| < 1: v + v * poly(v^2)
  near = near * s + splat(-0.000801019371f);
  near = near * s + splat(0.00518832775f);
  near = near * s + splat(-0.0268538129f);
  near = near * s + splat(0.112835854f);
  near = near * s + splat(-0.37612626f);
  near = near * s + splat(0.128379166f);
  vf far = splat(0.000186379199f);  // beyond: 1 - exp(poly(|v|))
  far = far * x + splat(-0.0029476583f);
  far = far * x + splat(0.0218380634f);
  far = far * x + splat(-0.103106752f);
  far = far * x + splat(-0.638144851f);
  far = far * x + splat(-1.12708914f);
  far = far * x + splat(-0.000341523031f);
  const Reduced e = reduce_exp(far);  // -18 <= far <= 0
  const vf scale = pow2(e.n);
  return copy_sign(select(x < splat(1.0f), x + x * near, splat(1.0f) - (scale + e.expm1_r * scale)), v);
}

// v^e for v >= 0; relative error about |e log v| ulp.
CK_INLINE vf vpow(vf v, vf e) { return vexp(vlog(v) * e); }

// One activation, known at compile time. a and b are its parameters.
template <Act kKind>
CK_INLINE vf activate(vf v, vf a, vf b) {
  const vf zero = splat(0.0f), one = splat(1.0f), six = splat(6.0f), half = splat(0.5f);
  switch (kKind) {
    case Act::kNone: return v;
    case Act::kClamp: return clamp(v, a, b);
    case Act::kSilu: return vsilu(v);
    case Act::kSigmoid: return vsigmoid(v);
    case Act::kHardSwish: return v * clamp(v + splat(3.0f), zero, six) / six;
    case Act::kHardSigmoid: return clamp(v + splat(3.0f), zero, six) / six;
    case Act::kGelu: return half * v * (one + verf(v * splat(0.707106781f)));
    case Act::kGeluTanh: return half * v * (one + vtanh(splat(0.797884561f) * (v + splat(0.044715f) * v * v * v)));
    case Act::kTanh: return vtanh(v);
    case Act::kElu: return select(v > zero, v, a * vexpm1(vmin(v, zero)));
    case Act::kLeakyRelu: return select(v > zero, v, a * v);
    case Act::kSoftplus: {  // log(1 + exp u) = max(u, 0) + log(1 + exp(-|u|)) does not overflow
      const vf u = v * a;
      return select(u > b, v, (vmax(u, zero) + vlog1p(vexp(-vabs(u)))) / a);
    }
    case Act::kExp: return vexp(v);
  }
  return v;
}

// Calls f.template run<kind>() for the run-time kind: loops are instantiated per activation, the choice is made once outside them.
template <class F>
CK_INLINE void with_activation(Act kind, const F& f) {
  switch (kind) {
    case Act::kNone: return f.template run<Act::kNone>();
    case Act::kClamp: return f.template run<Act::kClamp>();
    case Act::kSilu: return f.template run<Act::kSilu>();
    case Act::kSigmoid: return f.template run<Act::kSigmoid>();
    case Act::kHardSwish: return f.template run<Act::kHardSwish>();
    case Act::kHardSigmoid: return f.template run<Act::kHardSigmoid>();
    case Act::kGelu: return f.template run<Act::kGelu>();
    case Act::kGeluTanh: return f.template run<Act::kGeluTanh>();
    case Act::kTanh: return f.template run<Act::kTanh>();
    case Act::kElu: return f.template run<Act::kElu>();
    case Act::kLeakyRelu: return f.template run<Act::kLeakyRelu>();
    case Act::kSoftplus: return f.template run<Act::kSoftplus>();
    case Act::kExp: return f.template run<Act::kExp>();
  }
}

// y[i] = act(x[i]) for n contiguous floats; y may be x. For whole rows, and for tiles still in the first-level cache.
struct ActivateSpan {
  const float* x;
  float* y;
  int64_t n;
  float a, b;

  template <Act kKind>
  CK_INLINE_MEMBER void run() const {
    const vf va = splat(a), vb = splat(b);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(y + i, activate<kKind>(load(x + i), va, vb));
    if (i < n) store_n(y + i, activate<kKind>(load_n(x + i, static_cast<int>(n - i)), va, vb), static_cast<int>(n - i));
  }
};
static __attribute__((noinline, unused)) void activate_span(const float* x, float* y, int64_t n, const Activation& act) {
  with_activation(act.kind, ActivateSpan{x, y, n, static_cast<float>(act.a), static_cast<float>(act.b)});
}

// The same in place for `rows` rows of n floats, `step` floats apart: of a tile, whose rows are too short to be worth a call each.
struct ActivateRows {
  float* y;
  int64_t step, rows, n;
  float a, b;

  template <Act kKind>
  CK_INLINE_MEMBER void run() const {
    const vf va = splat(a), vb = splat(b);
    float* row = y;
    for (int64_t r = 0; r < rows; ++r, row += step) {
      int64_t i = 0;
      for (; i + kLanes <= n; i += kLanes) store(row + i, activate<kKind>(load(row + i), va, vb));
      if (i < n) store_n(row + i, activate<kKind>(load_n(row + i, static_cast<int>(n - i)), va, vb), static_cast<int>(n - i));
    }
  }
};
static __attribute__((noinline, unused)) void activate_rows(float* y, int64_t step, int64_t rows, int64_t n, const Activation& act) {
  if (step == n) n *= rows, rows = 1;
  with_activation(act.kind, ActivateRows{y, step, rows, n, static_cast<float>(act.a), static_cast<float>(act.b)});
}

// The rarer activations of one vector, out of line: an unrolled epilogue has many call sites, a dozen bodies at each would be too much.
struct ActivateVector {
  vf* v;
  float a, b;
  template <Act kKind>
  CK_INLINE_MEMBER void run() const {
    *v = activate<kKind>(*v, splat(a), splat(b));
  }
};
static __attribute__((noinline, unused)) vf activate_other(vf v, const Activation& act) {
  with_activation(act.kind, ActivateVector{&v, static_cast<float>(act.a), static_cast<float>(act.b)});
  return v;
}

// One vector, any activation: the clamps inline, the others by a call.
CK_INLINE vf activate(vf v, const Activation& act) {
  if (act.kind == Act::kNone) return v;
  if (act.kind == Act::kClamp) return clamp(v, splat(static_cast<float>(act.a)), splat(static_cast<float>(act.b)));
  return activate_other(v, act);
}

}  // namespace CK_ISA
}  // namespace ck
