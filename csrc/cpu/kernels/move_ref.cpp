// move_ref.cpp: copies with a permutation, an offset and a border, float32 and float64, as the definition says.
//
// Computes  y[i0,i1,i2,i3] = x[j], j[perm[k]] = i[k] - lo[k]; a j outside x follows the border rule (core/window.h)
// Layout    any strides, the channel strides of x and y included
// Tiling    task = row (n,i0,i1)
// Cost      an index computation an element
// Refuses   nothing
// Source    torch.nn.functional.pad, torch.permute
#include "core/kernel.h"
#include "core/window.h"

namespace ck::ref {
namespace {

template <class T>
void run(const MoveProblem& p, const MoveArgs& a, int64_t, int64_t first, int64_t last, void*) {
  int64_t i[4], j[4];
  for (int64_t task = first; task < last; ++task) {
    const int64_t n = task / (p.out[0] * p.out[1]);
    i[0] = task / p.out[1] % p.out[0], i[1] = task % p.out[1];
    for (i[2] = 0; i[2] < p.out[2]; ++i[2])
      for (i[3] = 0; i[3] < p.out[3]; ++i[3]) {
        bool inside = true;
        for (int k = 0; k < 4; ++k) {
          j[p.perm[k]] = border_index(p.border, i[k] - p.lo[k], p.in[p.perm[k]]);
          inside = inside && j[p.perm[k]] >= 0;
        }
        at<T>(a.y, n, i[0], i[1], i[2])[i[3] * a.y_channel] =
            inside ? at<T>(a.x, n, j[0], j[1], j[2])[j[3] * a.x_channel] : static_cast<T>(p.value);
      }
  }
}

const char* refuse(const MoveProblem&) { return nullptr; }
double cost(const MoveProblem& p) { return 0.02 * double(p.out[0] * p.out[1] * p.out[2] * p.out[3]); }
int64_t scratch_bytes(const MoveProblem&) { return 0; }
int64_t tasks(const MoveProblem& p, int64_t images) { return images * p.out[0] * p.out[1]; }

}  // namespace

extern const MoveKernel move_ref, move_ref64;
const MoveKernel move_ref = {"move_ref", refuse, cost, scratch_bytes, tasks, run<float>};
const MoveKernel move_ref64 = {"move_ref", refuse, cost, scratch_bytes, tasks, run<double>};

}  // namespace ck::ref
