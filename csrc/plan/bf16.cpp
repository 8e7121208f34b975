// bf16.cpp: which tensors of a plan in bfloat16 are stored as bfloat16: half the memory traffic, which is what such convolutions wait for.
//
// A tensor is stored so if all that touches it are convolutions whose kernels compute in bfloat16 anyhow: their reader would round it when it
// reads it, so the only further rounding is that of a residual. Inputs, results and all that other kernels read or write stay float32.
#include "plan/plan.h"

namespace ck {

void Plan::store_bf16() {
  const auto conv = [](Step& s) {
    auto* c = std::get_if<0>(&s.call);
    return c && c->kernel->bf16 ? c : nullptr;
  };
  for (Root& root : roots_) root.is_bf16 = !root.is_input && !root.is_index;
  for (int t : outputs_) roots_[tensor(t).root].is_bf16 = false;
  const auto other = [&](int t) {
    if (t >= 0) roots_[tensor(t).root].is_bf16 = false;
  };
  for (Step& s : steps_) {
    if (conv(s)) continue;
    for (int t : {s.x, s.x2, s.y, s.index}) other(t);
    if (const auto* strips = std::get_if<6>(&s.call))
      for (const Step& part : (*strips)->parts) other(part.x2);
  }
  const auto stored = [&](int t) { return t >= 0 && roots_[tensor(t).root].is_bf16; };
  for (size_t i = 0; i < steps_.size(); ++i)
    if (auto* c = conv(steps_[i])) {
      ConvProblem& p = c->problem;
      p.x_bf16 = stored(steps_[i].x), p.y_bf16 = stored(steps_[i].y), p.residual_bf16 = stored(steps_[i].x2);
      Info& info = infos_[i];
      info.bytes -=
          2 * ((p.x_bf16 ? elements(info.in) : 0) + (p.y_bf16 ? elements(info.out) : 0) + (p.residual_bf16 ? elements(info.out) : 0));
      info.why += std::string("; bfloat16, reads ") + (p.x_bf16 ? "it" : "float32") + ", writes " + (p.y_bf16 ? "it" : "float32");
    }
}

}  // namespace ck
