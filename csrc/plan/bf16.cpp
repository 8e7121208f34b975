// bf16.cpp: which tensors of a plan in bfloat16 are stored as bfloat16: half the memory traffic, which is what such plans wait for.
//
// A tensor is stored so if all that touches it are rows that say they can: convolutions, which round what they read anyhow, depthwise ones, pooling
// and elementwise operators. Inputs, results and all that other rows read or write stay float32. Decided before steps are joined to strips, so
// that their bits are the same in strips and one by one.
#include "plan/plan.h"

namespace ck {
namespace {

// Tells f the tensors of a step whose row can take bfloat16, each with the field of the problem that says how it is stored; false for other rows.
template <class Step, class F>
bool each_typed(Step& s, const F& f) {
  if (auto* c = std::get_if<0>(&s.call)) {
    if (c->kernel->bf16) f(s.x, c->problem.x_bf16), f(s.y, c->problem.y_bf16), f(s.x2, c->problem.residual_bf16);
    return c->kernel->bf16;
  }
  if (auto* c = std::get_if<1>(&s.call)) {
    if (c->kernel->bf16) f(s.x, c->problem.x_bf16), f(s.y, c->problem.y_bf16);
    return c->kernel->bf16;
  }
  if (auto* c = std::get_if<3>(&s.call)) {
    if (c->kernel->bf16) f(s.x, c->problem.a_bf16), f(s.y, c->problem.y_bf16), f(s.x2, c->problem.b_bf16);
    return c->kernel->bf16;
  }
  return false;
}

}  // namespace

void Plan::store_bf16() {
  for (Root& root : roots_) root.is_bf16 = !root.is_input && !root.is_index;
  for (int t : outputs_) roots_[tensor(t).root].is_bf16 = false;
  for (Step& s : steps_)
    if (!each_typed(s, [](int, int32_t) {}))
      each_tensor(s, [&](int t) {
        if (t >= 0) roots_[tensor(t).root].is_bf16 = false;
      });
  for (size_t i = 0; i < steps_.size(); ++i) {
    Info& info = infos_[i];
    std::string how;
    each_typed(steps_[i], [&](int t, int32_t& stored) {
      stored = t >= 0 && roots_[tensor(t).root].is_bf16;
      if (stored) info.bytes -= 2 * elements(tensor(t).dims);
      if (t == steps_[i].x) how += std::string("; bfloat16, reads ") + (stored ? "it" : "float32");
      if (t == steps_[i].y) how += std::string(", writes ") + (stored ? "it" : "float32");
    });
    info.why += how;
  }
}

}  // namespace ck
