// conv_depthwise_bf16.cpp: depthwise convolution of tensors stored as bfloat16, computed in float32.
//
// Computes  as conv_depthwise.cpp, of x as it is stored; weights and sums are float32, only the result is rounded, where it is stored so
// Layout    x, residual, y: bfloat16 or float32, NHWC; w [block of 32 channels][tap][16 even, 16 odd channels]
// Tiling    as conv_depthwise.cpp, 32 channels wide (bf16_lanes.h): kPixels outputs of a row, whose sums pass through a small buffer to the epilogue
// Cost      2*PQK*RS flop, bound by the conversions: for 3x3 stride 1 18 beside 42 FMAs; half of float32's bytes
// Refuses   float32 plans, transposed, multipliers, dilation, three dimensions, widths and strides without a loop of their own
// Source    as conv_depthwise.cpp
#include "core/machine.h"
#include "cpu/bf16_lanes.h"
#include "cpu/pixels.h"
#include "simd/math.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int kPixels = 7;
constexpr int64_t kBlockRows = 8, kBlockChannels = 256, kMaxRows = 8;

CK_INLINE int64_t blocks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// The rows of the window of one output row that fall inside the input: offsets of the input row and of the filter row.
struct Row {
  int64_t x[kMaxRows], w[kMaxRows];
  int entries;
  int64_t next;  // offset of the input row that the next output row will read first of all, or 0
};

// sums[i] = the sums of output q + i, width kS, stride kStride.
template <int kS, int kStride, bool kEdge, class X, class IO>
CK_INLINE void pixels(const ConvProblem& p, const Row& row, const X* x_n, int64_t step, const float* w, int64_t q, Halves* sums, IO io) {
  constexpr int kColumns = (kPixels - 1) * kStride + kS;
  vf even[kPixels], odd[kPixels];
  CK_UNROLL
  for (int i = 0; i < kPixels; ++i) even[i] = odd[i] = splat(0.f);
  const int64_t w0 = q * kStride - p.pad_w_lo;
  for (int e = 0; e < row.entries; ++e) {
    vf b_even[kS], b_odd[kS];
    CK_UNROLL
    for (int s = 0; s < kS; ++s) b_even[s] = load(w + row.w[e] + s * kPair), b_odd[s] = load(w + row.w[e] + s * kPair + kLanes);
    const X* x = x_n + row.x[e] + w0 * step;
    CK_UNROLL
    for (int j = 0; j < kColumns; ++j) {
      if (kEdge && static_cast<uint64_t>(w0 + j) >= static_cast<uint64_t>(p.w)) continue;
      const Halves v = io.load(x + j * step);
      CK_UNROLL
      for (int s = 0; s < kS; ++s)
        if ((j - s) % kStride == 0 && j - s >= 0 && (j - s) / kStride < kPixels) {
          even[(j - s) / kStride] += v.even * b_even[s];
          odd[(j - s) / kStride] += v.odd * b_odd[s];
        }
    }
  }
  CK_UNROLL
  for (int i = 0; i < kPixels; ++i) sums[i] = {even[i], odd[i]};
}

// Bias, residual, activation and the only store of `count` outputs.
template <class Y, class R, class IO>
CK_INLINE void finish(const ConvProblem& p, const ConvArgs& a, int64_t n, int64_t prow, int64_t q, int64_t k, int count, Halves* sums, IO io) {
  Y* y = at<Y>(a.y, n, 0, prow, q) + k;
  const R* residual = a.residual.data ? at<const R>(a.residual, n, 0, prow, q) + k : nullptr;
  const Halves bias = a.bias ? io.load(static_cast<const float*>(a.bias) + k) : Halves{splat(0.f), splat(0.f)};
  for (int i = 0; i < count; ++i) {
    Halves v = sums[i];
    v.even += bias.even, v.odd += bias.odd;
    if (residual) {
      const Halves r = io.load(residual + i * a.residual.pixel);
      v.even += r.even, v.odd += r.odd;
    }
    sums[i] = v;
  }
  const bool clamps = p.act.kind == Act::kClamp;
  if (!clamps && p.act.kind != Act::kNone) {
    float* span = reinterpret_cast<float*>(sums);
    activate_span(span, span, count * kPair, p.act);
  }
  const vf lo = splat(clamps ? static_cast<float>(p.act.a) : -__builtin_inff()), hi = splat(clamps ? static_cast<float>(p.act.b) : __builtin_inff());
  for (int i = 0; i < count; ++i) {
    if (clamps) sums[i].even = clamp(sums[i].even, lo, hi), sums[i].odd = clamp(sums[i].odd, lo, hi);
    io.store(y + i * a.y.pixel, sums[i]);
  }
}

// Outputs [q, q + count) of one row for 32 channels from k on.
template <int kS, int kStride, class X, class IO>
CK_INLINE void step(const ConvProblem& p, const ConvArgs& a, const Row& row, int64_t n, int64_t prow, int64_t q, int count, int64_t k, IO io) {
  const float* w = static_cast<const float*>(a.weights) + k * p.r * p.s;
  const X* x_n = at<const X>(a.x, n, 0, 0, 0) + k;
  const int64_t w0 = q * kStride - p.pad_w_lo;
  if (row.next) {
    const X* next = x_n + row.next + w0 * a.x.pixel;
    for (int j = 0; j < kPixels * kStride; ++j) __builtin_prefetch(next + j * a.x.pixel, 0, 2);
  }
  Halves sums[kPixels];
  if (w0 >= 0 && w0 + (kPixels - 1) * kStride + kS <= p.w) pixels<kS, kStride, false>(p, row, x_n, a.x.pixel, w, q, sums, io);
  else pixels<kS, kStride, true>(p, row, x_n, a.x.pixel, w, q, sums, io);
  if (p.y_bf16) {
    if (p.residual_bf16) finish<bf16, bf16>(p, a, n, prow, q, k, count, sums, io);
    else finish<bf16, float>(p, a, n, prow, q, k, count, sums, io);
  } else {
    if (p.residual_bf16) finish<float, bf16>(p, a, n, prow, q, k, count, sums, io);
    else finish<float, float>(p, a, n, prow, q, k, count, sums, io);
  }
}

template <int kS, int kStride, class X>
void run_width(const ConvProblem& p, const ConvArgs& a, int64_t first, int64_t last) {
  const int64_t blocks = blocks_of(p.k, kBlockChannels), row_blocks = blocks_of(p.p, kBlockRows);
  for (int64_t task = first; task < last; ++task) {
    const int64_t block = task % blocks, rows = task / blocks % row_blocks, n = task / (blocks * row_blocks);
    const int64_t k_first = block * kBlockChannels, k_last = least(p.k, k_first + kBlockChannels);
    for (int64_t prow = rows * kBlockRows; prow < least(p.p, (rows + 1) * kBlockRows); ++prow) {
      Row row;
      row.entries = 0;
      const int64_t h_next = (prow + 1) * p.stride_h - p.pad_h_lo + p.r - 1;
      row.next = h_next > 0 && h_next < p.h ? h_next * a.x.row : 0;
      for (int64_t r = 0; r < p.r; ++r) {
        const int64_t h = source(prow, r, p.stride_h, p.pad_h_lo, 1, p.h);
        if (h < 0) continue;
        row.x[row.entries] = h * a.x.row, row.w[row.entries++] = r * kS * kPair;
      }
      for (int64_t q = 0; q < p.q; q += kPixels) {
        const int count = static_cast<int>(least(kPixels, p.q - q));
        for (int64_t k = k_first; k < k_last; k += kPair) {
          if (p.k - k >= kPair) step<kS, kStride, X>(p, a, row, n, prow, q, count, k, Full32{});
          else step<kS, kStride, X>(p, a, row, n, prow, q, count, k, Part32{p.k - k});
        }
      }
    }
  }
}

template <class X>
void run_of(const ConvProblem& p, const ConvArgs& a, int64_t first, int64_t last) {
  if (p.s == 3 && p.stride_w == 1) return run_width<3, 1, X>(p, a, first, last);
  if (p.s == 3) return run_width<3, 2, X>(p, a, first, last);
  if (p.s == 5 && p.stride_w == 1) return run_width<5, 1, X>(p, a, first, last);
  if (p.s == 5) return run_width<5, 2, X>(p, a, first, last);
  run_width<7, 1, X>(p, a, first, last);
}
void run(const ConvProblem& p, const ConvArgs& a, int64_t, int64_t first, int64_t last, void*) {
  if (p.x_bf16) run_of<bf16>(p, a, first, last);
  else run_of<float>(p, a, first, last);
}

const char* refuse(const ConvProblem& p) {
  if (p.bf16 == Bf16::kOff) return "float32: bfloat16 is not asked for";
  if (p.transposed) return "transposed: stays float32";
  if (p.groups != p.c || p.k != p.c) return "not one channel and one filter a group";
  if (p.d != 1 || p.t != 1 || p.z != 1 || p.dil_h != 1 || p.dil_w != 1) return "three dimensions or dilation: stays float32";
  const bool loop = p.stride_w == 1 ? p.s == 3 || p.s == 5 || p.s == 7 : p.stride_w == 2 && (p.s == 3 || p.s == 5);
  if (!loop || p.r > kMaxRows) return "no loop for this width and stride: stays float32";
  return nullptr;
}

double cost(const ConvProblem& p) {
  return static_cast<double>(p.p * p.q * p.r * p.s * blocks_of(p.k, kPair)) * 3.0 / kVectorsPerMicrosecond;
}
int64_t scratch_bytes(const ConvProblem&) { return 0; }
int64_t tasks(const ConvProblem& p, int64_t images) { return images * blocks_of(p.p, kBlockRows) * blocks_of(p.k, kBlockChannels); }
int64_t packed_bytes(const ConvProblem& p) { return blocks_of(p.k, kPair) * p.r * p.s * kPair * 4; }
int64_t pack_tasks(const ConvProblem&) { return 1; }
void pack(const ConvProblem& p, const void* weights, const void* scale, void* packed, int64_t, int64_t) {
  const float *w = static_cast<const float*>(weights), *s = static_cast<const float*>(scale);
  float* out = static_cast<float*>(packed);
  for (int64_t block = 0; block < p.k; block += kPair)
    for (int64_t tap = 0; tap < p.r * p.s; ++tap)
      for (int64_t half = 0; half < 2; ++half)
        for (int64_t l = 0; l < kLanes; ++l, ++out) {
          const int64_t k = block + 2 * l + half;
          *out = k >= p.k ? 0.f : s ? w[tap * p.k + k] * s[k] : w[tap * p.k + k];
        }
}

}  // namespace

extern const ConvKernel conv_depthwise_bf16;
const ConvKernel conv_depthwise_bf16 = {"conv_depthwise_bf16", refuse, cost, scratch_bytes, tasks, run, packed_bytes, pack_tasks, pack, true};

}  // namespace CK_ISA
}  // namespace ck
