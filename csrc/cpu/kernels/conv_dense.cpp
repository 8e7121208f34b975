// conv_dense.cpp: large dense layers whose weights change with every run (training) or shall not be copied (lean): read where they lie, never
// packed; float32.
//
// Computes  conv_dense          y[n,k] = act(sum_c x[n,c] * w[c,k] + bias + residual)
//           conv_dense_swapped  y[n,k] = act(sum_c x[n,c] * w[k,c] + ...): the gradient of a dense layer's input, from the layer's own weights
// Layout    x NC, w as the parameter holds it, y NK
// Tiling    conv_dense: a task is kBlock columns of w; eight rows of the block lie in the first-level cache while all images pass, two at a time;
//           y itself holds the sums. conv_dense_swapped: a task is some rows of w; registers = 3 rows x 8 images, one vector of c long
// Cost      2*NKC flop; w once: bound by memory up to some 16 images. Packing would read and write w again (VGG-16: 411 MB for the first layer)
// Refuses   weights that stay (they are packed once) unless lean, maps of more than a pixel, groups, fewer than 2^20 weights
#include "core/kernel.h"
#include "simd/math.h"
#include "simd/shuffle.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int64_t kBlock = 256;  // columns of a task of conv_dense
constexpr int kDepth = 8;        // rows taken at once
constexpr int64_t kTaskRows = 24;
constexpr int kSwappedRows = kTile[2] > 8 ? 3 : 2, kImages = kTile[2] > 8 ? 8 : 4;

CK_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

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

// y[n, k..] += sum of kRows rows of w, for kPair images.
template <int kRows, int kPair>
CK_INLINE void rows_of(const float* const* x, const float* w, int64_t w_step, float* const* y, int64_t columns, bool fresh) {
  vf value[kPair][kRows];
  CK_UNROLL
  for (int n = 0; n < kPair; ++n)
    CK_UNROLL
    for (int i = 0; i < kRows; ++i) value[n][i] = splat(x[n][i]);
  const auto step = [&](auto io, int64_t k) __attribute__((always_inline)) {
    vf sum[kPair];
    CK_UNROLL
    for (int n = 0; n < kPair; ++n) sum[n] = fresh ? splat(0.f) : io.load(y[n] + k);
    CK_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const vf v = io.load(w + i * w_step + k);
      CK_UNROLL
      for (int n = 0; n < kPair; ++n) sum[n] += value[n][i] * v;
    }
    CK_UNROLL
    for (int n = 0; n < kPair; ++n) io.store(y[n] + k, sum[n]);
  };
  int64_t k = 0;
  for (; k + kLanes <= columns; k += kLanes) step(Full{}, k);
  if (k < columns) step(Part{static_cast<int>(columns - k)}, k);
}

template <int kRows>
void all_images(const ConvArgs& a, int64_t images, int64_t c, int64_t k, const float* w, int64_t w_step, int64_t columns) {
  for (int64_t n = 0; n < images; n += 2) {
    const int64_t second = n + 1 < images ? n + 1 : n;
    const float* x[2] = {at<const float>(a.x, n, 0, 0, 0) + c, at<const float>(a.x, second, 0, 0, 0) + c};
    float* y[2] = {at<float>(a.y, n, 0, 0, 0) + k, at<float>(a.y, second, 0, 0, 0) + k};
    if (second == n) rows_of<kRows, 1>(x, w, w_step, y, columns, c == 0);
    else rows_of<kRows, 2>(x, w, w_step, y, columns, c == 0);
  }
}

void run(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t first, int64_t last, void*) {
  for (int64_t task = first; task < last; ++task) {
    const int64_t k = task * kBlock, columns = least(kBlock, p.k - k);
    const float* w = static_cast<const float*>(a.weights) + k;
    int64_t c = 0;
    for (; c + kDepth <= p.c; c += kDepth, w += kDepth * p.k) {
      for (int i = 0; i < kDepth && c + 2 * kDepth <= p.c; ++i)
        for (int64_t j = 0; j < columns; j += 16) __builtin_prefetch(w + (kDepth + i) * p.k + j, 0, 2);
      all_images<kDepth>(a, images, c, k, w, p.k, columns);
    }
    for (; c < p.c; ++c, w += p.k) all_images<1>(a, images, c, k, w, p.k, columns);
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
  for (int64_t n = 0; n < images; n += kImages) {
    const int count = static_cast<int>(least(kImages, images - n));
    const float* x[kImages];
    float* y[kImages];
    for (int i = 0; i < kImages; ++i)
      x[i] = at<const float>(a.x, n + (i < count ? i : 0), 0, 0, 0), y[i] = at<float>(a.y, n + (i < count ? i : 0), 0, 0, 0) + k;
    if (count == kImages) dot<kRows, kImages>(x, w, p.c, y);
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
  if (!p.training && !p.lean) return "weights that stay are packed once";
  if (p.t * p.r * p.s != 1 || p.d * p.h * p.w != 1 || p.z * p.p * p.q != 1) return "maps of one pixel only";
  if (p.pad_d_lo || p.pad_h_lo || p.pad_w_lo) return "padding";
  if (p.groups != 1) return "groups";
  if (p.c * p.k < (1 << 20)) return "small weights are packed in no time";
  return nullptr;
}
const char* refuse(const ConvProblem& p) { return p.swapped ? "the weights of the layer before: conv_dense_swapped" : refuse_any(p); }
const char* refuse_swapped(const ConvProblem& p) { return p.swapped ? refuse_any(p) : "the layer's own weights: conv_dense"; }

double cost(const ConvProblem& p) { return static_cast<double>(p.c * p.k) / kLanes * 0.2 / 3000.0; }
int64_t scratch_bytes(const ConvProblem&) { return 0; }
int64_t tasks(const ConvProblem& p, int64_t) { return (p.k + kBlock - 1) / kBlock; }
int64_t tasks_swapped(const ConvProblem& p, int64_t) { return (p.k + kTaskRows - 1) / kTaskRows; }

}  // namespace

extern const ConvKernel conv_dense, conv_dense_swapped;
const ConvKernel conv_dense = {"conv_dense", refuse, cost, scratch_bytes, tasks, run};
const ConvKernel conv_dense_swapped = {"conv_dense_swapped", refuse_swapped, cost, scratch_bytes, tasks_swapped, run_swapped};

}  // namespace CK_ISA
}  // namespace ck
