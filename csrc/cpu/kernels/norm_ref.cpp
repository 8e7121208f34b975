// norm_ref.cpp: operators over the channels of each pixel, float32 and float64, as the definitions say.
//
// Computes  scale_shift   y = act(x * scale + shift)
//           layer_norm    y = (x - mean) / sqrt(var + eps) * scale + shift, mean and (biased) variance over the pixel's channels
//           lrn           y = x / (k + alpha/size * sum of x^2 over channels [c - size/2, c + (size-1)/2])^beta
//           softmax       y = exp(x - max) / sum exp(x - max);  log_softmax  y = x - max - log(sum exp(x - max))
// Layout    x and y NDHWC, scale and shift C
// Tiling    task = row (n,d,h)
// Cost      a few operations an element; lrn `size` more. Sums in double
// Refuses   nothing
// Source    torch.nn.functional.batch_norm, layer_norm, local_response_norm, softmax
#include <cmath>

#include "core/activation.h"
#include "core/kernel.h"

namespace ck::ref {
namespace {

template <class T>
void scale_shift(const NormProblem& p, const T* x, const T* scale, const T* shift, T* y) {
  for (int64_t c = 0; c < p.c; ++c) y[c] = activate(x[c] * (scale ? scale[c] : T(1)) + (shift ? shift[c] : T(0)), p.act);
}

template <class T>
void layer_norm(const NormProblem& p, const T* x, const T* scale, const T* shift, T* y) {
  double sum = 0, squares = 0;
  for (int64_t c = 0; c < p.c; ++c) sum += static_cast<double>(x[c]);
  const double mean = sum / static_cast<double>(p.c);
  for (int64_t c = 0; c < p.c; ++c) squares += (static_cast<double>(x[c]) - mean) * (static_cast<double>(x[c]) - mean);
  const double inverse = 1 / std::sqrt(squares / static_cast<double>(p.c) + p.eps);
  for (int64_t c = 0; c < p.c; ++c)
    y[c] = static_cast<T>((static_cast<double>(x[c]) - mean) * inverse) * (scale ? scale[c] : T(1)) + (shift ? shift[c] : T(0));
}

template <class T>
void lrn(const NormProblem& p, const T* x, T* y) {
  for (int64_t c = 0; c < p.c; ++c) {
    double sum = 0;
    for (int64_t i = c - p.size / 2; i <= c + (p.size - 1) / 2; ++i)
      if (i >= 0 && i < p.c) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    y[c] = static_cast<T>(static_cast<double>(x[c]) / std::pow(p.k + p.alpha / static_cast<double>(p.size) * sum, p.beta));
  }
}

template <class T>
void softmax(const NormProblem& p, const T* x, T* y) {
  double max = static_cast<double>(x[0]), sum = 0;
  for (int64_t c = 1; c < p.c; ++c) max = static_cast<double>(x[c]) > max ? static_cast<double>(x[c]) : max;
  for (int64_t c = 0; c < p.c; ++c) sum += std::exp(static_cast<double>(x[c]) - max);
  for (int64_t c = 0; c < p.c; ++c) {
    const double v = static_cast<double>(x[c]) - max;
    y[c] = static_cast<T>(p.kind == NormKind::kSoftmax ? std::exp(v) / sum : v - std::log(sum));
  }
}

template <class T>
void run(const NormProblem& p, const NormArgs& a, int64_t, int64_t first, int64_t last, void*) {
  const T* scale = static_cast<const T*>(a.scale);
  const T* shift = static_cast<const T*>(a.shift);
  if (p.c == 0) return;
  for (int64_t task = first; task < last; ++task) {
    const int64_t n = task / (p.d * p.h), d = task / p.h % p.d, h = task % p.h;
    for (int64_t w = 0; w < p.w; ++w) {
      const T* x = at<T>(a.x, n, d, h, w);
      T* y = at<T>(a.y, n, d, h, w);
      switch (p.kind) {
        case NormKind::kScaleShift: scale_shift(p, x, scale, shift, y); break;
        case NormKind::kLayerNorm: layer_norm(p, x, scale, shift, y); break;
        case NormKind::kLrn: lrn(p, x, y); break;
        case NormKind::kSoftmax:
        case NormKind::kLogSoftmax: softmax(p, x, y);
      }
    }
  }
}

const char* refuse(const NormProblem&) { return nullptr; }
double cost(const NormProblem& p) { return 0.03 * double(p.d * p.h * p.w * p.c); }
int64_t scratch_bytes(const NormProblem&) { return 0; }
int64_t tasks(const NormProblem& p, int64_t images) { return images * p.d * p.h; }

}  // namespace

extern const NormKernel norm_ref, norm_ref64;
const NormKernel norm_ref = {"norm_ref", refuse, cost, scratch_bytes, tasks, run<float>};
const NormKernel norm_ref64 = {"norm_ref", refuse, cost, scratch_bytes, tasks, run<double>};

}  // namespace ck::ref
