// resize_ref.cpp: nearest, linear and cubic resizing of one to three dimensions, float32 and float64, as the definition says.
//
// Computes  y[n,z,p,q,c] = sum over the taps of (z,p,q) of weight * x[n,d,h,w,c]   (core/window.h)
// Layout    x NDHWC, y NZPQC
// Tiling    task = output row (n,z,p)
// Cost      1, 8 or 64 multiply-adds an element; sums in double
// Refuses   nothing
// Source    torch.nn.functional.interpolate; Keys 1981 for the cubic kernel (a = -0.75)
#include "core/kernel.h"
#include "core/window.h"

namespace ck::ref {
namespace {

template <class T>
void run(const ResizeProblem& p, const ResizeArgs& a, int64_t, int64_t first, int64_t last, void*) {
  const int taps_d = resize_count(p.kind, p.d), taps_h = resize_count(p.kind, p.h), taps_w = resize_count(p.kind, p.w);
  for (int64_t task = first; task < last; ++task) {
    const int64_t n = task / (p.z * p.p), z = task / p.p % p.z, i = task % p.p;
    const Mix<T> depth = resize_mix<T>(p.kind, z, p.d, p.z, p.scale_d, p.align_corners);
    const Mix<T> row = resize_mix<T>(p.kind, i, p.h, p.p, p.scale_h, p.align_corners);
    for (int64_t q = 0; q < p.q; ++q) {
      const Mix<T> column = resize_mix<T>(p.kind, q, p.w, p.q, p.scale_w, p.align_corners);
      for (int64_t c = 0; c < p.c; ++c) {
        double sum = 0;
        for (int t = 0; t < taps_d; ++t)
          for (int r = 0; r < taps_h; ++r)
            for (int s = 0; s < taps_w; ++s)
              sum += double(depth.weight[t]) * double(row.weight[r]) * double(column.weight[s]) *
                     double(at<T>(a.x, n, depth.index[t], row.index[r], column.index[s])[c]);
        at<T>(a.y, n, z, i, q)[c] = static_cast<T>(sum);
      }
    }
  }
}

const char* refuse(const ResizeProblem&) { return nullptr; }
double cost(const ResizeProblem& p) { return 0.02 * double(p.z * p.p * p.q * p.c) * resize_count(p.kind, p.h) * resize_count(p.kind, p.w); }
int64_t scratch_bytes(const ResizeProblem&) { return 0; }
int64_t tasks(const ResizeProblem& p, int64_t images) { return images * p.z * p.p; }

}  // namespace

extern const ResizeKernel resize_ref, resize_ref64;
const ResizeKernel resize_ref = {"resize_ref", refuse, cost, scratch_bytes, tasks, run<float>};
const ResizeKernel resize_ref64 = {"resize_ref", refuse, cost, scratch_bytes, tasks, run<double>};

}  // namespace ck::ref
