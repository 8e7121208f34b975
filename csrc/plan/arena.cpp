// arena.cpp: where each root of a plan lies in the arena of one image.
//
// Largest first, each at the lowest offset where it touches no root that lives at the same time: for the chains and diamonds of convolutional
// networks this comes within a few percent of the peak of live memory.
#include <algorithm>
#include <numeric>

#include "plan/plan.h"

namespace ck {

void Plan::plan_arena() {
  constexpr int64_t kAlign = 16;  // elements: a 64-byte line of floats
  // In elements of the plan's type: an int64 index takes two floats, a bfloat16 half of one.
  const auto slot = [&](const Root& r) {
    const int64_t elements = (r.size * bytes_of(r) + element_bytes_ - 1) / element_bytes_;
    return (elements + kAlign - 1) / kAlign * kAlign;
  };
  std::vector<int> order(roots_.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return roots_[a].size > roots_[b].size; });
  std::vector<int> placed;
  for (int id : order) {
    Root& root = roots_[id];
    if (root.is_input || root.last < 0) continue;  // a caller's, or never made (strips)
    const int64_t size = slot(root);
    std::vector<std::pair<int64_t, int64_t>> taken;  // [from, to) of the roots that live at the same time
    for (int other : placed) {
      const Root& o = roots_[other];
      if (o.first <= root.last && root.first <= o.last) {
        taken.emplace_back(o.offset, o.offset + slot(o));
      }
    }
    std::sort(taken.begin(), taken.end());
    int64_t at = 0;
    for (const auto& [from, to] : taken) {
      if (at + size <= from) break;
      at = std::max(at, to);
    }
    root.offset = at;
    arena_elements_ = std::max(arena_elements_, at + size);
    placed.push_back(id);
  }
}

}  // namespace ck
