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
