// norm_back_ref.cpp: gradients of operators over the channels of each pixel, float32 and float64, as the definitions say.
//
// Computes  layer_norm   dx = (g - mean(g) - xhat * mean(g * xhat)) / sqrt(var + eps), g = dy * scale;  dscale = sum dy * xhat, dshift = sum dy
//           lrn          dx = dy * b^-beta - 2 alpha beta / size * x * sum over the windows that hold c of dy x b^(-beta-1),  b = k + alpha/size * sum x^2
//           softmax      dx = y * (dy - sum(dy * y));   log_softmax  dx = dy - exp(y) * sum(dy)
// Layout    dy, dx and the saved x (softmax: y) NDHWC; dscale and dshift C, totals; sums in double
// Tiling    phase 0: task = pixel; phase 1 (layer norm with dscale or dshift): task = channel
// Refuses   nothing
// Source    Ba et al. 2016, arXiv:1607.06450; Krizhevsky et al. 2012, sec. 3.3
#include <cmath>

#include "core/kernel.h"

namespace ck::ref {
namespace {

struct Moments {
  double mean, inverse;
};

template <class T>
Moments moments(const NormProblem& p, const T* x) {
  double sum = 0, squares = 0;
  for (int64_t c = 0; c < p.c; ++c) sum += static_cast<double>(x[c]);
  const double mean = sum / static_cast<double>(p.c);
  for (int64_t c = 0; c < p.c; ++c) squares += (static_cast<double>(x[c]) - mean) * (static_cast<double>(x[c]) - mean);
  return {mean, 1 / std::sqrt(squares / static_cast<double>(p.c) + p.eps)};
}

template <class T>
void layer_norm(const NormProblem& p, const T* dy, const T* x, const T* scale, T* dx) {
  const Moments m = moments(p, x);
  double sum = 0, product = 0;
  for (int64_t c = 0; c < p.c; ++c) {
    const double g = static_cast<double>(dy[c]) * (scale ? static_cast<double>(scale[c]) : 1.0);
    sum += g, product += g * (static_cast<double>(x[c]) - m.mean) * m.inverse;
  }
  const double channels = static_cast<double>(p.c);
  for (int64_t c = 0; c < p.c; ++c) {
    const double g = static_cast<double>(dy[c]) * (scale ? static_cast<double>(scale[c]) : 1.0);
    dx[c] = static_cast<T>((g - sum / channels - (static_cast<double>(x[c]) - m.mean) * m.inverse * product / channels) * m.inverse);
  }
}

template <class T>
double lrn_base(const NormProblem& p, const T* x, int64_t c) {
  double sum = 0;
  for (int64_t i = c - p.size / 2; i <= c + (p.size - 1) / 2; ++i)
    if (i >= 0 && i < p.c) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return p.k + p.alpha / static_cast<double>(p.size) * sum;
}

template <class T>
void lrn(const NormProblem& p, const T* dy, const T* x, T* dx) {
  for (int64_t c = 0; c < p.c; ++c) {
    double sum = 0;
    for (int64_t i = c - (p.size - 1) / 2; i <= c + p.size / 2; ++i)  // the windows that hold c
      if (i >= 0 && i < p.c) sum += static_cast<double>(dy[i]) * static_cast<double>(x[i]) * std::pow(lrn_base(p, x, i), -p.beta - 1);
    const double own = static_cast<double>(dy[c]) * std::pow(lrn_base(p, x, c), -p.beta);
    dx[c] = static_cast<T>(own - 2 * p.alpha * p.beta / static_cast<double>(p.size) * static_cast<double>(x[c]) * sum);
  }
}

template <class T>
void softmax(const NormProblem& p, const T* dy, const T* y, T* dx) {
  const bool log = p.kind == NormKind::kLogSoftmax;
  double sum = 0;
  for (int64_t c = 0; c < p.c; ++c) sum += static_cast<double>(dy[c]) * (log ? 1.0 : static_cast<double>(y[c]));
  for (int64_t c = 0; c < p.c; ++c) {
    const double g = static_cast<double>(dy[c]), v = static_cast<double>(y[c]);
    dx[c] = static_cast<T>(log ? g - std::exp(v) * sum : v * (g - sum));
  }
}

template <class T>
void run(const NormProblem& p, const NormBackArgs& a, int64_t images, int phase, int64_t first, int64_t last, void*, void*) {
  const int64_t pixels = p.d * p.h * p.w;
  const auto pixel = [&](const View& v, int64_t i) { return at<T>(v, i / pixels, i / (p.h * p.w) % p.d, i / p.w % p.h, i % p.w); };
  if (p.c == 0) return;
  for (int64_t task = first; task < last; ++task) {
    if (phase == 0) {
      const T *dy = pixel(a.dy, task), *saved = pixel(a.saved, task);
      T* dx = pixel(a.dx, task);
      if (p.kind == NormKind::kLayerNorm) layer_norm(p, dy, saved, static_cast<const T*>(a.scale), dx);
      else if (p.kind == NormKind::kLrn) lrn(p, dy, saved, dx);
      else softmax(p, dy, saved, dx);
      continue;
    }
    double product = 0, sum = 0;
    for (int64_t i = 0; i < images * pixels; ++i) {
      const T *dy = pixel(a.dy, i), *x = pixel(a.saved, i);
      const Moments m = moments(p, x);
      sum += static_cast<double>(dy[task]);
      product += static_cast<double>(dy[task]) * (static_cast<double>(x[task]) - m.mean) * m.inverse;
    }
    if (a.dscale) static_cast<T*>(a.dscale)[task] = static_cast<T>(product);
    if (a.dshift) static_cast<T*>(a.dshift)[task] = static_cast<T>(sum);
  }
}

const char* refuse(const NormProblem& p) { return p.kind == NormKind::kScaleShift ? "scale and shift: a product and two sums" : nullptr; }
double cost(const NormProblem& p) { return 0.06 * double(p.d * p.h * p.w * p.c); }
int64_t scratch_bytes(const NormProblem&) { return 0; }
int64_t shared_bytes(const NormProblem&, int64_t) { return 0; }
int64_t phases(const NormProblem&, int64_t) { return 2; }
int64_t tasks(const NormProblem& p, int64_t images, int phase) {
  if (phase == 0) return images * p.d * p.h * p.w;
  return p.kind == NormKind::kLayerNorm ? p.c : 0;
}

}  // namespace

extern const NormBackKernel norm_back_ref, norm_back_ref64;
const NormBackKernel norm_back_ref = {"norm_back_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<float>};
const NormBackKernel norm_back_ref64 = {"norm_back_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<double>};

}  // namespace ck::ref
