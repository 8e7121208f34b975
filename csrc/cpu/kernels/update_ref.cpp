// update_ref.cpp: one step of an optimizer on a tensor, in place, float32 and float64, as the definitions say.
//
// Computes  g' = scale * g + decay * w  (decoupled: w is first multiplied by 1 - rate * decay, g' = scale * g)
//           sgd      m = momentum * m + (1 - dampening) * g' (at first m = g');  w -= rate * (nesterov ? g' + momentum * m : m)
//           adam     m += (1 - beta1)(g' - m), v += (1 - beta2)(g'^2 - v);  w -= rate / correction1 * m / (sqrt(v / correction2) + eps)
//           rmsprop  v += (1 - beta2)(g'^2 - v);  u = g' / (sqrt(v) + eps);  w -= rate * (momentum ? m = momentum * m + u : u)
//           eps_inside: sqrt(v + eps) without + eps
// Layout    dense vectors of `count`
// Tiling    task = 16384 elements
// Refuses   nothing
// Source    torch.optim.SGD, Adam, AdamW, RMSprop; Kingma and Ba 2014, arXiv:1412.6980; Loshchilov and Hutter 2017, arXiv:1711.05101
#include <cmath>

#include "core/kernel.h"

namespace ck::ref {
namespace {

constexpr int64_t kTask = 16384;

template <class T>
void run(const UpdateProblem& p, const UpdateArgs& a, int64_t, int, int64_t first, int64_t last, void*, void*) {
  T *w = static_cast<T*>(a.w), *m = static_cast<T*>(a.m), *v = static_cast<T*>(a.v);
  const T* grad = static_cast<const T*>(a.g);
  const T scale = T(p.scale), rate = T(p.rate), decay = T(p.decay), eps = T(p.eps), momentum = T(p.momentum), damp = T(1 - p.dampening);
  const T grow1 = T(1 - p.beta1), grow2 = T(1 - p.beta2), shrink = T(1 - p.rate * p.decay);
  const T rate1 = T(p.rate / p.correction1), root2 = T(1 / std::sqrt(p.correction2));
  const auto root = [&](T x) { return p.eps_inside ? std::sqrt(x + eps) : std::sqrt(x) + eps; };
  const int64_t end = last * kTask < p.count ? last * kTask : p.count;
  for (int64_t i = first * kTask; i < end; ++i) {
    T g = grad[i] * scale;
    if (p.decoupled) w[i] *= shrink;
    else g += decay * w[i];
    if (p.kind == UpdateKind::kSgd) {
      if (m) {
        m[i] = p.first ? g : momentum * m[i] + damp * g;
        g = p.nesterov ? g + momentum * m[i] : m[i];
      }
      w[i] -= rate * g;
    } else if (p.kind == UpdateKind::kAdam) {
      m[i] += grow1 * (g - m[i]);
      v[i] += grow2 * (g * g - v[i]);
      const T below = p.eps_inside ? std::sqrt(v[i] * root2 * root2 + eps) : std::sqrt(v[i]) * root2 + eps;
      w[i] -= rate1 * m[i] / below;
    } else {
      v[i] += grow2 * (g * g - v[i]);
      T u = g / root(v[i]);
      if (m) u = m[i] = momentum * m[i] + u;
      w[i] -= rate * u;
    }
  }
}

const char* refuse(const UpdateProblem&) { return nullptr; }
double cost(const UpdateProblem& p) { return 2e-3 * double(p.count); }
int64_t scratch_bytes(const UpdateProblem&) { return 0; }
int64_t shared_bytes(const UpdateProblem&, int64_t) { return 0; }
int64_t phases(const UpdateProblem&, int64_t) { return 1; }
int64_t tasks(const UpdateProblem& p, int64_t, int) { return (p.count + kTask - 1) / kTask; }

}  // namespace

extern const UpdateKernel update_ref, update_ref64;
const UpdateKernel update_ref = {"update_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<float>};
const UpdateKernel update_ref64 = {"update_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<double>};

}  // namespace ck::ref
