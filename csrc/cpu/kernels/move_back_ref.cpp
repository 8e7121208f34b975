// move_back_ref.cpp: the gradient of a copy with a border: what was repeated is added up; float32 and float64, as the definition says.
//
// Computes  dx[j] = sum of dy[i] over the i that read j (move_ref.cpp); the constant of a border has no gradient
// Layout    dx: x's sizes, dy: y's; channel strides 1
// Tiling    task = one image: elements of dy in order, added where they came from
// Refuses   nothing
// Source    the adjoint of move_ref.cpp
#include "core/kernel.h"
#include "core/window.h"

namespace ck::ref {
namespace {

template <class T>
void run(const MoveProblem& p, const MoveBackArgs& a, int64_t, int, int64_t first, int64_t last, void*, void*) {
  int64_t i[4], j[4];
  for (int64_t n = first; n < last; ++n) {
    for (int64_t d = 0; d < p.in[0]; ++d)
      for (int64_t h = 0; h < p.in[1]; ++h)
        for (int64_t w = 0; w < p.in[2]; ++w)
          for (int64_t c = 0; c < p.in[3]; ++c) at<T>(a.dx, n, d, h, w)[c] = 0;
    for (i[0] = 0; i[0] < p.out[0]; ++i[0])
      for (i[1] = 0; i[1] < p.out[1]; ++i[1])
        for (i[2] = 0; i[2] < p.out[2]; ++i[2])
          for (i[3] = 0; i[3] < p.out[3]; ++i[3]) {
            bool inside = true;
            for (int k = 0; k < 4; ++k) {
              j[p.perm[k]] = border_index(p.border, i[k] - p.lo[k], p.in[p.perm[k]]);
              inside = inside && j[p.perm[k]] >= 0;
            }
            if (inside) at<T>(a.dx, n, j[0], j[1], j[2])[j[3]] += at<T>(a.dy, n, i[0], i[1], i[2])[i[3]];
          }
  }
}

const char* refuse(const MoveProblem&) { return nullptr; }
double cost(const MoveProblem& p) { return 0.02 * double(p.out[0] * p.out[1] * p.out[2] * p.out[3]); }
int64_t scratch_bytes(const MoveProblem&) { return 0; }
int64_t shared_bytes(const MoveProblem&, int64_t) { return 0; }
int64_t phases(const MoveProblem&, int64_t) { return 1; }
int64_t tasks(const MoveProblem&, int64_t images, int) { return images; }

}  // namespace

extern const MoveBackKernel move_back_ref, move_back_ref64;
const MoveBackKernel move_back_ref = {"move_back_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<float>};
const MoveBackKernel move_back_ref64 = {"move_back_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<double>};

}  // namespace ck::ref
