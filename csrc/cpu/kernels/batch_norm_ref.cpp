// batch_norm_ref.cpp: batch norm with the statistics of the batch, and its gradient, float32 and float64, as the definition says.
//
// Computes  forward   mean[c], var[c] over n d h w (biased);  y = act(x * s + (beta - mean * s) + residual),  s = gamma / sqrt(var + eps)
//           backward  g = dy where act'(y) = 1, else 0;  dbeta = sum g;  dgamma = sum g * xhat;  dx = s * (g - dbeta / m - xhat * dgamma / m)
// Layout    NDHWC; mean, var, gamma, beta, dgamma, dbeta C, totals; sums in double
// Tiling    phase 0: task = channel (statistics or sums); phase 1: task = pixel
// Refuses   nothing
// Source    Ioffe and Szegedy 2015, arXiv:1502.03167
#include <cmath>

#include "core/activation.h"
#include "core/kernel.h"

namespace ck::ref {
namespace {

template <class T>
struct Channel {
  T scale, shift;  // y = x * scale + shift
  double mean, inverse;
};

template <class T>
Channel<T> channel(const BatchNormProblem& p, const BatchNormArgs& a, int64_t c) {
  const double mean = static_cast<double>(static_cast<const T*>(a.mean)[c]), var = static_cast<double>(static_cast<const T*>(a.var)[c]);
  const double inverse = 1 / std::sqrt(var + p.eps);
  const double scale = a.gamma ? static_cast<double>(static_cast<const T*>(a.gamma)[c]) * inverse : inverse;
  const double beta = a.beta ? static_cast<double>(static_cast<const T*>(a.beta)[c]) : 0.0;
  return {static_cast<T>(scale), static_cast<T>(beta - mean * scale), mean, inverse};
}

template <class T>
T masked(const BatchNormProblem& p, T dy, T x, const Channel<T>& k) {
  return p.act.kind == Act::kNone ? dy : dy * slope(activate(x * k.scale + k.shift, p.act), p.act, true);
}

template <class T>
void run(const BatchNormProblem& p, const BatchNormArgs& a, int64_t images, int phase, int64_t first, int64_t last, void*, void*) {
  const int64_t pixels = p.d * p.h * p.w, all = images * pixels;
  const auto pixel = [&](const View& v, int64_t i) { return at<T>(v, i / pixels, i / (p.h * p.w) % p.d, i / p.w % p.h, i % p.w); };
  const double count = static_cast<double>(all);
  for (int64_t task = first; task < last; ++task) {
    if (phase == 0) {
      double sum = 0, product = 0;
      if (p.backward) {
        const Channel<T> k = channel<T>(p, a, task);
        for (int64_t i = 0; i < all; ++i) {
          const double x = static_cast<double>(pixel(a.x, i)[task]);
          const double g = static_cast<double>(masked(p, pixel(a.dy, i)[task], static_cast<T>(x), k));
          sum += g, product += g * (x - k.mean) * k.inverse;
        }
        static_cast<T*>(a.dgamma)[task] = static_cast<T>(product);
        static_cast<T*>(a.dbeta)[task] = static_cast<T>(sum);
      } else {
        for (int64_t i = 0; i < all; ++i) sum += static_cast<double>(pixel(a.x, i)[task]);
        const double mean = sum / count;
        for (int64_t i = 0; i < all; ++i) {
          const double v = static_cast<double>(pixel(a.x, i)[task]) - mean;
          product += v * v;
        }
        static_cast<T*>(a.mean)[task] = static_cast<T>(mean);
        static_cast<T*>(a.var)[task] = static_cast<T>(product / count);
      }
      continue;
    }
    const T* x = pixel(a.x, task);
    T* y = pixel(a.y, task);
    for (int64_t c = 0; c < p.c; ++c) {
      const Channel<T> k = channel<T>(p, a, c);
      if (p.backward) {
        const double g = static_cast<double>(masked(p, pixel(a.dy, task)[c], x[c], k));
        const double xhat = (static_cast<double>(x[c]) - k.mean) * k.inverse;
        const double dbeta = static_cast<double>(static_cast<const T*>(a.dbeta)[c]),
                     dgamma = static_cast<double>(static_cast<const T*>(a.dgamma)[c]);
        y[c] = static_cast<T>(static_cast<double>(k.scale) * (g - dbeta / count - xhat * dgamma / count));
      } else {
        T v = x[c] * k.scale + k.shift;
        if (p.residual) v += pixel(a.residual, task)[c];
        y[c] = activate(v, p.act);
      }
    }
  }
}

const char* refuse(const BatchNormProblem&) { return nullptr; }
double cost(const BatchNormProblem& p) { return 0.05 * double(p.d * p.h * p.w * p.c) + 1; }
int64_t scratch_bytes(const BatchNormProblem&) { return 0; }
int64_t shared_bytes(const BatchNormProblem&, int64_t) { return 0; }
int64_t phases(const BatchNormProblem&, int64_t) { return 2; }
int64_t tasks(const BatchNormProblem& p, int64_t images, int phase) { return phase == 0 ? p.c : images * p.d * p.h * p.w; }

}  // namespace

extern const BatchNormKernel batch_norm_ref, batch_norm_ref64;
const BatchNormKernel batch_norm_ref = {"batch_norm_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<float>};
const BatchNormKernel batch_norm_ref64 = {"batch_norm_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<double>};

}  // namespace ck::ref
