// conv_weight_depthwise.cpp: the gradient of the weights of depthwise convolutions and of narrow groups, float32.
//
// Computes  dw[t,r,s,c,k] = sum_m x[m moved by t,r,s][g*Cg + c] * dy[m][k],  g = k / Kg; Cg = Kg in {1, 2, 4, 8} < kLanes
// Layout    x NDHWC, dy NZPQK, dw T R S Cg K; partial sums [part][vector][t][r][s][c][lane]
// Tiling    a vector holds kLanes / Cg whole groups, of x and of dy alike. Input c of every group at once is a shuffle of x's vector
//           (conv_grouped.cpp), depthwise it is the vector itself. Registers = the sums of one filter row, kept along an output row:
//
//             dy   |0|1|2|3|4| ...     each dy vector feeds S * Cg FMAs; x's vectors come from the first-level cache,
//             x   |0|1|2|3|4|5| ...    where the rows above and below were just read
//
//           3x3 and 5x5 with Cg = 1 keep the whole window's sums (9, 25 of 32 registers; with 16 registers a row at a time).
//           A task is one part of the batch's rows and a block of vectors; phase 1 adds the parts in order. What the next row will read is
//           fetched on the way: 1.3 to 2 times as fast on one core (Granite Rapids, November 2026).
// Cost      2*NZPQ*K*TRS*Cg flop; bound by reading x and dy
// Refuses   transposed; Cg != Kg; Cg not 1, 2, 4 or 8, or not below the vector
// Source    Howard et al. 2017, arXiv:1704.04861, sec. 3.1 (the layers)
#include "cpu/pixels.h"
#include "simd/vec.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int64_t kBlockVecs = 16;    // lines of the cache that lie side by side in a pixel
constexpr int64_t kBlockPixels = 32;  // of a row, for all vectors of the block: memory is read in the order in which it lies
constexpr int64_t kTasks = 16;

CK_INLINE int64_t vecs_of(const ConvProblem& p) { return (p.k + kLanes - 1) / kLanes; }
CK_INLINE int64_t blocks_of(const ConvProblem& p) { return (vecs_of(p) + kBlockVecs - 1) / kBlockVecs; }
CK_INLINE int64_t rows_of(const ConvProblem& p, int64_t images) { return images * p.z * p.p; }
CK_INLINE int64_t part_floats(const ConvProblem& p) { return vecs_of(p) * kLanes * p.t * p.r * p.s * (p.c / p.groups); }
CK_INLINE int64_t parts_of(const ConvProblem& p, int64_t images) {
  const int64_t parts = least((kTasks + blocks_of(p) - 1) / blocks_of(p), (rows_of(p, images) + 3) / 4);
  return most(1, parts);
}

// x's lane (l / kGroup) * kGroup + c in every lane l.
template <int kGroup, int kC>
CK_INLINE vf spread(vf x) {
  if constexpr (kGroup == 1) return x;
  vi lane;
  CK_UNROLL
  for (int l = 0; l < kLanes; ++l) lane[l] = l / kGroup * kGroup + kC;
  return __builtin_shuffle(x, lane);
}

template <int kGroup>
CK_INLINE void multiply(vf x, vf dy, vf* acc) {
  acc[0] += spread<kGroup, 0>(x) * dy;
  if constexpr (kGroup > 1) acc[1] += spread<kGroup, 1>(x) * dy;
  if constexpr (kGroup > 2) {
    acc[2] += spread<kGroup, 2>(x) * dy;
    acc[3] += spread<kGroup, 3>(x) * dy;
  }
  if constexpr (kGroup > 4) {
    acc[4] += spread<kGroup, 4>(x) * dy;
    acc[5] += spread<kGroup, 5>(x) * dy;
    acc[6] += spread<kGroup, 6>(x) * dy;
    acc[7] += spread<kGroup, 7>(x) * dy;
  }
}

// One output row against kR input rows (null: outside) of a window kS wide, dilation 1 along the row.
struct Line {
  const float* const* x;  // [kR]: pixel 0 of the input row, at the vector's channels
  const float* dy;
  float* sums;  // [kR][kS][kGroup][lane]
  int64_t x_pixel, dy_pixel, first, last, w, stride, pad;  // pixels [first, last) of the output row
  const float* x_next;                                     // pixel 0 of the first input row that the next output row adds
  int64_t x_row, dy_row;
};

// Asks for what the next output row will read below this pixel: too far apart for the hardware to guess.
CK_INLINE void fetch(const Line& t, int64_t q, int64_t w0) {
  const float* x = t.x_next + w0 * t.x_pixel;
  __builtin_prefetch(t.dy + q * t.dy_pixel + t.dy_row, 0, 2);
  __builtin_prefetch(x, 0, 2);
  if (t.stride == 1) return;
  __builtin_prefetch(x + t.x_pixel, 0, 2);
  __builtin_prefetch(x + t.x_row, 0, 2);
  __builtin_prefetch(x + t.x_row + t.x_pixel, 0, 2);
}


template <int kGroup, int kR, int kS, bool kEdge, class IO>
CK_INLINE void pixel(const Line& t, int64_t q, vf (&acc)[kR][kS][kGroup], IO io) {
  const vf dy = io.load(t.dy + q * t.dy_pixel);
  const int64_t w0 = q * t.stride - t.pad;
  fetch(t, q, w0);
  CK_UNROLL
  for (int r = 0; r < kR; ++r) {
    if (kR > 1 && kEdge && !t.x[r]) continue;
    const float* x = t.x[r] + w0 * t.x_pixel;
    CK_UNROLL
    for (int s = 0; s < kS; ++s) {
      if (kEdge && static_cast<uint64_t>(w0 + s) >= static_cast<uint64_t>(t.w)) continue;
      multiply<kGroup>(io.load(x + s * t.x_pixel), dy, acc[r][s]);
    }
  }
}

template <int kGroup, int kR, int kS, class IO>
CK_INLINE void line(const Line& t, IO io) {
  vf acc[kR][kS][kGroup];
  CK_UNROLL
  for (int i = 0; i < kR * kS * kGroup; ++i) (&acc[0][0][0])[i] = load(t.sums + i * kLanes);
  bool rows = true;
  for (int r = 0; r < kR; ++r) rows &= t.x[r] != nullptr;
  // Pixels whose window lies inside the row: [from, to).
  const int64_t enters = t.pad > 0 ? (t.pad + t.stride - 1) / t.stride : 0, space = t.w - kS + t.pad;
  const int64_t from = least(t.last, most(t.first, enters));
  const int64_t to = rows && space >= 0 ? most(from, least(t.last, space / t.stride + 1)) : from;
  for (int64_t q = t.first; q < from; ++q) pixel<kGroup, kR, kS, true>(t, q, acc, io);
  for (int64_t q = from; q < to; ++q) pixel<kGroup, kR, kS, false>(t, q, acc, io);
  for (int64_t q = to; q < t.last; ++q) pixel<kGroup, kR, kS, true>(t, q, acc, io);
  CK_UNROLL
  for (int i = 0; i < kR * kS * kGroup; ++i) store(t.sums + i * kLanes, (&acc[0][0][0])[i]);
}

// kR x kS = 0: any window, tap by tap.
template <int kGroup, int kR, int kS>
void run_window(const ConvProblem& p, const ConvWeightArgs& a, int64_t images, int64_t first, int64_t last, float* parts) {
  const int64_t blocks = blocks_of(p), part_count = parts_of(p, images), rows = rows_of(p, images), taps = p.t * p.r * p.s;
  constexpr int kRows = kR ? kR : 1, kColumns = kS ? kS : 1;
  for (int64_t task = first; task < last; ++task) {
    const int64_t block = task % blocks, part = task / blocks;
    const int64_t v_first = block * kBlockVecs, v_last = least(vecs_of(p), v_first + kBlockVecs);
    float* sums = parts + part * part_floats(p);
    for (int64_t i = v_first * kLanes * taps * kGroup; i < v_last * kLanes * taps * kGroup; i += kLanes) store(sums + i, splat(0.f));
    for (int64_t row = rows * part / part_count; row < rows * (part + 1) / part_count; ++row) {
      const int64_t n = row / (p.z * p.p), z = row / p.p % p.z, prow = row % p.p;
      for (int64_t q = 0; q < p.q; q += kBlockPixels)
        for (int64_t v = v_first; v < v_last; ++v) {
          const int64_t k = v * kLanes;
          float* sums_v = sums + k * taps * kGroup;
          const float* dy = at<const float>(a.dy, n, z, prow, 0) + k;
          const float* next = at<const float>(a.x, n, z * p.stride_d, prow * p.stride_h - p.pad_h_lo + p.r, 0) + k;
          for (int64_t t = 0; t < p.t; ++t)
            for (int64_t r = 0; r < p.r; r += kRows) {
              const int64_t d = source(z, t, p.stride_d, p.pad_d_lo, p.dil_d, p.d);
              const float* x[kRows];
              bool any = false;
              for (int i = 0; i < kRows; ++i) {
                const int64_t h = source(prow, r + i, p.stride_h, p.pad_h_lo, p.dil_h, p.h);
                x[i] = d < 0 || h < 0 ? nullptr : at<const float>(a.x, n, d, h, 0) + k;
                any |= x[i] != nullptr;
              }
              if (!any) continue;
              for (int64_t s = 0; s < p.s; s += kColumns) {
                const Line part{x,          dy, sums_v + ((t * p.r + r) * p.s + s) * kGroup * kLanes, a.x.pixel,  a.dy.pixel,
                                q,          least(p.q, q + kBlockPixels), p.w, p.stride_w, p.pad_w_lo - s * p.dil_w, next, a.x.row, a.dy.row};
                if (p.k - k >= kLanes) line<kGroup, kRows, kColumns>(part, Full{});
                else line<kGroup, kRows, kColumns>(part, Part{static_cast<int>(p.k - k)});
              }
            }
        }
    }
  }
}

template <int kGroup>
void run_group(const ConvProblem& p, const ConvWeightArgs& a, int64_t images, int64_t first, int64_t last, float* parts) {
  constexpr bool kMany = kTile[2] > 8;  // 32 registers
  const bool plain = p.dil_w == 1;
  if constexpr (kGroup == 1 && kMany) {
    if (plain && p.r == 3 && p.s == 3) return run_window<1, 3, 3>(p, a, images, first, last, parts);
    if (plain && p.r == 5 && p.s == 5) return run_window<1, 5, 5>(p, a, images, first, last, parts);
  }
  if constexpr (kGroup * 3 <= 12 || kMany)
    if (plain && p.s == 3) return run_window<kGroup, 1, 3>(p, a, images, first, last, parts);
  if constexpr (kGroup * 5 <= 10)
    if (plain && p.s == 5) return run_window<kGroup, 1, 5>(p, a, images, first, last, parts);
  run_window<kGroup, 0, 0>(p, a, images, first, last, parts);
}

// Phase 1: the parts of one tap, added in order, to dw.
void add_parts(const ConvProblem& p, int64_t images, int64_t task, const float* parts, float* dw) {
  const int64_t group = p.c / p.groups, rows = p.t * p.r * p.s * group, part_count = parts_of(p, images), part = part_floats(p);
  for (int64_t c = task * group; c < (task + 1) * group; ++c)
    for (int64_t v = 0; v < vecs_of(p); ++v) {
      const float* from = parts + (v * rows + c) * kLanes;
      vf sum = load(from);
      for (int64_t i = 1; i < part_count; ++i) sum += load(from + i * part);
      float* to = dw + c * p.k + v * kLanes;
      const int64_t n = p.k - v * kLanes;
      if (n >= kLanes) store(to, sum);
      else store_n(to, sum, static_cast<int>(n));
    }
}

void run(const ConvProblem& p, const ConvWeightArgs& a, int64_t images, int phase, int64_t first, int64_t last, void*, void* shared) {
  float* parts = static_cast<float*>(shared);
  if (phase == 1) {
    for (int64_t task = first; task < last; ++task) add_parts(p, images, task, parts, static_cast<float*>(a.dw));
    return;
  }
  switch (p.c / p.groups) {
    case 1: return run_group<1>(p, a, images, first, last, parts);
    case 2: return run_group<2>(p, a, images, first, last, parts);
    // A group that fills a vector was refused: those cases only have to compile.
    case 4: return run_group<(kLanes > 4 ? 4 : 2)>(p, a, images, first, last, parts);
    case 8: return run_group<(kLanes > 8 ? 8 : 2)>(p, a, images, first, last, parts);
  }
}

const char* refuse(const ConvProblem& p) {
  if (p.transposed) return "transposed";
  const int64_t group = p.c / p.groups;
  if (p.c != p.k) return "as many filters as channels only";
  if (group != 1 && group != 2 && group != 4 && group != 8) return "groups of 1, 2, 4 or 8 channels only";
  if (group >= kLanes) return "a group fills a vector: conv_weight_gemm";
  return nullptr;
}
double cost(const ConvProblem& p) {
  return static_cast<double>(p.z * p.p * p.q * p.t * p.r * p.s * (p.c / p.groups) * vecs_of(p)) * 1.2 / 3000.0;
}
int64_t scratch_bytes(const ConvProblem&) { return 0; }
int64_t shared_bytes(const ConvProblem& p, int64_t images) { return parts_of(p, images) * part_floats(p) * 4; }
int64_t phases(const ConvProblem&, int64_t) { return 2; }
int64_t tasks(const ConvProblem& p, int64_t images, int phase) {
  return phase == 0 ? parts_of(p, images) * blocks_of(p) : p.t * p.r * p.s;
}

}  // namespace

extern const ConvWeightKernel conv_weight_depthwise;
const ConvWeightKernel conv_weight_depthwise = {"conv_weight_depthwise", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run};

}  // namespace CK_ISA
}  // namespace ck
