// conv_depthwise_transposed.cpp: transposed depthwise convolution, which is the gradient of a strided one's input; float32.
//
// Computes  y[n,z,p,q,c] = act(sum of x[n,d,h,w,c] * w[t,r,s,c] over the (d,t), (h,r), (w,s) with d*sd-pd+t*dd = z, ... + bias + residual)
// Layout    x NDHWC, w [vector of channels][tap][lane], y NZPQC
// Tiling    outputs of one residue q mod stride read the same taps and neighbouring pixels of x, so registers hold kPixels outputs that
//           lie a stride apart, one vector wide; a task is a block of rows times a block of channel vectors
// Cost      2*NDHWC*TRS flop; 4*(x + w + y) bytes: bound by memory
// Refuses   not transposed; not one channel and one filter a group; more than 64 taps
// Source    Dumoulin and Visin 2016, arXiv:1603.07285, ch. 4
#include "cpu/depthwise.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int kPixels = 6;
constexpr int kMaxTaps = 64;

// The taps of the outputs of one row and one residue: where output j reads x, and the weight.
struct Taps {
  int count;
  const float* row[kMaxTaps];  // x[n,d,h,0,0]
  int64_t first[kMaxTaps];     // the column that output 0 of the residue reads; output j: first + j
  int64_t weight[kMaxTaps];    // floats
};

CK_INLINE void find_taps(const ConvProblem& p, const ConvArgs& a, int64_t n, int64_t z, int64_t row, int64_t residue, Taps& taps) {
  taps.count = 0;
  for (int64_t t = 0; t < p.t; ++t)
    for (int64_t r = 0; r < p.r; ++r) {
      const int64_t d = source_transposed(z, t, p.stride_d, p.pad_d_lo, p.dil_d, p.d);
      const int64_t h = source_transposed(row, r, p.stride_h, p.pad_h_lo, p.dil_h, p.h);
      if (d < 0 || h < 0) continue;
      for (int64_t s = 0; s < p.s; ++s) {
        const int64_t shifted = residue + p.pad_w_lo - s * p.dil_w;
        if (shifted % p.stride_w) continue;
        taps.row[taps.count] = at<const float>(a.x, n, d, h, 0);
        taps.first[taps.count] = shifted / p.stride_w;  // may be negative: exact division
        taps.weight[taps.count++] = ((t * p.r + r) * p.s + s) * kLanes;
      }
    }
}

template <class IO>
CK_INLINE void pixels(const ConvProblem& p, const ConvArgs& a, const Taps& taps, int64_t j, int count, int64_t k, float* y,
                      const float* residual, IO io) {
  vf acc[kPixels];
  CK_UNROLL
  for (int i = 0; i < kPixels; ++i) acc[i] = splat(0.f);
  const float* w = static_cast<const float*>(a.weights) + k * p.t * p.r * p.s;
  for (int e = 0; e < taps.count; ++e) {
    const vf b = load(w + taps.weight[e]);
    const int64_t first = taps.first[e] + j;
    const float* x = taps.row[e] + k + first * a.x.pixel;
    if (first >= 0 && first + kPixels <= p.w) {
      CK_UNROLL
      for (int i = 0; i < kPixels; ++i) acc[i] += io.load(x + i * a.x.pixel) * b;
    } else {
      CK_UNROLL
      for (int i = 0; i < kPixels; ++i)
        if (static_cast<uint64_t>(first + i) < static_cast<uint64_t>(p.w)) acc[i] += io.load(x + i * a.x.pixel) * b;
    }
  }
  const vf bias = a.bias ? io.load(static_cast<const float*>(a.bias) + k) : splat(0.f);
  const vf lo = splat(static_cast<float>(p.act.a)), hi = splat(static_cast<float>(p.act.b));
  CK_UNROLL
  for (int i = 0; i < kPixels; ++i) {
    if (i >= count) break;
    vf v = acc[i];
    if (a.bias) v += bias;
    if (residual) v += io.load(residual + i * p.stride_w * a.residual.pixel);
    if (p.act.kind == Act::kClamp) v = clamp(v, lo, hi);
    io.store(y + i * p.stride_w * a.y.pixel, v);
  }
}

void run(const ConvProblem& p, const ConvArgs& a, int64_t, int64_t first, int64_t last, void*) {
  Taps taps;
  each_row(p, a, first, last, [&](int64_t n, int64_t z, int64_t row, int64_t k_first, int64_t k_last) __attribute__((always_inline)) {
      for (int64_t residue = 0; residue < least(p.stride_w, p.q); ++residue) {
        find_taps(p, a, n, z, row, residue, taps);
        const int64_t all = (p.q - residue + p.stride_w - 1) / p.stride_w;
        for (int64_t j = 0; j < all; j += kPixels) {
          const int count = static_cast<int>(least(kPixels, all - j));
          float* y = at<float>(a.y, n, z, row, residue + j * p.stride_w);
          const float* residual = a.residual.data ? at<const float>(a.residual, n, z, row, residue + j * p.stride_w) : nullptr;
          for (int64_t k = k_first; k < k_last; k += kLanes) {
            if (p.k - k >= kLanes) pixels(p, a, taps, j, count, k, y + k, residual ? residual + k : nullptr, Full{});
            else pixels(p, a, taps, j, count, k, y + k, residual ? residual + k : nullptr, Part{static_cast<int>(p.k - k)});
          }
        }
      }
  });
}

const char* refuse(const ConvProblem& p) {
  if (!p.transposed) return "not transposed";
  if (p.groups != p.c || p.k != p.c) return "one channel and one filter a group only";
  if (p.t * p.r * p.s > kMaxTaps) return "more than 64 taps";
  return nullptr;
}

double cost(const ConvProblem& p) {
  return static_cast<double>((p.d * p.h * p.w * p.t * p.r * p.s + p.z * p.p * p.q) * layout_of(p).vecs) * 2.0 / 3000.0;
}

}  // namespace

extern const ConvKernel conv_depthwise_transposed;
const ConvKernel conv_depthwise_transposed = {"conv_depthwise_transposed", refuse, cost, scratch_bytes, tasks, run, packed_bytes, pack_tasks, pack};

}  // namespace CK_ISA
}  // namespace ck
