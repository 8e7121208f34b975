// window.h: where an output pixel looks. Along one dimension: the taps of a pooling window, of an interpolation, of a border.
// Shared by the reference and the vectorised kernels, hence static (ODR: see tensor.h); the formulas are torch's.
#pragma once
#include "problem.h"
#include "tensor.h"

namespace ck {

// Pooling: the input positions first, first + step, ... (count of them) that lie inside the input.
struct Taps {
  int64_t first, step, count;
  int64_t padded;  // taps inside the padded input: what count_include_pad divides by
};

CK_ANYWHERE static inline int64_t divide_up(int64_t a, int64_t b) { return b == 1 ? a : (a + b - 1) / b; }

CK_ANYWHERE static inline Taps pool_taps(int64_t i, int64_t in, int64_t window, int64_t stride, int64_t pad_lo, int64_t pad_hi,
                                         int64_t dil) {
  const int64_t start = i * stride - pad_lo;
  const int64_t skip = start < 0 ? divide_up(-start, dil) : 0;
  int64_t end = start < in ? divide_up(in - start, dil) : 0;  // taps before the end of the input, were the window unbounded
  int64_t padded = start < in + pad_hi ? divide_up(in + pad_hi - start, dil) : 0;
  end = end < window ? end : window;
  padded = padded < window ? padded : window;
  return {start + skip * dil, dil, end > skip ? end - skip : 0, padded};
}

CK_ANYWHERE static inline Taps adaptive_taps(int64_t i, int64_t in, int64_t out) {
  const int64_t first = i * in / out, end = divide_up((i + 1) * in, out);
  return {first, 1, end - first, end - first};
}

CK_ANYWHERE static inline Taps depth_taps(const PoolProblem& p, int64_t z) {
  return p.adaptive ? adaptive_taps(z, p.d, p.z) : pool_taps(z, p.d, p.t, p.stride_d, p.pad_d_lo, p.pad_d_hi, p.dil_d);
}
CK_ANYWHERE static inline Taps row_taps(const PoolProblem& p, int64_t i) {
  return p.adaptive ? adaptive_taps(i, p.h, p.p) : pool_taps(i, p.h, p.r, p.stride_h, p.pad_h_lo, p.pad_h_hi, p.dil_h);
}
CK_ANYWHERE static inline Taps column_taps(const PoolProblem& p, int64_t q) {
  return p.adaptive ? adaptive_taps(q, p.w, p.q) : pool_taps(q, p.w, p.s, p.stride_w, p.pad_w_lo, p.pad_w_hi, p.dil_w);
}

// What average pooling divides by; a window without a single element gives 0 / 1.
CK_ANYWHERE static inline int64_t pool_divisor(const PoolProblem& p, const Taps& depth, const Taps& row, const Taps& column) {
  if (p.divisor > 0) return p.divisor;
  const int64_t n = p.count_include_pad ? depth.padded * row.padded * column.padded : depth.count * row.count * column.count;
  return n > 0 ? n : 1;
}

// Resizing: output i is the sum of weight[j] * input[index[j]], j < resize_count.
template <class T>
struct Mix {
  int64_t index[4];
  T weight[4];
};

// A dimension of size 1 repeats its pixel.
CK_ANYWHERE static inline int resize_count(ResizeKind kind, int64_t in) {
  return in == 1 ? 1 : kind == ResizeKind::kCubic ? 4 : kind == ResizeKind::kLinear ? 2 : 1;
}

template <class T>
CK_ANYWHERE static inline int64_t floor_to_int(T v) {
  const int64_t n = static_cast<int64_t>(v);
  return v < static_cast<T>(n) ? n - 1 : n;
}

template <class T>
CK_ANYWHERE static inline Mix<T> resize_mix(ResizeKind kind, int64_t i, int64_t in, int64_t out, double input_per_output,
                                            bool align_corners) {
  if (in == 1) return {{0}, {T(1)}};
  const T scale = align_corners
                      ? (out > 1 ? static_cast<T>(in - 1) / static_cast<T>(out - 1) : T(0))
                      : static_cast<T>(input_per_output > 0 ? input_per_output : static_cast<double>(in) / static_cast<double>(out));
  const int64_t last = in - 1;
  if (kind == ResizeKind::kNearest || kind == ResizeKind::kNearestExact) {  // in float whatever T is, as torch's two-dimensional one
    const float centre = kind == ResizeKind::kNearest ? 0.0f : 0.5f;
    const int64_t at = floor_to_int((static_cast<float>(i) + centre) * static_cast<float>(scale));
    return {{at < last ? at : last}, {T(1)}};
  }
  T at = align_corners ? static_cast<T>(i) * scale : (static_cast<T>(i) + T(0.5)) * scale - T(0.5);
  if (kind == ResizeKind::kLinear) {
    at = at > T(0) ? at : T(0);
    int64_t lo = static_cast<int64_t>(at);
    lo = lo < last ? lo : last;
    T f = at - static_cast<T>(lo);
    f = f < T(1) ? f : T(1);
    return {{lo, lo < last ? lo + 1 : last}, {T(1) - f, f}};
  }
  const int64_t base = floor_to_int(at);
  const T f = at - static_cast<T>(base), a = T(-0.75);
  Mix<T> mix;
  for (int j = 0; j < 4; ++j) {
    const int64_t k = base - 1 + j;
    mix.index[j] = k < 0 ? 0 : k > last ? last : k;
    const T x = j == 0 ? f + T(1) : j == 1 ? f : j == 2 ? T(1) - f : T(2) - f;  // distance of the tap
    mix.weight[j] = j == 1 || j == 2 ? ((a + T(2)) * x - (a + T(3))) * x * x + T(1) : ((a * x - T(5) * a) * x + T(8) * a) * x - T(4) * a;
  }
  return mix;
}

// The position that stands for i outside [0, n); -1 = the constant.
CK_ANYWHERE static inline int64_t border_index(Border border, int64_t i, int64_t n) {
  if (i >= 0 && i < n) return i;
  switch (border) {
    case Border::kConstant: return -1;
    case Border::kReplicate: return i < 0 ? 0 : n - 1;
    case Border::kCircular: return ((i % n) + n) % n;
    case Border::kReflect: {
      if (n == 1) return 0;
      const int64_t period = 2 * (n - 1), j = ((i % period) + period) % period;
      return j < n ? j : period - j;
    }
  }
  return -1;
}

}  // namespace ck
