// reorder.h: a copy of up to four dimensions between any two orders of them, by the rows for copies.
#pragma once
#include <array>
#include <cstdint>

namespace ck {

struct Axis4 {
  int64_t size, from, to;  // and the elements from one index to the next in each memory; `from` may be negative
};

// to[sum i*axis.to] = from[sum i*axis.from] for all indices; the axes stand in the order of `to`, its innermost last.
void reorder(const std::array<Axis4, 4>& axes, const void* from, void* to, int element_bytes, int threads);

}  // namespace ck
