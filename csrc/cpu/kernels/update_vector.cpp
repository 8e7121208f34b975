// update_vector.cpp: one step of an optimizer on a tensor, in place, float32.
//
// Computes  the formulas of update_ref.cpp
// Layout    dense vectors of `count`
// Tiling    task = 16384 elements
// Cost      memory alone: sgd 12 or 20, adam 28 bytes an element
// Refuses   nothing
// Source    as update_ref.cpp
#include "core/kernel.h"
#include "simd/math.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int64_t kTask = 16384;

template <UpdateKind kKind, bool kMomentum>
void loop(const UpdateProblem& p, const UpdateArgs& a, int64_t from, int64_t to) {
  float *w = static_cast<float*>(a.w), *m = static_cast<float*>(a.m), *v = static_cast<float*>(a.v);
  const float* grad = static_cast<const float*>(a.g);
  const auto number = [](double x) __attribute__((always_inline)) { return splat(static_cast<float>(x)); };
  const vf scale = number(p.scale), rate = number(p.rate), decay = number(p.decoupled ? 0 : p.decay), eps = number(p.eps),
           momentum = number(p.momentum), damp = number(1 - p.dampening), grow1 = number(1 - p.beta1), grow2 = number(1 - p.beta2),
           shrink = number(p.decoupled ? 1 - p.rate * p.decay : 1), rate1 = number(p.rate / p.correction1),
           root2 = number(1 / __builtin_sqrt(p.correction2));
  auto step = [&](auto io, int64_t i) __attribute__((always_inline)) {
    const vf old = io.load(w + i) * shrink;
    vf g = io.load(grad + i) * scale + decay * old;
    if constexpr (kKind == UpdateKind::kSgd) {
      if (kMomentum) {
        const vf now = p.first ? g : momentum * io.load(m + i) + damp * g;
        io.store(m + i, now);
        g = p.nesterov ? g + momentum * now : now;
      }
      io.store(w + i, old - rate * g);
    } else if constexpr (kKind == UpdateKind::kAdam) {
      const vf m0 = io.load(m + i), v0 = io.load(v + i);
      const vf m1 = m0 + grow1 * (g - m0), v1 = v0 + grow2 * (g * g - v0);
      io.store(m + i, m1);
      io.store(v + i, v1);
      const vf below = p.eps_inside ? vsqrt(v1 * root2 * root2 + eps) : vsqrt(v1) * root2 + eps;
      io.store(w + i, old - rate1 * m1 / below);
    } else {
      const vf v0 = io.load(v + i), v1 = v0 + grow2 * (g * g - v0);
      io.store(v + i, v1);
      vf u = g / (p.eps_inside ? vsqrt(v1 + eps) : vsqrt(v1) + eps);
      if (kMomentum) {
        u = momentum * io.load(m + i) + u;
        io.store(m + i, u);
      }
      io.store(w + i, old - rate * u);
    }
  };
  int64_t i = from;
  for (; i + kLanes <= to; i += kLanes) step(Full{}, i);
  if (i < to) step(Part{static_cast<int>(to - i)}, i);
}

void run(const UpdateProblem& p, const UpdateArgs& a, int64_t, int, int64_t first, int64_t last, void*, void*) {
  const int64_t from = first * kTask, to = last * kTask < p.count ? last * kTask : p.count;
  if (p.kind == UpdateKind::kAdam) loop<UpdateKind::kAdam, true>(p, a, from, to);
  else if (p.kind == UpdateKind::kSgd && a.m) loop<UpdateKind::kSgd, true>(p, a, from, to);
  else if (p.kind == UpdateKind::kSgd) loop<UpdateKind::kSgd, false>(p, a, from, to);
  else if (a.m) loop<UpdateKind::kRmsprop, true>(p, a, from, to);
  else loop<UpdateKind::kRmsprop, false>(p, a, from, to);
}

const char* refuse(const UpdateProblem&) { return nullptr; }
double cost(const UpdateProblem& p) { return double(p.count) * 20 / 10e3; }
int64_t scratch_bytes(const UpdateProblem&) { return 0; }
int64_t shared_bytes(const UpdateProblem&, int64_t) { return 0; }
int64_t phases(const UpdateProblem&, int64_t) { return 1; }
int64_t tasks(const UpdateProblem& p, int64_t, int) { return (p.count + kTask - 1) / kTask; }

}  // namespace

extern const UpdateKernel update_vector;
const UpdateKernel update_vector = {"update_vector", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run};

}  // namespace CK_ISA
}  // namespace ck
