// resize_back_ref.cpp: the gradient of resizing, float32 and float64, as the definition says.
//
// Computes  dx[d,h,w] = sum over the outputs that read (d,h,w) of weight * dy   (core/window.h)
// Layout    dx NDHWC, dy NZPQC
// Tiling    task = one image: outputs in order, added where they came from
// Refuses   nothing
// Source    the adjoint of resize_ref.cpp
#include "core/kernel.h"
#include "core/window.h"

namespace ck::ref {
namespace {

template <class T>
void run(const ResizeProblem& p, const ResizeBackArgs& a, int64_t, int, int64_t first, int64_t last, void*, void*) {
  const int taps_d = resize_count(p.kind, p.d), taps_h = resize_count(p.kind, p.h), taps_w = resize_count(p.kind, p.w);
  for (int64_t n = first; n < last; ++n) {
    for (int64_t d = 0; d < p.d; ++d)
      for (int64_t h = 0; h < p.h; ++h)
        for (int64_t w = 0; w < p.w; ++w)
          for (int64_t c = 0; c < p.c; ++c) at<T>(a.dx, n, d, h, w)[c] = 0;
    for (int64_t z = 0; z < p.z; ++z) {
      const Mix<T> depth = resize_mix<T>(p.kind, z, p.d, p.z, p.scale_d, p.align_corners);
      for (int64_t i = 0; i < p.p; ++i) {
        const Mix<T> row = resize_mix<T>(p.kind, i, p.h, p.p, p.scale_h, p.align_corners);
        for (int64_t q = 0; q < p.q; ++q) {
          const Mix<T> column = resize_mix<T>(p.kind, q, p.w, p.q, p.scale_w, p.align_corners);
          const T* dy = at<const T>(a.dy, n, z, i, q);
          for (int t = 0; t < taps_d; ++t)
            for (int r = 0; r < taps_h; ++r)
              for (int s = 0; s < taps_w; ++s) {
                T* dx = at<T>(a.dx, n, depth.index[t], row.index[r], column.index[s]);
                const T weight = depth.weight[t] * row.weight[r] * column.weight[s];
                for (int64_t c = 0; c < p.c; ++c) dx[c] += weight * dy[c];
              }
        }
      }
    }
  }
}

const char* refuse(const ResizeProblem&) { return nullptr; }
double cost(const ResizeProblem& p) { return 0.02 * double(p.z * p.p * p.q * p.c) * resize_count(p.kind, p.h) * resize_count(p.kind, p.w); }
int64_t scratch_bytes(const ResizeProblem&) { return 0; }
int64_t shared_bytes(const ResizeProblem&, int64_t) { return 0; }
int64_t phases(const ResizeProblem&, int64_t) { return 1; }
int64_t tasks(const ResizeProblem&, int64_t images, int) { return images; }

}  // namespace

extern const ResizeBackKernel resize_back_ref, resize_back_ref64;
const ResizeBackKernel resize_back_ref = {"resize_back_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<float>};
const ResizeBackKernel resize_back_ref64 = {"resize_back_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<double>};

}  // namespace ck::ref
