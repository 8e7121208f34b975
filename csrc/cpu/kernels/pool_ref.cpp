// pool_ref.cpp: max and average pooling, float32 and float64, as the definition says.
//
// Computes  y[n,z,p,q,c] = max or sum/divisor of x[n,d,h,w,c] over the window of (z,p,q)   (core/window.h)
// Layout    x NDHWC, y NZPQC; index like y: the flat position of the maximum within d*h*w. The last NaN wins, else the first maximum
// Tiling    task = output row (n,z,p)
// Cost      NZPQC*TRS comparisons or additions
// Refuses   nothing
// Source    torch.nn.functional.max_pool3d, avg_pool3d, adaptive_*_pool3d
#include <limits>

#include "core/kernel.h"
#include "core/window.h"

namespace ck::ref {
namespace {

template <class T>
void pixel(const PoolProblem& p, const PoolArgs& a, int64_t n, int64_t z, int64_t i, int64_t q) {
  const Taps depth = depth_taps(p, z), row = row_taps(p, i), column = column_taps(p, q);
  const double divisor = static_cast<double>(pool_divisor(p, depth, row, column));
  for (int64_t c = 0; c < p.c; ++c) {
    T best = -std::numeric_limits<T>::infinity();
    int64_t where = (depth.first * p.h + row.first) * p.w + column.first;
    double sum = 0;
    for (int64_t t = 0; t < depth.count; ++t)
      for (int64_t r = 0; r < row.count; ++r)
        for (int64_t s = 0; s < column.count; ++s) {
          const int64_t d = depth.first + t * depth.step, h = row.first + r * row.step, w = column.first + s * column.step;
          const T v = at<T>(a.x, n, d, h, w)[c];
          sum += static_cast<double>(v);
          if (v > best || v != v) {
            best = v;
            where = (d * p.h + h) * p.w + w;
          }
        }
    at<T>(a.y, n, z, i, q)[c] = p.kind == PoolKind::kMax ? best : static_cast<T>(sum / divisor);
    if (p.indices) at<int64_t>(a.index, n, z, i, q)[c] = where;
  }
}

template <class T>
void run(const PoolProblem& p, const PoolArgs& a, int64_t, int64_t first, int64_t last, void*) {
  for (int64_t task = first; task < last; ++task)
    for (int64_t q = 0; q < p.q; ++q) pixel<T>(p, a, task / (p.z * p.p), task / p.p % p.z, task % p.p, q);
}

const char* refuse(const PoolProblem&) { return nullptr; }
double cost(const PoolProblem& p) {
  const double window = p.adaptive ? double(p.d * p.h * p.w) / double(p.z * p.p * p.q) + 1 : double(p.t * p.r * p.s);
  return 0.004 * double(p.z * p.p * p.q * p.c) * window;
}
int64_t scratch_bytes(const PoolProblem&) { return 0; }
int64_t tasks(const PoolProblem& p, int64_t images) { return images * p.z * p.p; }

}  // namespace

extern const PoolKernel pool_ref, pool_ref64;
const PoolKernel pool_ref = {"pool_ref", refuse, cost, scratch_bytes, tasks, run<float>};
const PoolKernel pool_ref64 = {"pool_ref", refuse, cost, scratch_bytes, tasks, run<double>};

}  // namespace ck::ref
