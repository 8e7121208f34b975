// conv_dense.cpp: large dense layers, whose weights are read where they lie: a packed copy would be most of a network's memory (VGG-16: 494 MB) and,
// where weights change with every run (training), cost as much as the layer; float32.
//
// Computes  conv_dense          y[n,k] = act(sum_c x[n,c] * w[c,k] + bias + residual)
//           conv_dense_swapped  y[n,k] = act(sum_c x[n,c] * w[k,c] + ...): the gradient of a dense layer's input, from the layer's own weights
// Layout    x NC, w as the parameter holds it, y NK
// Tiling    conv_dense: a task is 128 columns of w, and a thread takes its tasks side by side: long stretches of each row come from memory. A chunk of
//           rows, 128 KB, passes all images, up to eight at a time, a few vectors of columns each; y itself holds the sums between chunks, so an
//           output is one chain in the order of c. The first images fetch the chunk that follows, line by line.
//           conv_dense_swapped: a task is some rows of w; registers = 3 rows x 8 images, one vector of c long
// Cost      2*NKC flop; w once: bound by memory up to some 16 images. 9216 x 4096 beside conv_direct, packed (Granite Rapids, November 2026):
//           N=1 0.9 of its time, N=8 0.8, N=64 0.7; 4096 x 1000, in the caches: N=1 1.0, N=8 1.2
// Refuses   maps of more than a pixel, groups, fewer than 2^20 weights; conv_dense_swapped weights that stay (they are packed once), unless lean
// Tried     eight rows of 256 columns, a pair of images at a time, fetched in bursts: 1.4 to 2.3 times the time; 1024 columns: 1.1 times at N=1;
//           fetching two chunks ahead: slower; fetching past the caches (prefetchnta), so that other layers' weights stay there: 2 to 3 times
#include "core/kernel.h"
#include "core/machine.h"
#include "cpu/integers.h"
#include "simd/math.h"
#include "simd/shuffle.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int64_t kColumns = 128;     // of a task of conv_dense
constexpr int64_t kBlock = 2048;      // columns taken side by side at most: the tasks of a thread
constexpr int64_t kChunk = 32 << 10;  // weights taken at once: rows of these columns
constexpr int64_t kTaskRows = 24;
constexpr int kSwappedRows = kTile[2] > 8 ? 3 : 2, kSwappedImages = kTile[2] > 8 ? 8 : 4;
constexpr int kImages = kTile[2] > 6 ? 8 : 6;  // that pass a task's columns side by side

// Bias, residual and activation of the values [from, to) of image n.
CK_INLINE void finish(const ConvProblem& p, const ConvArgs& a, int64_t n, int64_t from, int64_t to) {
  float* y = at<float>(a.y, n, 0, 0, 0);
  const float *bias = static_cast<const float*>(a.bias), *residual = a.residual.data ? at<const float>(a.residual, n, 0, 0, 0) : nullptr;
  if (bias)
    for (int64_t k = from; k < to; ++k) y[k] += bias[k];
  if (residual)
    for (int64_t k = from; k < to; ++k) y[k] += residual[k];
  if (p.act.kind != Act::kNone) activate_span(y + from, y + from, to - from, p.act);
}

// Vectors of columns beside kN images: sums, weights and one value fill the registers.
constexpr int columns_of(int images) {
  return kImages < 8 ? (images == 1 ? 6 : images == 2 ? 4 : images == 3 ? 3 : 2) : images == 1 ? 8 : images <= 3 ? 6 : images <= 6 ? 4 : 3;
}

// y[n][0 ..] (+)= sum of `rows` rows of w, kV vectors of columns.
template <int kN, int kV, class IO>
CK_INLINE void multiply(const float* const* x, const float* w, int64_t w_step, int64_t rows, float* const* y, bool fresh, int64_t ahead,
                        IO io) {
  vf sum[kN][kV];
  CK_UNROLL
  for (int n = 0; n < kN; ++n)
    CK_UNROLL
    for (int j = 0; j < kV; ++j) sum[n][j] = fresh ? splat(0.f) : io.load(y[n] + j * kLanes);
  for (int64_t i = 0; i < rows; ++i, w += w_step) {
    vf row[kV];
    CK_UNROLL
    for (int j = 0; j < kV; ++j) {
      if (ahead && j * kLanes % 16 == 0) __builtin_prefetch(w + ahead + j * kLanes, 0, 2);
      row[j] = io.load(w + j * kLanes);
    }
    CK_UNROLL
    for (int n = 0; n < kN; ++n) {
      const vf value = splat(x[n][i]);
      CK_UNROLL
      for (int j = 0; j < kV; ++j) add_product(sum[n][j], value, row[j]);
    }
  }
  CK_UNROLL
  for (int n = 0; n < kN; ++n)
    CK_UNROLL
    for (int j = 0; j < kV; ++j) io.store(y[n] + j * kLanes, sum[n][j]);
}

template <int kN>
void rows_of(const ConvArgs& a, int64_t image, int64_t c, int64_t k, const float* w, int64_t w_step, int64_t rows, int64_t columns, int64_t ahead) {
  constexpr int kV = columns_of(kN);
  const float* x[kN];
  float* y[kN];
  for (int n = 0; n < kN; ++n) x[n] = at<const float>(a.x, image + n, 0, 0, 0) + c, y[n] = at<float>(a.y, image + n, 0, 0, 0) + k;
  const auto move = [&](int by) __attribute__((always_inline)) {
    CK_UNROLL
    for (int n = 0; n < kN; ++n) y[n] += by;
    w += by, columns -= by;
  };
  for (; columns >= kV * kLanes; move(kV * kLanes)) multiply<kN, kV>(x, w, w_step, rows, y, c == 0, ahead, Full{});
  for (; columns >= kLanes; move(kLanes)) multiply<kN, 1>(x, w, w_step, rows, y, c == 0, ahead, Full{});
  if (columns) multiply<kN, 1>(x, w, w_step, rows, y, c == 0, ahead, Part{static_cast<int>(columns)});
}

template <int... kN>
struct Images {
  static constexpr decltype(&rows_of<1>) table[] = {nullptr, rows_of<kN>...};
};

void run(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t first, int64_t last, void*) {
#if defined(__AVX512F__) || defined(__aarch64__)
  static constexpr auto& kRowsOf = Images<1, 2, 3, 4, 5, 6, 7, 8>::table;
#else
  static constexpr auto& kRowsOf = Images<1, 2, 3, 4, 5, 6>::table;
#endif
  const int64_t end = least(p.k, last * kColumns);
  for (int64_t k = first * kColumns, columns; k < end; k += columns) {
    columns = least(kBlock, end - k);
    const int64_t depth = kChunk / columns;
    const float* w = static_cast<const float*>(a.weights) + k;
    for (int64_t c = 0; c < p.c; c += depth, w += depth * p.k) {
      const int64_t rows = least(depth, p.c - c), ahead = c + 2 * depth <= p.c ? depth * p.k : 0;
      for (int64_t n = 0; n < images; n += kImages)
        kRowsOf[least(kImages, images - n)](a, n, c, k, w, p.k, rows, columns, n ? 0 : ahead);
    }
    for (int64_t n = 0; n < images; ++n) finish(p, a, n, k, k + columns);
  }
}

// kRows values of kN images.
template <int kRows, int kN>
void dot(const float* const* x, const float* w, int64_t c, float* const* y) {
  vf sum[kRows][kN];
  CK_UNROLL
  for (int i = 0; i < kRows; ++i)
    CK_UNROLL
    for (int n = 0; n < kN; ++n) sum[i][n] = splat(0.f);
  const auto step = [&](auto io, int64_t j) __attribute__((always_inline)) {
    vf row[kRows];
    CK_UNROLL
    for (int i = 0; i < kRows; ++i) row[i] = io.load(w + i * c + j);
    CK_UNROLL
    for (int n = 0; n < kN; ++n) {
      const vf v = io.load(x[n] + j);
      CK_UNROLL
      for (int i = 0; i < kRows; ++i) sum[i][n] += v * row[i];
    }
  };
  int64_t j = 0;
  for (; j + kLanes <= c; j += kLanes) step(Full{}, j);
  if (j < c) step(Part{static_cast<int>(c - j)}, j);
  CK_UNROLL
  for (int i = 0; i < kRows; ++i)
    CK_UNROLL
    for (int n = 0; n < kN; ++n) y[n][i] = lane_sum(sum[i][n])[0];
}

template <int kRows>
CK_INLINE void dots(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t k) {
  const float* w = static_cast<const float*>(a.weights) + k * p.c;
  for (int64_t n = 0; n < images; n += kSwappedImages) {
    const int count = static_cast<int>(least(kSwappedImages, images - n));
    const float* x[kSwappedImages];
    float* y[kSwappedImages];
    for (int i = 0; i < kSwappedImages; ++i)
      x[i] = at<const float>(a.x, n + (i < count ? i : 0), 0, 0, 0), y[i] = at<float>(a.y, n + (i < count ? i : 0), 0, 0, 0) + k;
    if (count == kSwappedImages) dot<kRows, kSwappedImages>(x, w, p.c, y);
    else
      for (int i = 0; i < count; ++i) dot<kRows, 1>(x + i, w, p.c, y + i);
  }
}

void run_swapped(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t first, int64_t last, void*) {
  for (int64_t task = first; task < last; ++task) {
    const int64_t from = task * kTaskRows, to = least(p.k, from + kTaskRows);
    int64_t k = from;
    for (; k + kSwappedRows <= to; k += kSwappedRows) dots<kSwappedRows>(p, a, images, k);
    for (; k < to; ++k) dots<1>(p, a, images, k);
    for (int64_t n = 0; n < images; ++n) finish(p, a, n, from, to);
  }
}

const char* refuse_any(const ConvProblem& p) {
  if (p.t * p.r * p.s != 1 || p.d * p.h * p.w != 1 || p.z * p.p * p.q != 1) return "maps of one pixel only";
  if (p.pad_d_lo || p.pad_h_lo || p.pad_w_lo) return "padding";
  if (p.groups != 1) return "groups";
  if (p.c * p.k < (1 << 20)) return "small weights are packed in no time";
  return nullptr;
}
const char* refuse(const ConvProblem& p) { return p.swapped ? "the weights of the layer before: conv_dense_swapped" : refuse_any(p); }
const char* refuse_swapped(const ConvProblem& p) {
  if (!p.swapped) return "the layer's own weights: conv_dense";
  if (!p.training && !p.lean) return "weights that stay are packed once";
  return refuse_any(p);
}

double cost(const ConvProblem& p) { return static_cast<double>(4 * p.c * p.k) / kBytesPerMicrosecond; }
int64_t scratch_bytes(const ConvProblem&) { return 0; }
int64_t tasks(const ConvProblem& p, int64_t) { return ceil_div(p.k, kColumns); }
int64_t tasks_swapped(const ConvProblem& p, int64_t) { return (p.k + kTaskRows - 1) / kTaskRows; }

}  // namespace

extern const ConvKernel conv_dense, conv_dense_swapped;
const ConvKernel conv_dense = {"conv_dense", refuse, cost, scratch_bytes, tasks, run};
const ConvKernel conv_dense_swapped = {"conv_dense_swapped", refuse_swapped, cost, scratch_bytes, tasks_swapped, run_swapped};

}  // namespace CK_ISA
}  // namespace ck
