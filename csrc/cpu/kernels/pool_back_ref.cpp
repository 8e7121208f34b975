// pool_back_ref.cpp: the gradient of max and average pooling, float32 and float64, as the definition says.
//
// Computes  max: dx[i] = sum of dy over the windows whose index is i; average: dx[i] = sum of dy / divisor over the windows that hold i
// Layout    dx NDHWC, dy NZPQC, index like dy (the flat position within d*h*w)
// Tiling    task = one image: windows in order, added where they came from
// Cost      NZPQC (max), NZPQC*TRS (average) additions
// Refuses   nothing
// Source    the adjoint of pool_ref.cpp
#include "core/kernel.h"
#include "core/window.h"

namespace ck::ref {
namespace {

template <class T>
void window(const PoolProblem& p, const PoolBackArgs& a, int64_t n, int64_t z, int64_t i, int64_t q) {
  const T* dy = at<const T>(a.dy, n, z, i, q);
  if (p.kind == PoolKind::kMax) {
    const int64_t* index = at<const int64_t>(a.index, n, z, i, q);
    for (int64_t c = 0; c < p.c; ++c) at<T>(a.dx, n, index[c] / (p.h * p.w), index[c] / p.w % p.h, index[c] % p.w)[c] += dy[c];
    return;
  }
  const Taps depth = depth_taps(p, z), row = row_taps(p, i), column = column_taps(p, q);
  const T divisor = static_cast<T>(pool_divisor(p, depth, row, column));
  for (int64_t t = 0; t < depth.count; ++t)
    for (int64_t r = 0; r < row.count; ++r)
      for (int64_t s = 0; s < column.count; ++s) {
        T* dx = at<T>(a.dx, n, depth.first + t * depth.step, row.first + r * row.step, column.first + s * column.step);
        for (int64_t c = 0; c < p.c; ++c) dx[c] += dy[c] / divisor;
      }
}

template <class T>
void run(const PoolProblem& p, const PoolBackArgs& a, int64_t, int, int64_t first, int64_t last, void*, void*) {
  for (int64_t n = first; n < last; ++n) {
    for (int64_t d = 0; d < p.d; ++d)
      for (int64_t h = 0; h < p.h; ++h)
        for (int64_t w = 0; w < p.w; ++w)
          for (int64_t c = 0; c < p.c; ++c) at<T>(a.dx, n, d, h, w)[c] = 0;
    for (int64_t z = 0; z < p.z; ++z)
      for (int64_t i = 0; i < p.p; ++i)
        for (int64_t q = 0; q < p.q; ++q) window<T>(p, a, n, z, i, q);
  }
}

const char* refuse(const PoolProblem&) { return nullptr; }
double cost(const PoolProblem& p) {
  const double window = p.adaptive ? double(p.d * p.h * p.w) / double(p.z * p.p * p.q) + 1 : double(p.t * p.r * p.s);
  return 0.01 * (double(p.d * p.h * p.w * p.c) + double(p.z * p.p * p.q * p.c) * window);
}
int64_t scratch_bytes(const PoolProblem&) { return 0; }
int64_t shared_bytes(const PoolProblem&, int64_t) { return 0; }
int64_t phases(const PoolProblem&, int64_t) { return 1; }
int64_t tasks(const PoolProblem&, int64_t images, int) { return images; }

}  // namespace

extern const PoolBackKernel pool_back_ref, pool_back_ref64;
const PoolBackKernel pool_back_ref = {"pool_back_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<float>};
const PoolBackKernel pool_back_ref64 = {"pool_back_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<double>};

}  // namespace ck::ref
