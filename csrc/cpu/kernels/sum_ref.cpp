// sum_ref.cpp: sums over some dimensions of a tensor or of a product, and over the batch, float32 and float64, as the definition says.
//
// Computes  y = factor * sum a, or factor * sum a * b; over each dimension in which y has size 1, and over the images where y is a total
// Layout    a, b NDHWC; y NDHWC or DHWC; sums in double
// Tiling    task = one element of y
// Refuses   nothing
#include "core/kernel.h"

namespace ck::ref {
namespace {

template <class T>
void run(const SumProblem& p, const SumArgs& args, int64_t images, int, int64_t first, int64_t last, void*, void*) {
  const int64_t sizes[4] = {p.d, p.h, p.w, p.c}, out[4] = {p.yd, p.yh, p.yw, p.yc};
  for (int64_t task = first; task < last; ++task) {
    int64_t from[4], to[4], rest = task;
    for (int k = 3; k >= 0; --k) {
      from[k] = rest % out[k], rest /= out[k];
      to[k] = from[k] + 1;
      if (out[k] != sizes[k]) from[k] = 0, to[k] = sizes[k];
    }
    const int64_t n_first = p.total ? 0 : rest, n_last = p.total ? images : rest + 1;
    double sum = 0;
    for (int64_t n = n_first; n < n_last; ++n)
      for (int64_t d = from[0]; d < to[0]; ++d)
        for (int64_t h = from[1]; h < to[1]; ++h)
          for (int64_t w = from[2]; w < to[2]; ++w)
            for (int64_t c = from[3]; c < to[3]; ++c) {
              const double v = static_cast<double>(at<T>(args.a, n, d, h, w)[c]);
              sum += p.product ? v * static_cast<double>(at<T>(args.b, n, d, h, w)[c]) : v;
            }
    const double terms =
        static_cast<double>((n_last - n_first) * (to[0] - from[0]) * (to[1] - from[1]) * (to[2] - from[2]) * (to[3] - from[3]));
    T* y = at<T>(args.y, p.total ? 0 : rest, out[0] == 1 ? 0 : from[0], out[1] == 1 ? 0 : from[1], out[2] == 1 ? 0 : from[2]);
    y[out[3] == 1 ? 0 : from[3]] = static_cast<T>(sum * p.factor / (p.mean ? terms : 1.0));
  }
}

const char* refuse(const SumProblem&) { return nullptr; }
double cost(const SumProblem& p) { return 0.01 * double(p.d * p.h * p.w * p.c) + 1; }
int64_t scratch_bytes(const SumProblem&) { return 0; }
int64_t shared_bytes(const SumProblem&, int64_t) { return 0; }
int64_t phases(const SumProblem&, int64_t) { return 1; }
int64_t tasks(const SumProblem& p, int64_t images, int) { return (p.total ? 1 : images) * p.yd * p.yh * p.yw * p.yc; }

}  // namespace

extern const SumKernel sum_ref, sum_ref64;
const SumKernel sum_ref = {"sum_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<float>};
const SumKernel sum_ref64 = {"sum_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<double>};

}  // namespace ck::ref
