// loss_ref.cpp: losses of each pixel and the gradients of their predictions, float32 and float64, as the definitions say.
//
// Computes  sparse, dense  loss = -sum t log softmax(x), dx = softmax(x) * sum t - t, t = label * (1 - smoothing) + smoothing / C
//           sigmoid        loss = mean over c of max(x, 0) - x t + log(1 + exp(-|x|)), dx = (sigmoid(x) - t) / C
//           squared        loss = mean over c of (x - t)^2, dx = 2 (x - t) / C;   absolute  loss = mean of |x - t|, dx = sign(x - t) / C
//           all times the pixel's weight; dx also times scale, and (mean) divided by the pixels of the batch
// Layout    x, dx, dense labels NDHWC; sparse labels, weights and loss NDHW1; sums in double
// Tiling    task = pixel
// Refuses   nothing
// Source    torch.nn.functional.cross_entropy, binary_cross_entropy_with_logits, mse_loss; Szegedy et al. 2015, arXiv:1512.00567, sec. 7
#include <cmath>

#include "core/kernel.h"

namespace ck::ref {
namespace {

template <class T>
double cross_entropy(const LossProblem& p, const T* x, const T* label, double factor, T* dx) {
  const double uniform = p.smoothing / static_cast<double>(p.c);
  double max = static_cast<double>(x[0]), sum = 0, targets = 0, loss = 0;
  for (int64_t c = 1; c < p.c; ++c) max = static_cast<double>(x[c]) > max ? static_cast<double>(x[c]) : max;
  for (int64_t c = 0; c < p.c; ++c) sum += std::exp(static_cast<double>(x[c]) - max);
  const auto target = [&](int64_t c) {
    const double hot = p.kind == LossKind::kDense                              ? static_cast<double>(label[c])
                       : static_cast<double>(*label) == static_cast<double>(c) ? 1.0
                                                                               : 0.0;
    return hot * (1 - p.smoothing) + uniform;
  };
  for (int64_t c = 0; c < p.c; ++c) {
    const double t = target(c);
    targets += t;
    if (t != 0) loss -= t * (static_cast<double>(x[c]) - max - std::log(sum));
  }
  for (int64_t c = 0; c < p.c; ++c)
    dx[c] = static_cast<T>((std::exp(static_cast<double>(x[c]) - max) / sum * targets - target(c)) * factor);
  return loss;
}

template <class T>
double regression(const LossProblem& p, const T* x, const T* label, double factor, T* dx) {
  const double channels = static_cast<double>(p.c);
  double loss = 0;
  for (int64_t c = 0; c < p.c; ++c) {
    const double v = static_cast<double>(x[c]);
    double t = static_cast<double>(label[c]), gradient;
    if (p.kind == LossKind::kSigmoid) {
      t = t * (1 - p.smoothing) + p.smoothing / 2;
      loss += (v > 0 ? v : 0) - v * t + std::log1p(std::exp(-std::fabs(v)));
      gradient = 1 / (1 + std::exp(-v)) - t;
    } else if (p.kind == LossKind::kSquared) {
      loss += (v - t) * (v - t);
      gradient = 2 * (v - t);
    } else {
      loss += std::fabs(v - t);
      gradient = v > t ? 1 : v < t ? -1 : v - t;
    }
    dx[c] = static_cast<T>(gradient * factor / channels);
  }
  return loss / channels;
}

template <class T>
void run(const LossProblem& p, const LossArgs& a, int64_t images, int, int64_t first, int64_t last, void*, void*) {
  const int64_t pixels = p.d * p.h * p.w;
  for (int64_t task = first; task < last; ++task) {
    const auto pixel = [&](const View& v) { return at<T>(v, task / pixels, task / (p.h * p.w) % p.d, task / p.w % p.h, task % p.w); };
    const T *x = pixel(a.x), *label = pixel(a.label);
    T* dx = pixel(a.dx);
    const double weight = p.weighted ? static_cast<double>(*pixel(a.weight)) : 1.0;
    const double factor = weight * p.scale / (p.mean ? static_cast<double>(images * pixels) : 1.0);
    double loss = 0;
    if (p.kind == LossKind::kSparse && *label < T(0))
      for (int64_t c = 0; c < p.c; ++c) dx[c] = 0;
    else if (p.kind == LossKind::kSparse || p.kind == LossKind::kDense) loss = cross_entropy(p, x, label, factor, dx);
    else loss = regression(p, x, label, factor, dx);
    *pixel(a.loss) = static_cast<T>(loss * weight);
  }
}

const char* refuse(const LossProblem&) { return nullptr; }
double cost(const LossProblem& p) { return 0.06 * double(p.d * p.h * p.w * p.c); }
int64_t scratch_bytes(const LossProblem&) { return 0; }
int64_t shared_bytes(const LossProblem&, int64_t) { return 0; }
int64_t phases(const LossProblem&, int64_t) { return 1; }
int64_t tasks(const LossProblem& p, int64_t images, int) { return images * p.d * p.h * p.w; }

}  // namespace

extern const LossKernel loss_ref, loss_ref64;
const LossKernel loss_ref = {"loss_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<float>};
const LossKernel loss_ref64 = {"loss_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<double>};

}  // namespace ck::ref
