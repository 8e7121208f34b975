// arena.cpp: where each root of a plan lies in the arena of one image.
#include "plan/layout.h"
#include "plan/plan.h"

namespace ck {

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
