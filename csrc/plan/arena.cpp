// arena.cpp: where each root of a plan lies in the arena of one image.
//
// Largest first, each at the lowest offset where it touches no root that lives at the same time: for the chains and diamonds of convolutional
// networks this comes within a few percent of the peak of live memory.
#include <algorithm>
#include <numeric>

#include "plan/plan.h"

namespace ck {

void Plan::plan_arena() {
  arena_elements_ = place_roots(false);
  total_elements_ = place_roots(true);  // behind the images, however many there are
}

int64_t Plan::place_roots(bool totals) {
  int64_t end = 0;
  constexpr int64_t kAlign = 16;  // elements: a 64-byte line of floats
  std::vector<int> order(roots_.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return roots_[a].size > roots_[b].size; });
  std::vector<int> placed;
  for (int id : order) {
    Root& root = roots_[id];
    if (root.total != totals || root.is_input || root.last < 0) continue;  // another pool, a caller's, or never made (strips)
    // An int64 index needs 8 bytes an element: two float elements.
    const int64_t size = (root.size * (root.is_index ? 8 : element_bytes_) / element_bytes_ + kAlign - 1) / kAlign * kAlign;
    std::vector<std::pair<int64_t, int64_t>> taken;  // [from, to) of the roots that live at the same time
    for (int other : placed) {
      const Root& o = roots_[other];
      if (o.first <= root.last && root.first <= o.last) {
        const int64_t o_size = (o.size * (o.is_index ? 8 : element_bytes_) / element_bytes_ + kAlign - 1) / kAlign * kAlign;
        taken.emplace_back(o.offset, o.offset + o_size);
      }
    }
    std::sort(taken.begin(), taken.end());
    int64_t at = 0;
    for (const auto& [from, to] : taken) {
      if (at + size <= from) break;
      at = std::max(at, to);
    }
    root.offset = at;
    end = std::max(end, at + size);
    placed.push_back(id);
  }
  return end;
}

}  // namespace ck
