// conv_depthwise.cpp: depthwise convolution with any multiplier, float32.
//
// Computes  y[n,z,p,q,c*m+j] = act(sum_trs x[n, z*sd-pd+t*dd, p*sh-ph+r*dh, q*sw-pw+s*dw, c] * w[t,r,s,c*m+j] + bias + residual)
// Layout    x NDHWC, y NZPQK; w [vector of filters][tap][lane]
// Tiling    a task is a block of rows times a block of channel vectors, so that the rows above and below are read from the first-level cache;
//           registers = kPixels outputs of a row, one vector wide:
//
//             x   |0|1|2|3|4|5|6|7|8|      each input vector is loaded once per filter row and feeds up to S accumulators
//             y     |0|1|2|3|4|5|6|        (3x3 stride 1: 9 + 3 loads for 21 FMAs)
//
//           widths 3, 5, 7 with stride 1, 2 undilated have their own loops; all other shapes one vector of one output at a time.
//           The first and the last step of a row know at compile time which columns lie outside (maps of 14 pixels have no others)
// Cost      2*NZPQK*TRS flop; 4*(x + w + y) bytes: bound by the caches, not by FMAs
//           Values are kept in registers (add_product): as memory operands of each FMA they were loaded three times, 12.7 in place of 9.0 cycles a
//           vector (3x3, Granite Rapids, November 2026; FMAs alone 4.5, with bias and clamp 6)
//           Inputs that exceed the caches: the rows that a row of outputs is the first to read are fetched a step ahead, since channel blocks of
//           pixel after pixel are no stream to the hardware (N=8: 56x56x144 5x5/2 0.52 ms in place of 0.79, 56x56x144 3x3 1.40 in place of 1.71, the same)
// Tried     the same for y and for all maps: most lie in the second-level cache, and the instructions cost more than they gain (up to 40 %)
// Refuses   transposed; C/G != 1
// Source    Howard et al. 2017, arXiv:1704.04861, sec. 3.1
#include "core/machine.h"
#include "cpu/depthwise.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int kPixels = 7;
// The taps (t, r) of one output row that fall inside the input: offsets of the input row and of the filter row.
constexpr int kMaxEntries = 64;
struct Row {
  int64_t x[kMaxEntries], w[kMaxEntries];
  int entries;
  int far;  // entries from this one on have not been read before and come from memory: their next columns are fetched
};

template <class IO>
CK_INLINE void finish(const ConvProblem& p, const ConvArgs& a, vf v, float* y, const float* residual, vf bias, vf lo, vf hi, IO io) {
  if (a.bias) v += bias;
  if (residual) v += io.load(residual);
  if (p.act.kind == Act::kClamp) v = clamp(v, lo, hi);
  io.store(y, v);
}

// What lies outside the image: the first kLeft and the last kRight columns of a step, or (kAny) whichever, and fewer outputs than kPixels.
template <int kLeft, int kRight, bool kAny = false>
struct Edge {
  static constexpr int left = kLeft, right = kRight;
  static constexpr bool any = kAny;
};

// A step: outputs [q, q + count) of a row. Pointers at channel 0.
struct Step {
  const float* x;  // column 0 of the step in row 0 of the image
  int64_t w0;      // that column
  int count;
  float* y;
  const float* residual;
};

// One vector of a step, width kS, stride kStride, no dilation.
template <int kS, int kStride, class Edge, class IO>
CK_INLINE void pixels(const ConvProblem& p, const ConvArgs& a, const Row& row, const Step& t, const float* w, int64_t k, vf lo, vf hi,
                      IO io) {
  constexpr int kColumns = (kPixels - 1) * kStride + kS;
  vf acc[kPixels];
  CK_UNROLL
  for (int i = 0; i < kPixels; ++i) acc[i] = splat(0.f);
  const int64_t step = a.x.pixel;
  for (int e = 0; e < row.entries; ++e) {
    vf b[kS];
    CK_UNROLL
    for (int s = 0; s < kS; ++s) b[s] = load(w + row.w[e] + s * kLanes);
    const float* x = t.x + row.x[e] + k;
    if (e >= row.far) {
      CK_UNROLL
      for (int j = kColumns; j < kColumns + kPixels * kStride; ++j) __builtin_prefetch(x + j * step, 0, 2);
    }
    CK_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      if (Edge::any ? static_cast<uint64_t>(t.w0 + j) >= static_cast<uint64_t>(p.w) : j < Edge::left || j >= kColumns - Edge::right) continue;
      const vf v = io.load(x + j * step);
      CK_UNROLL
      for (int s = 0; s < kS; ++s)
        if ((j - s) % kStride == 0 && j - s >= 0 && (j - s) / kStride < kPixels) add_product(acc[(j - s) / kStride], v, b[s]);
    }
  }
  if (a.bias) {
    const vf bias = io.load(static_cast<const float*>(a.bias) + k);
    CK_UNROLL
    for (int i = 0; i < kPixels; ++i) acc[i] += bias;
  }
  const int count = Edge::any ? t.count : kPixels;
  if (t.residual) {
    const float* residual = t.residual + k;
    const int64_t residual_step = a.residual.pixel;
    CK_UNROLL
    for (int i = 0; i < kPixels; ++i)
      if (i < count) acc[i] += io.load(residual + i * residual_step);
  }
  if (p.act.kind == Act::kClamp) {
    CK_UNROLL
    for (int i = 0; i < kPixels; ++i) acc[i] = clamp(acc[i], lo, hi);
  }
  float* y = t.y + k;
  const int64_t y_step = a.y.pixel;
  CK_UNROLL
  for (int i = 0; i < kPixels; ++i)
    if (i < count) io.store(y + i * y_step, acc[i]);
}

template <int kS, int kStride, class Edge>
__attribute__((noinline)) void vectors(const ConvProblem& p, const ConvArgs& a, const Row& row, const Step& t, int64_t k_first, int64_t k_last) {
  const int64_t taps = p.t * p.r * p.s;
  const float* w = static_cast<const float*>(a.weights) + k_first * taps;
  const vf lo = splat(static_cast<float>(p.act.a)), hi = splat(static_cast<float>(p.act.b));
  int64_t k = k_first;
  for (; k + kLanes <= k_last; k += kLanes, w += kLanes * taps) pixels<kS, kStride, Edge>(p, a, row, t, w, k, lo, hi, Full{});
  if (k < k_last) pixels<kS, kStride, Edge>(p, a, row, t, w, k, lo, hi, Part{static_cast<int>(k_last - k)});
}

// Any filter, stride, dilation and multiplier, one output at a time.
template <class IO>
void generic_row(const ConvProblem& p, const ConvArgs& a, int64_t n, int64_t z, int64_t prow, int64_t k, int lanes, IO io) {
  const int64_t m = p.k / p.c;
  const vf lo = splat(static_cast<float>(p.act.a)), hi = splat(static_cast<float>(p.act.b));
  const vf bias = a.bias ? io.load(static_cast<const float*>(a.bias) + k) : splat(0.f);
  float* y = at<float>(a.y, n, z, prow, 0) + k;
  const float* residual = a.residual.data ? at<const float>(a.residual, n, z, prow, 0) + k : nullptr;
  const float* w = static_cast<const float*>(a.weights) + k * p.t * p.r * p.s;
  for (int64_t q = 0; q < p.q; ++q) {
    vf acc = splat(0.f);
    for (int64_t t = 0; t < p.t; ++t)
      for (int64_t r = 0; r < p.r; ++r)
        for (int64_t s = 0; s < p.s; ++s) {
          const int64_t d = source(z, t, p.stride_d, p.pad_d_lo, p.dil_d, p.d), h = source(prow, r, p.stride_h, p.pad_h_lo, p.dil_h, p.h);
          const int64_t x_w = source(q, s, p.stride_w, p.pad_w_lo, p.dil_w, p.w);
          if (d < 0 || h < 0 || x_w < 0) continue;
          const float* x = at<const float>(a.x, n, d, h, x_w);
          vf v = splat(0.f);
          if (m == 1) v = io.load(x + k);
          else
            for (int l = 0; l < lanes; ++l) v[l] = x[(k + l) / m];
          acc += v * load(w + ((t * p.r + r) * p.s + s) * kLanes);
        }
    finish(p, a, acc, y + q * a.y.pixel, residual ? residual + q * a.residual.pixel : nullptr, bias, lo, hi, io);
  }
}

template <int kS, int kStride>
void run_width(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t first, int64_t last) {
  const bool far = images * p.d * p.h * p.w * p.c * 4 > 2 * l2_bytes;
  each_row(p, a, first, last, [&](int64_t n, int64_t z, int64_t prow, int64_t k_first, int64_t k_last) __attribute__((always_inline)) {
      if constexpr (kS == 0) {
        for (int64_t k = k_first; k < k_last; k += kLanes) {
          if (p.k - k >= kLanes) generic_row(p, a, n, z, prow, k, kLanes, Full{});
          else generic_row(p, a, n, z, prow, k, static_cast<int>(p.k - k), Part{static_cast<int>(p.k - k)});
        }
      } else {
        Row row;
        row.entries = 0;
        for (int64_t t = 0; t < p.t; ++t)
          for (int64_t r = 0; r < p.r; ++r) {
            const int64_t d = source(z, t, p.stride_d, p.pad_d_lo, p.dil_d, p.d), h = source(prow, r, p.stride_h, p.pad_h_lo, p.dil_h, p.h);
            if (d < 0 || h < 0) continue;
            row.x[row.entries] = d * a.x.depth + h * a.x.row;
            row.w[row.entries++] = (t * p.r + r) * p.s * kLanes;
          }
        row.far = far ? row.entries - static_cast<int>(p.stride_h) : row.entries;
        // Pixels outside, channels inside: memory is read in the order in which it lies.
        constexpr int kColumns = (kPixels - 1) * kStride + kS;
        // Under the usual padding, of (kS - 1) / 2, this much of the first and the last step is outside.
        constexpr int kLeft = (kS - 1) / 2, kRight = kLeft - (kStride - 1);
        const float* x_n = at<const float>(a.x, n, 0, 0, 0);
        for (int64_t q = 0; q < p.q; q += kPixels) {
          const int64_t w0 = q * kStride - p.pad_w_lo, beyond = w0 + kColumns - p.w;
          const Step t{x_n + w0 * a.x.pixel, w0, static_cast<int>(least(kPixels, p.q - q)), at<float>(a.y, n, z, prow, q),
                       a.residual.data ? at<const float>(a.residual, n, z, prow, q) : nullptr};
          const bool whole = t.count == kPixels, starts = w0 >= 0, ends = beyond <= 0;
          if (whole && starts && ends) vectors<kS, kStride, Edge<0, 0>>(p, a, row, t, k_first, k_last);
          else if (whole && w0 == -kLeft && ends) vectors<kS, kStride, Edge<kLeft, 0>>(p, a, row, t, k_first, k_last);
          else if (whole && starts && beyond == kRight) vectors<kS, kStride, Edge<0, kRight>>(p, a, row, t, k_first, k_last);
          else if (whole && w0 == -kLeft && beyond == kRight) vectors<kS, kStride, Edge<kLeft, kRight>>(p, a, row, t, k_first, k_last);
          else vectors<kS, kStride, Edge<0, 0, true>>(p, a, row, t, k_first, k_last);
        }
      }
  });
}

void run(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t first, int64_t last, void*) {
  const bool plain = p.dil_w == 1 && p.k == p.c && p.t * p.r <= kMaxEntries;
  if (plain && p.stride_w == 1 && p.s == 3) return run_width<3, 1>(p, a, images, first, last);
  if (plain && p.stride_w == 2 && p.s == 3) return run_width<3, 2>(p, a, images, first, last);
  if (plain && p.stride_w == 1 && p.s == 5) return run_width<5, 1>(p, a, images, first, last);
  if (plain && p.stride_w == 2 && p.s == 5) return run_width<5, 2>(p, a, images, first, last);
  if (plain && p.stride_w == 1 && p.s == 7) return run_width<7, 1>(p, a, images, first, last);
  run_width<0, 0>(p, a, images, first, last);
}

const char* refuse(const ConvProblem& p) {
  if (p.transposed) return "transposed";
  if (p.groups != p.c) return "more than one channel a group";
  return nullptr;
}

double cost(const ConvProblem& p) {
  return static_cast<double>(p.z * p.p * p.q * p.t * p.r * p.s * layout_of(p).vecs) * 2.0 / kVectorsPerMicrosecond;
}

}  // namespace

extern const ConvKernel conv_depthwise;
const ConvKernel conv_depthwise = {"conv_depthwise", refuse, cost, scratch_bytes, tasks, run, packed_bytes, pack_tasks, pack};

}  // namespace CK_ISA
}  // namespace ck
