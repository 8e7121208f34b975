// layout.h: where spans that live for a time lie in one block of memory.
//
// Largest first, each at the lowest offset where it touches no span that lives at the same time: for the chains and diamonds of convolutional
// networks this comes within a few percent of the peak of live memory.
#pragma once
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace ck {

struct Span {
  int64_t size;
  int first, last;  // steps between which it lives
  int64_t offset = 0;
};

// Sets the offsets, multiples of the sizes' common alignment; returns the size of the block.
inline int64_t lay_out(std::vector<Span>& spans) {
  std::vector<size_t> order(spans.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return spans[a].size > spans[b].size; });
  std::vector<size_t> placed;
  int64_t end = 0;
  for (size_t id : order) {
    Span& span = spans[id];
    std::vector<std::pair<int64_t, int64_t>> taken;  // [from, to) of the spans that live at the same time
    for (size_t other : placed) {
      const Span& o = spans[other];
      if (o.first <= span.last && span.first <= o.last) taken.emplace_back(o.offset, o.offset + o.size);
    }
    std::sort(taken.begin(), taken.end());
    int64_t at = 0;
    for (const auto& [from, to] : taken) {
      if (at + span.size <= from) break;
      at = std::max(at, to);
    }
    span.offset = at;
    end = std::max(end, at + span.size);
    placed.push_back(id);
  }
  return end;
}

}  // namespace ck
