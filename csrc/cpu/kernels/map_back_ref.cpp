// map_back_ref.cpp: gradients of activations and of max and min, float32 and float64, as the definition says.
//
// Computes  activation  dx = dy * act'(a): a is the output where the slope can be told from it (core/activation.h), else the input
//           max, min    dx = dy where a is the larger (smaller) operand, dy / 2 where both are equal; not yet summed over what a repeats
// Layout    dy, dx NDHWC; a and b broadcast
// Tiling    task = row (n,d,h)
// Refuses   nothing
// Source    torch's derivatives.yaml
#include "core/activation.h"
#include "core/kernel.h"

namespace ck::ref {
namespace {

template <class T>
void run(const MapBackProblem& p, const MapBackArgs& args, int64_t, int, int64_t first, int64_t last, void*, void*) {
  for (int64_t task = first; task < last; ++task) {
    const int64_t n = task / (p.d * p.h), d = task / p.h % p.d, h = task % p.h;
    for (int64_t w = 0; w < p.w; ++w)
      for (int64_t c = 0; c < p.c; ++c) {
        const T dy = at<T>(args.dy, n, d, h, w)[c];
        const T a = at<T>(args.a, n, p.ad == 1 ? 0 : d, p.ah == 1 ? 0 : h, p.aw == 1 ? 0 : w)[p.ac == 1 ? 0 : c];
        T factor;
        if (p.kind == MapBackKind::kActivation) {
          factor = slope(a, p.act, p.from_output);
        } else {
          const T b = at<T>(args.b, n, p.bd == 1 ? 0 : d, p.bh == 1 ? 0 : h, p.bw == 1 ? 0 : w)[p.bc == 1 ? 0 : c];
          const bool loses = p.kind == MapBackKind::kMax ? a < b : a > b;
          factor = loses ? T(0) : a == b ? T(0.5) : T(1);
        }
        at<T>(args.dx, n, d, h, w)[c] = factor == T(0) ? T(0) : dy * factor;
      }
  }
}

const char* refuse(const MapBackProblem&) { return nullptr; }
double cost(const MapBackProblem& p) { return 0.03 * double(p.d * p.h * p.w * p.c); }
int64_t scratch_bytes(const MapBackProblem&) { return 0; }
int64_t shared_bytes(const MapBackProblem&, int64_t) { return 0; }
int64_t phases(const MapBackProblem&, int64_t) { return 1; }
int64_t tasks(const MapBackProblem& p, int64_t images, int) { return images * p.d * p.h; }

}  // namespace

extern const MapBackKernel map_back_ref, map_back_ref64;
const MapBackKernel map_back_ref = {"map_back_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<float>};
const MapBackKernel map_back_ref64 = {"map_back_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<double>};

}  // namespace ck::ref
