// resize_vector.cpp: nearest, linear and cubic resizing of one to three dimensions, float32.
//
// Computes  as resize_ref.cpp, separably: the rows that mix into an output row first, then its columns
// Layout    x NDHWC, y NZPQC; any C
// Tiling    task = about 16 KB of output rows; the mixed row of w*C floats is one contiguous span, in scratch beside the table of columns
// Cost      4*NZPQC bytes written; linear 2 or 4 multiply-adds per value of a mixed row, 2 per output; nearest only copies
// Refuses   nothing
// Source    as resize_ref.cpp
#include "core/kernel.h"
#include "core/window.h"
#include "simd/vec.h"

namespace ck {
namespace CK_ISA {
namespace {

// y[i] = sum over kTaps of weight[t] * x[t][i], i < n.
template <int kTaps>
CK_INLINE void mix(const float* const* x, const float* weight, float* y, int64_t n) {
  vf factor[kTaps];
  CK_UNROLL for (int t = 0; t < kTaps; ++t) factor[t] = splat(weight[t]);
  auto step = [&](auto io, int64_t i) __attribute__((always_inline)) {
    vf sum = io.load(x[0] + i) * factor[0];
    CK_UNROLL for (int t = 1; t < kTaps; ++t) sum += io.load(x[t] + i) * factor[t];
    io.store(y + i, sum);
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) step(Full{}, i);
  if (i < n) step(Part{static_cast<int>(n - i)}, i);
}

void mix(int taps, const float* const* x, const float* weight, float* y, int64_t n) {
  if (taps == 1) return mix<1>(x, weight, y, n);
  if (taps == 2) return mix<2>(x, weight, y, n);
  return mix<4>(x, weight, y, n);
}

CK_INLINE void copy(const float* x, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(x + i));
  if (i < n) store_n(y + i, load_n(x + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

// scratch: the columns' table, then one slice per depth tap, and the mixed row.
struct Scratch {
  Mix<float>* columns;
  float* slice[4];
  float* row;
};

bool nearest(const ResizeProblem& p) { return p.kind == ResizeKind::kNearest || p.kind == ResizeKind::kNearestExact; }

// Row i of slice d of x, mixed along the height, into y.
void mix_rows(const ResizeProblem& p, const View& x, int64_t n, int64_t d, const Mix<float>& row, float* y) {
  const int taps = resize_count(p.kind, p.h);
  const bool whole = x.pixel == p.c;
  const float* from[4];
  for (int64_t w = 0; w < (whole ? 1 : p.w); ++w) {
    for (int r = 0; r < taps; ++r) from[r] = at<float>(x, n, d, row.index[r], w);
    mix(taps, from, row.weight, y + w * p.c, whole ? p.w * p.c : p.c);
  }
}

void output_row(const ResizeProblem& p, const ResizeArgs& a, int64_t n, int64_t z, int64_t i, const Scratch& s) {
  const Mix<float> depth = resize_mix<float>(p.kind, z, p.d, p.z, p.scale_d, p.align_corners);
  const Mix<float> row = resize_mix<float>(p.kind, i, p.h, p.p, p.scale_h, p.align_corners);
  if (nearest(p)) {
    for (int64_t q = 0; q < p.q; ++q)
      copy(at<float>(a.x, n, depth.index[0], row.index[0], s.columns[q].index[0]), at<float>(a.y, n, z, i, q), p.c);
    return;
  }
  const int depth_taps = resize_count(p.kind, p.d), taps = resize_count(p.kind, p.w);
  const float* line = s.row;
  int64_t pixel = p.c;
  if (p.d == 1 && p.h == 1) {
    line = at<float>(a.x, n, 0, 0, 0), pixel = a.x.pixel;
  } else if (p.d == 1) {
    mix_rows(p, a.x, n, 0, row, s.row);
  } else {
    for (int t = 0; t < depth_taps; ++t) mix_rows(p, a.x, n, depth.index[t], row, s.slice[t]);
    mix(depth_taps, s.slice, depth.weight, s.row, p.w * p.c);
  }
  const float* from[4];
  for (int64_t q = 0; q < p.q; ++q) {
    for (int t = 0; t < taps; ++t) from[t] = line + s.columns[q].index[t] * pixel;
    mix(taps, from, s.columns[q].weight, at<float>(a.y, n, z, i, q), p.c);
  }
}

const char* refuse(const ResizeProblem&) { return nullptr; }
double cost(const ResizeProblem& p) {
  return double(p.z * p.p * p.q * p.c) * (8 / 8e3 + double(resize_count(p.kind, p.h) + resize_count(p.kind, p.w)) / (2e3 * kLanes));
}
int64_t table_bytes(const ResizeProblem& p) { return (p.q * static_cast<int64_t>(sizeof(Mix<float>)) + 63) / 64 * 64; }
int64_t scratch_bytes(const ResizeProblem& p) {
  const int rows = nearest(p) ? 0 : 1 + (p.d > 1 ? resize_count(p.kind, p.d) : 0);
  return table_bytes(p) + rows * 4 * p.w * p.c;
}
int64_t rows_per_task(const ResizeProblem& p) {
  const int64_t bytes = 4 * p.q * p.c;
  return bytes > 0 && bytes < 16384 ? 16384 / bytes : 1;
}
int64_t tasks(const ResizeProblem& p, int64_t images) { return (images * p.z * p.p + rows_per_task(p) - 1) / rows_per_task(p); }

void run(const ResizeProblem& p, const ResizeArgs& a, int64_t images, int64_t first, int64_t last, void* scratch) {
  Scratch s;
  s.columns = static_cast<Mix<float>*>(scratch);
  s.row = reinterpret_cast<float*>(static_cast<char*>(scratch) + table_bytes(p));
  for (int t = 0; t < 4; ++t) s.slice[t] = s.row + (t + 1) * p.w * p.c;
  for (int64_t q = 0; q < p.q; ++q) s.columns[q] = resize_mix<float>(p.kind, q, p.w, p.q, p.scale_w, p.align_corners);
  const int64_t rows = rows_per_task(p), all = images * p.z * p.p, end = last * rows < all ? last * rows : all;
  for (int64_t row = first * rows; row < end; ++row) output_row(p, a, row / (p.z * p.p), row / p.p % p.z, row % p.p, s);
}

}  // namespace

extern const ResizeKernel resize_vector;
const ResizeKernel resize_vector = {"resize_vector", refuse, cost, scratch_bytes, tasks, run};

}  // namespace CK_ISA
}  // namespace ck
