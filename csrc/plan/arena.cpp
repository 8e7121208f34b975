// arena.cpp: where each root of a plan lies in the arena of one image, and how far apart its pixels are.
#include "plan/layout.h"
#include "plan/plan.h"

namespace ck {

// Pixels of 256 channels or a multiple lie a multiple of 1 KB apart: those that a tile reads together would fall into the same few sets of a
// cache. What convolutions and pooling hand to each other gets a line between its pixels.
void Plan::spread_pixels() {
  constexpr int64_t kLine = 16, kApart = 256;  // elements
  if (element_bytes_ != 4 || record_ || training_) return;
  std::vector<int> owner(roots_.size(), -1);  // the tensor that is the root
  for (size_t t = 0; t < tensors_.size(); ++t) {
    const Root& root = roots_[tensors_[t].root];
    const bool ours = !root.is_input && !root.is_index && !root.total && !root.parameter && !root.aliases && root.last >= 0;
    if (ours && tensors_[t].dims[3] % kApart == 0 && root.size > tensors_[t].dims[3]) owner[tensors_[t].root] = static_cast<int>(t);
  }
  for (int t : outputs_) owner[tensor(t).root] = -1;
  for (const Step& step : steps_) {
    const size_t kind = step.call.index();
    if (kind != 0 && kind != 1 && kind != 6)
      each_tensor(step, [&](int t) {
        if (t >= 0) owner[tensor(t).root] = -1;
      });
  }
  for (size_t r = 0; r < roots_.size(); ++r)
    if (owner[r] >= 0) {
      Tensor& t = tensors_[owner[r]];
      roots_[r].size += roots_[r].size / t.dims[3] * kLine;
      t.pixel += kLine;
    }
}

// A result takes the place of the residual that nobody reads after it: its lines are in the caches already, those of a fresh tensor would have
// to be read from memory before they are written (ResNet's 56x56x256 at N=8: 2.1 ms in place of 2.9). The stage of a network is one tensor then.
void Plan::merge_residuals() {
  if (record_ || training_ || bf16_ != Bf16::kOff) return;
  const auto merge = [&](const Step& part, int step, const std::vector<int>& others) {
    const auto* conv = std::get_if<0>(&part.call);
    if (!conv || part.x2 < 0 || !conv->kernel->in_place) return;
    const Tensor &from = tensor(part.x2), &to = tensor(part.y);
    const int old_root = from.root, new_root = to.root;
    Root &residual = roots_[old_root], &result = roots_[new_root];
    for (const Root* r : {&residual, &result})
      if (r->is_input || r->is_index || r->total || r->parameter || r->size != residual.size) return;
    const bool whole =
        from.offset == 0 && to.offset == 0 && from.pixel == to.pixel && to.dims[0] * to.dims[1] * to.dims[2] * to.pixel == result.size;
    if (!whole || residual.last != step || result.first != step) return;
    for (int t : others)
      if (t >= 0 && tensor(t).root == old_root) return;  // this step reads it for something else as well
    residual.last = result.last, result.last = -1;
    for (Tensor& t : tensors_)
      if (t.root == new_root) t.root = old_root;
  };
  for (int s = 0; s < static_cast<int>(steps_.size()); ++s) {
    const auto* strips = std::get_if<6>(&steps_[s].call);
    if (!strips) merge(steps_[s], s, {steps_[s].x});
    else
      for (size_t i = 0; i < (*strips)->parts.size(); ++i) {
        if (i + 1 < (*strips)->parts.size() && !(*strips)->kept[i]) continue;  // never in the arena
        std::vector<int> others;
        for (size_t j = 0; j < (*strips)->parts.size(); ++j) {
          const Step& part = (*strips)->parts[j];
          others.push_back(part.x);
          if (j != i) others.insert(others.end(), {part.x2, part.y});
        }
        merge((*strips)->parts[i], s, others);
      }
  }
}

void Plan::plan_arena() {
  arena_elements_ = place_roots(false);
  total_elements_ = place_roots(true);  // behind the images, however many there are
}

int64_t Plan::place_roots(bool totals) {
  constexpr int64_t kAlign = 16;  // elements: a 64-byte line of floats
  std::vector<Span> spans;
  std::vector<size_t> owners;
  for (size_t r = 0; r < roots_.size(); ++r) {
    const Root& root = roots_[r];
    if (root.total != totals || root.is_input || root.last < 0) continue;  // another pool, a caller's, or never made (strips)
    // In elements of the plan's type: an int64 index takes two floats, a bfloat16 half of one.
    const int64_t elements = (root.size * bytes_of(root) + element_bytes_ - 1) / element_bytes_;
    spans.push_back({(elements + kAlign - 1) / kAlign * kAlign, root.first, root.last});
    owners.push_back(r);
  }
  const int64_t end = lay_out(spans);
  for (size_t i = 0; i < spans.size(); ++i) roots_[owners[i]].offset = spans[i].offset;
  return end;
}

}  // namespace ck
