// winograd.h: what the Winograd kernels share: the points, the transforms of inputs and outputs, and their edges.
//
// Y = A' [ (G g G') . (B' d B) ] A for a tile of kOut x kOut outputs and its kIn x kIn inputs d; filters g are kIn + 1 - kOut wide.
// Points    6x6: 0, +-5/8, +-3/2, infinity: exact in binary and half the rounding error of 0, +-1, +-2. 4x4: 0, +-1, infinity.
//           B depends on the points alone: all algorithms of one kIn share it.
// Source    Lavin and Gray 2016, arXiv:1509.09308; points: Barabasz et al. 2020, arXiv:1803.10986
#pragma once
#include "core/kernel.h"
#include "cpu/pixels.h"
#include "simd/math.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr float kP = 0.625f, kQ = 1.5f, kP2 = kP * kP, kQ2 = kQ * kQ;  // the points, exact

// B' d along one dimension, in place; element i is at d[i * step].
template <int kIn, int kStep>
CK_INLINE void transform_in(vf* d) {
  if constexpr (kIn == 4) {
    const vf d0 = d[0], d1 = d[kStep], d2 = d[2 * kStep], d3 = d[3 * kStep];
    d[0] = d2 - d0;
    d[kStep] = d1 + d2;
    d[2 * kStep] = d2 - d1;
    d[3 * kStep] = d3 - d1;
  } else {
    const vf d0 = d[0], d1 = d[kStep], d2 = d[2 * kStep], d3 = d[3 * kStep], d4 = d[4 * kStep], d5 = d[5 * kStep];
    d[0] = kP2 * kQ2 * d0 - (kP2 + kQ2) * d2 + d4;
    const vf a = d4 - kQ2 * d2, b = kP * (d3 - kQ2 * d1);
    d[kStep] = a + b;
    d[2 * kStep] = a - b;
    const vf c = d4 - kP2 * d2, e = kQ * (d3 - kP2 * d1);
    d[3 * kStep] = c + e;
    d[4 * kStep] = c - e;
    d[5 * kStep] = kP2 * kQ2 * d1 - (kP2 + kQ2) * d3 + d5;
  }
}

// A' m along one dimension: kIn to kOut.
template <int kIn, int kOut>
CK_INLINE void transform_out(const vf* m, int step, vf* y, int y_step) {
  const vf s1 = m[step] + m[2 * step], d1 = m[step] - m[2 * step];
  if constexpr (kIn == 4) {
    y[0] = m[0] + s1;
    y[y_step] = d1 + m[3 * step];
  } else {
    const vf s2 = m[3 * step] + m[4 * step], d2 = m[3 * step] - m[4 * step];
    y[0] = m[0] + s1 + s2;
    if constexpr (kOut == 2) {
      y[y_step] = kP * d1 + kQ * d2 + m[5 * step];
    } else {
      y[y_step] = kP * d1 + kQ * d2;
      y[2 * y_step] = kP2 * s1 + kQ2 * s2;
      y[3 * y_step] = (kP * kP2) * d1 + (kQ * kQ2) * d2 + m[5 * step];
    }
  }
}

// What a tile is along one dimension. kAt: where its values stand among those of the points.
template <int kIn_, int kOut_>
struct Along {
  static constexpr int kIn = kIn_, kOut = kOut_, kAt[] = {0, 1, 2, 3, 4, 5};
  template <int kStep>
  CK_INLINE void in(vf* d) {
    transform_in<kIn, kStep>(d);
  }
  CK_INLINE void out(const vf* m, int step, vf* y, int y_step) { transform_out<kIn, kOut>(m, step, y, y_step); }
};

// F(4, 3) with weights that are mere values at the points, 1, x, x^2 and, at infinity, the last coefficient (at_point): the products of each
// point's distances to the others divide A instead.
struct Whole : Along<6, 4> {
  CK_INLINE void out(const vf* m, int step, vf* y, int y_step) {
    constexpr double p2 = double(kP) * kP, q2 = double(kQ) * kQ, at_p = 1 / (2 * p2 * (p2 - q2)), at_q = 1 / (2 * q2 * (q2 - p2));
    const vf s1 = m[step] + m[2 * step], d1 = m[step] - m[2 * step], s2 = m[3 * step] + m[4 * step], d2 = m[3 * step] - m[4 * step];
    y[0] = float(1 / (p2 * q2)) * m[0] + float(at_p) * s1 + float(at_q) * s2;
    y[y_step] = float(at_p * kP) * d1 + float(at_q * kQ) * d2;
    y[2 * y_step] = float(at_p * p2) * s1 + float(at_q * q2) * s2;
    y[3 * y_step] = float(at_p * p2 * kP) * d1 + float(at_q * q2 * kQ) * d2 + m[5 * step];
  }
};

// F(2, 3) by 0, +-5/8 and infinity: its weights are four of the six values that Whole needs.
struct Half {
  static constexpr int kIn = 4, kOut = 2, kAt[] = {0, 1, 2, 5};
  template <int kStep>
  CK_INLINE void in(vf* d) {
    const vf d0 = d[0], d1 = d[kStep], d2 = d[2 * kStep], d3 = d[3 * kStep];
    d[0] = d2 - kP2 * d0;
    d[kStep] = d2 + kP * d1;
    d[2 * kStep] = d2 - kP * d1;
    d[3 * kStep] = d3 - kP2 * d1;
  }
  CK_INLINE void out(const vf* m, int step, vf* y, int y_step) {
    constexpr double p2 = double(kP) * kP;
    y[0] = float(1 / (2 * p2)) * (m[step] + m[2 * step]) - float(1 / p2) * m[0];
    y[y_step] = float(kP / (2 * p2)) * (m[step] - m[2 * step]) + m[3 * step];
  }
};

CK_INLINE const char* refuse_winograd(const ConvProblem& p, int64_t window) {
  if (p.exact) return "exact: Winograd changes the rounding";
  if (p.transposed || p.groups != 1) return "transposed or grouped";
  if (p.d != 1 || p.t != 1 || p.z != 1 || p.r != window || p.s != window) return window == 3 ? "3x3 filters only" : "5x5 filters only";
  if (p.stride_h != 1 || p.stride_w != 1 || p.dil_h != 1 || p.dil_w != 1) return "stride 1 and dilation 1 only";
  if (p.c < 32 || p.k < 16) return "fewer than 32 channels or 16 filters";  // error twice that of long sums, little to save
  return nullptr;
}

CK_INLINE vf plus(vf sum, vf a, float b) {
  add_product(sum, a, splat(b));
  return sum;
}
CK_INLINE vf minus(vf sum, vf a, float b) {
  subtract_product(sum, a, splat(b));
  return sum;
}

// The three coefficients g, g[step], g[2 * step] at point number kPoint of Whole.
template <int kPoint>
CK_INLINE vf at_point(const float* g, int64_t step) {
  constexpr float x = kPoint < 3 ? kP : kQ;
  if constexpr (kPoint == 0) return load(g);
  else if constexpr (kPoint == 5) return load(g + 2 * step);
  else if constexpr (kPoint % 2 == 1) return plus(plus(load(g), load(g + step), x), load(g + 2 * step), x * x);
  else return plus(minus(load(g), load(g + step), x), load(g + 2 * step), x * x);
}

// One vector of channels of one tile of inputs, of which those outside the image are zero, transformed: d[Rows::kIn * Columns::kIn].
template <class Rows, class Columns, bool kEdge, class IO>
CK_INLINE void load_tile(const ConvProblem& p, const View& x, const float* x_n, int64_t h0, int64_t w0, vf* d, IO io) {
  constexpr int kRows = Rows::kIn, kColumns = Columns::kIn;
  CK_UNROLL
  for (int i = 0; i < kRows; ++i) {
    const bool row = !kEdge || static_cast<uint64_t>(h0 + i) < static_cast<uint64_t>(p.h);
    CK_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      const bool in = row && (!kEdge || static_cast<uint64_t>(w0 + j) < static_cast<uint64_t>(p.w));
      d[i * kColumns + j] = in ? io.load(x_n + (h0 + i) * x.row + (w0 + j) * x.pixel) : splat(0.f);
    }
  }
  CK_UNROLL
  for (int j = 0; j < kColumns; ++j) Rows::template in<kColumns>(d + j);
  CK_UNROLL
  for (int i = 0; i < kRows; ++i) Columns::template in<1>(d + i * kColumns);
}

// The outputs of a tile whose products (i, j) lie at m + i * row_step + j * step, with the epilogue; those beyond the image are left out.
template <class Rows, class Columns, class IO>
CK_INLINE void store_tile(const ConvProblem& p, const ConvArgs& a, int64_t n, int64_t row, int64_t column, const float* m, int64_t row_step, int64_t step, int64_t k,
                          IO io) {
  constexpr int kIn = Columns::kIn, kOut = Columns::kOut;
  vf z[Rows::kOut * kIn];
  CK_UNROLL
  for (int j = 0; j < kIn; ++j) {
    vf column_j[Rows::kIn];
    CK_UNROLL
    for (int i = 0; i < Rows::kIn; ++i) column_j[i] = load(m + Rows::kAt[i] * row_step + Columns::kAt[j] * step);
    Rows::out(column_j, 1, z + j, kIn);
  }
  const vf bias = a.bias ? io.load(static_cast<const float*>(a.bias) + k) : splat(0.f);
  const vf lo = splat(p.act.a), hi = splat(p.act.b);
  const int height = static_cast<int>(least(Rows::kOut, p.p - row)), width = static_cast<int>(least(kOut, p.q - column));
  CK_UNROLL
  for (int i = 0; i < Rows::kOut; ++i) {
    if (i >= height) break;
    vf y[kOut];
    Columns::out(z + i * kIn, 1, y, 1);
    float* y_row = at<float>(a.y, n, 0, row + i, column) + k;
    const float* r_row = a.residual.data ? at<const float>(a.residual, n, 0, row + i, column) + k : nullptr;
    CK_UNROLL
    for (int j = 0; j < kOut; ++j) {
      if (j >= width) break;
      vf out = y[j];
      if (a.bias) out += bias;
      if (r_row) out += io.load(r_row + j * a.residual.pixel);
      if (p.act.kind == Act::kClamp) out = clamp(out, lo, hi);
      io.store(y_row + j * a.y.pixel, out);
    }
  }
  if (p.act.kind != Act::kNone && p.act.kind != Act::kClamp)
    for (int i = 0; i < height; ++i)
      for (int j = 0; j < width; ++j) {
        float* out = at<float>(a.y, n, 0, row + i, column + j) + k;
        activate_span(out, out, least(kLanes, p.k - k), p.act);
      }
}

}  // namespace
}  // namespace CK_ISA
}  // namespace ck
