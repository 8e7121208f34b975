#include "plan/reorder.h"

#include <algorithm>
#include <cstdlib>

#include "core/parallel.h"
#include "dispatch/tables.h"

namespace ck {

void reorder(const std::array<Axis4, 4>& axes, const void* from, void* to, int element_bytes, int threads) {
  // A row finds its tiles by the order of the source's dimensions: those with the smallest steps are its last.
  std::array<int, 4> order{0, 1, 2, 3};
  const auto step = [&](int i) { return axes[i].size > 1 ? std::abs(axes[i].from) : int64_t{1} << 62; };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return step(a) > step(b); });
  MoveProblem p{};
  int64_t x[4], total = 1;
  for (int i = 0; i < 4; ++i) {
    const Axis4& axis = axes[order[i]];
    p.in[i] = axis.size, x[i] = axis.from;
    p.perm[order[i]] = i, p.out[i] = axes[i].size;
    total *= axes[i].size;
  }
  if (total == 0) return;
  if (total < 65536) threads = 1;  // not worth waking the others
  const MoveArgs args{View{const_cast<void*>(from), 0, x[0], x[1], x[2]}, View{to, 0, axes[0].to, axes[1].to, axes[2].to}, x[3],
                      axes[3].to};
  const MoveKernel& kernel = *select(element_bytes == 8 ? reference64().Move : table().Move, p).kernel;
  parallel_ranges(kernel.tasks(p, 1), threads, [&](int, int64_t first, int64_t last) { kernel.run(p, args, 1, first, last, nullptr); });
}

}  // namespace ck
