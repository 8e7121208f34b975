// warp.cpp: bilinear (or nearest) affine warp of an image, uint8 or float32 to float32.
//
// Computes  y[i,j,c] = sum over the four pixels around (u, v) of weight * x[.,.,c],  (u, v) = M (i, j, 1)   (image/warp.h)
// Layout    x HWC, y PQC, any row and pixel strides
// Tiling    task = result row; in a row one span of columns has all its pixels inside the source and needs no border rule
// Cost      9 multiply-adds and 12 loads a pixel of 3 channels
// Fill      nearest  aaa|abcd|ddd          reflect  cba|abcd|dcb          constant  kkk|abcd|kkk: outside the outermost pixels' centres
//           wrap     abc|abcd|bca with the first and the last pixel on one another, a period of n - 1: SciPy's "wrap", hence Keras'
// Rounding  positions in double, weights in float; no contraction to FMA (csrc/CMakeLists.txt), so every machine gives the same bits
// Source    scipy.ndimage.affine_transform, orders 0 and 1
#include "image/warp.h"

#include <algorithm>
#include <cmath>

namespace ck {
namespace {

// Where a position falls along one axis: between pixels lo and hi, at `part` of the way. lo < 0: outside, show cval.
struct Tap {
  int64_t lo, hi;
  float part;
};

double modulo(double u, double period) { return u - period * std::floor(u / period); }

int64_t mirrored(int64_t i, int64_t n) {  // i in [-1, 2n]
  if (i < 0) return -1 - i;
  if (i >= 2 * n) return i - 2 * n;
  return i < n ? i : 2 * n - 1 - i;
}

Tap tap(double u, int64_t n, Fill fill, bool linear) {
  const double last = double(n - 1);
  switch (fill) {
    case Fill::kConstant:
      if (u < 0 || u > last) return {-1, -1, 0};
      break;
    case Fill::kNearest: u = std::clamp(u, 0.0, last); break;
    case Fill::kWrap:
      if (u < 0 || u > last) u = n > 1 ? std::clamp(modulo(u, last), 0.0, last) : 0.0;
      break;
    case Fill::kReflect:
      if (u < 0 || u > last) u = modulo(u, 2.0 * double(n));
      if (u >= 2.0 * double(n)) u = 0;  // a hair below 0 rounds to the whole period
      break;
  }
  if (!linear) u = std::floor(u + 0.5);
  const double floor = std::floor(u);
  const int64_t i = int64_t(floor);
  if (fill == Fill::kReflect) return {mirrored(i, n), mirrored(i + 1, n), float(u - floor)};
  return {i, std::min(i + 1, n - 1), float(u - floor)};
}

// [lo, hi): the columns j with 0 <= base + step*j < limit. The computed positions are monotone in j, so checking the ends suffices.
struct Span {
  int64_t lo, hi;
};

bool inside(double base, double step, double limit, int64_t j) {
  const double u = base + step * double(j);
  return u >= 0 && u < limit;
}

Span span(double base, double step, double limit, Span s) {
  if (step == 0) return inside(base, step, limit, 0) ? s : Span{s.lo, s.lo};
  const double a = -base / step, b = (limit - base) / step;
  const double first = std::min(a, b) - 1, last = std::max(a, b) + 2;
  s.lo = int64_t(std::clamp(first, double(s.lo), double(s.hi)));
  s.hi = int64_t(std::clamp(last, double(s.lo), double(s.hi)));
  while (s.lo < s.hi && !inside(base, step, limit, s.lo)) ++s.lo;
  while (s.lo < s.hi && !inside(base, step, limit, s.hi - 1)) --s.hi;
  return s;
}

// Two mixes along the row, one across: a constant image stays exactly constant. C = 0: the number of channels is in `channels`.
template <int C, class T>
inline void mix(const T* a, const T* b, const T* c, const T* d, float across, float along, int64_t channels, float* y) {
  const int64_t n = C ? C : channels;
  for (int64_t k = 0; k < n; ++k) {
    const float p = float(a[k]), q = float(b[k]), r = float(c[k]), s = float(d[k]);
    const float top = p + along * (q - p), bottom = r + along * (s - r);
    y[k] = top + across * (bottom - top);
  }
}

template <int C, class T>
inline void copy(const T* x, int64_t channels, float* y) {
  const int64_t n = C ? C : channels;
  for (int64_t k = 0; k < n; ++k) y[k] = float(x[k]);
}

template <int C, class T>
void rows(const WarpProblem& p, const WarpArgs<T>& a, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) {
    const double base_u = p.m[2] + p.m[0] * double(i), base_v = p.m[5] + p.m[3] * double(i);
    const double step_u = p.m[1], step_v = p.m[4];
    float* y_i = a.y + i * a.y_row;
    const auto border = [&](int64_t from, int64_t to) {
      for (int64_t j = from; j < to; ++j) {
        float* y_ij = y_i + j * a.y_pixel;
        const Tap u = tap(base_u + step_u * double(j), p.h, p.fill, p.linear);
        const Tap v = tap(base_v + step_v * double(j), p.w, p.fill, p.linear);
        if (u.lo < 0 || v.lo < 0) {
          std::fill(y_ij, y_ij + p.c, p.cval);
          continue;
        }
        const T *top = a.x + u.lo * a.x_row, *bottom = a.x + u.hi * a.x_row;
        const int64_t left = v.lo * a.x_pixel, right = v.hi * a.x_pixel;
        if (p.linear) mix<C>(top + left, top + right, bottom + left, bottom + right, u.part, v.part, p.c, y_ij);
        else copy<C>(top + left, p.c, y_ij);
      }
    };
    const Span s = span(base_v, step_v, double(p.w - 1), span(base_u, step_u, double(p.h - 1), {0, p.q}));
    border(0, s.lo);
    if (p.linear) {
      for (int64_t j = s.lo; j < s.hi; ++j) {
        const double u = base_u + step_u * double(j), v = base_v + step_v * double(j);
        const int64_t iu = int64_t(u), iv = int64_t(v);
        const T* x_uv = a.x + iu * a.x_row + iv * a.x_pixel;
        const T* x_below = x_uv + a.x_row;
        mix<C>(x_uv, x_uv + a.x_pixel, x_below, x_below + a.x_pixel, float(u - double(iu)), float(v - double(iv)), p.c,
               y_i + j * a.y_pixel);
      }
    } else {
      for (int64_t j = s.lo; j < s.hi; ++j) {
        const int64_t iu = int64_t(base_u + step_u * double(j) + 0.5), iv = int64_t(base_v + step_v * double(j) + 0.5);
        copy<C>(a.x + iu * a.x_row + iv * a.x_pixel, p.c, y_i + j * a.y_pixel);
      }
    }
    border(s.hi, p.q);
  }
}

}  // namespace

template <class T>
void warp(const WarpProblem& p, const WarpArgs<T>& a, int64_t first, int64_t last) {
  switch (p.c) {
    case 1: return rows<1>(p, a, first, last);
    case 3: return rows<3>(p, a, first, last);
    case 4: return rows<4>(p, a, first, last);
    default: return rows<0>(p, a, first, last);
  }
}

template void warp<uint8_t>(const WarpProblem&, const WarpArgs<uint8_t>&, int64_t, int64_t);
template void warp<float>(const WarpProblem&, const WarpArgs<float>&, int64_t, int64_t);

}  // namespace ck
