// conv_winograd_small.cpp: stride 1 3x3 convolution of small maps by Winograd's F(4x4, 3x3), from the weights as they are; float32.
//
// A 7x7 map has 4 tiles: conv_winograd.cpp's U = G g G' is 4 times the weights and each of its vectors, once it has come from memory, serves
// four FMAs. Here the weights themselves come from memory and U exists in registers only:
//
//     weights [c][3x3]  --  row i of G g G': 6 vectors  --  x  V [i][6][4 tiles][c], a broadcast each  -->  24 sums, which stay in registers
//
// Computes  Y = A' [ sum_c (G g_c G') . (B' d_c B) ] A, then the epilogue. G holds the powers of the points, their scale has gone into A'
// Layout    x NHWC, y NPQK; weights [vector of filters][c][3x3][kLanes]; V [group of tiles][chunk of kDepth channels][6][6][kGroup][kDepth];
//           M [group][6][6][kGroup][kLanes]: the sums of chunks are added to it (shorter sums: less than direct's error from 256 channels on)
// Tiling    a task is a block of tiles, whose V stays in the second-level cache, times a vector of filters. Group by group, chunk by chunk: a chunk's
//           weights, V and M fit the first-level cache for the six rows that read them. Blocks run across images.
// Cost      2*36/16*NPQKC flop and 60 instructions a group, channel and vector of filters for U; 33 loads for 24 FMAs and 10 others bound it
// Refuses   what conv_winograd refuses, but not lean
// Tried     U written to scratch for gemm.h's tile: six cycles a line of the second-level cache, as long as 16 tiles' products (Granite Rapids,
//           November 2026); one row of U in the first-level cache: 1.4 times slower at 7x7x512 (the same)
// Source    as winograd.h
#include "core/machine.h"
#include "cpu/winograd.h"
#include "simd/shuffle.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int kIn = 6, kOut = 4, kProducts = kIn * kIn, kTaps = 9;
constexpr int kDepth = 32;                                                 // channels of a chunk
constexpr int kGroup = kRegisters == 32 ? 4 : 2;                           // tiles whose sums of a row of products fit the registers
constexpr int64_t kV = kIn * kGroup * kDepth, kM = kIn * kGroup * kLanes;  // floats of one of their six rows

struct Layout {
  int64_t rows, columns, tiles;  // tiles of one image
  int64_t block, blocks;         // tiles of a block at most, blocks of all images
  int64_t chunks, panels;
};

CK_INLINE Layout layout_of(const ConvProblem& p, int64_t images) {
  Layout l;
  l.rows = ceil_div(p.p, kOut);
  l.columns = ceil_div(p.q, kOut);
  l.tiles = l.rows * l.columns;
  l.chunks = ceil_div(p.c, kDepth);
  l.panels = ceil_div(p.k, kLanes);
  l.blocks = most(1, ceil_div(images * l.tiles, most(2 * kGroup, l2_bytes / 3 / (kProducts * 4 * kDepth * l.chunks))));
  l.block = ceil_div(images * l.tiles, l.blocks);
  return l;
}

// A block's groups have nearly as many tiles each.
struct Groups {
  int count, groups;
  CK_INLINE_MEMBER int first(int g) const { return count * g / groups; }
};

template <bool kEdge, class IO>
CK_INLINE void scatter(const ConvProblem& p, const View& x, const float* x_n, int64_t h0, int64_t w0, float* v, IO io) {
  vf d[kProducts];
  load_tile<Whole, Whole, kEdge>(p, x, x_n, h0, w0, d, io);
  CK_UNROLL
  for (int i = 0; i < kIn; ++i)
    CK_UNROLL
    for (int j = 0; j < kIn; ++j) store(v + i * kV + j * kGroup * kDepth, d[i * kIn + j]);
}

void transform_inputs(const ConvProblem& p, const ConvArgs& a, const Layout& l, int64_t tile, Groups in, float* v) {
  for (int g = 0; g < in.groups; ++g)
    for (int t = in.first(g); t < in.first(g + 1); ++t) {
      const int64_t n = (tile + t) / l.tiles, i = (tile + t) % l.tiles;
      const int64_t h0 = i / l.columns * kOut - p.pad_h_lo, w0 = i % l.columns * kOut - p.pad_w_lo;
      const bool inside = h0 >= 0 && w0 >= 0 && h0 + kIn <= p.h && w0 + kIn <= p.w;
      const float* x_n = at<const float>(a.x, n, 0, 0, 0);
      for (int64_t c = 0; c < p.c; c += kLanes) {
        float* v_c = v + (g * l.chunks + c / kDepth) * kIn * kV + (t - in.first(g)) * kDepth + c % kDepth;
        if (p.c - c < kLanes) scatter<true>(p, a.x, x_n + c, h0, w0, v_c, Part{static_cast<int>(p.c - c)});
        else if (inside) scatter<false>(p, a.x, x_n + c, h0, w0, v_c, Full{});
        else scatter<true>(p, a.x, x_n + c, h0, w0, v_c, Full{});
      }
    }
}

template <int kTiles>
CK_INLINE void multiply(const float* v, vf u, vf (&sum)[kTiles]) {
  CK_UNROLL
  for (int t = 0; t < kTiles; ++t) add_product(sum[t], v + t * kDepth, u);
}

// One row of products of kTiles tiles over a chunk's channels. Each fetches a sixth of the weights of a later chunk, a line and a half a channel.
template <int kRow, int kTiles>
void multiply_row(const float* v, const float* w, int64_t depth, bool first, float* m, const float* fetch) {
  constexpr int kStep = kGroup * kDepth, kFetch = kTaps * kLanes / kIn, kStride = 3 * kLanes;  // from row to row of the filter
  vf sum[kIn][kTiles];
  CK_UNROLL
  for (int j = 0; j < kIn; ++j)
    CK_UNROLL
    for (int t = 0; t < kTiles; ++t) sum[j][t] = splat(0.f);
  v += kRow * kV, m += kRow * kM, fetch += kRow * kDepth * kFetch;
  for (int64_t c = 0; c < depth; ++c, ++v, w += kTaps * kLanes, fetch += kFetch) {
    __builtin_prefetch(fetch, 0, 2);
    __builtin_prefetch(fetch + 16, 0, 2);
    const vf h0 = at_point<kRow>(w, kStride), h1 = at_point<kRow>(w + kLanes, kStride), h2 = at_point<kRow>(w + 2 * kLanes, kStride);
    multiply(v, h0, sum[0]);
    multiply(v + 5 * kStep, h2, sum[5]);
    const vf at_p = plus(h0, h2, kP2);
    multiply(v + kStep, plus(at_p, h1, kP), sum[1]);
    multiply(v + 2 * kStep, minus(at_p, h1, kP), sum[2]);
    const vf at_q = plus(h0, h2, kQ2);
    multiply(v + 3 * kStep, plus(at_q, h1, kQ), sum[3]);
    multiply(v + 4 * kStep, minus(at_q, h1, kQ), sum[4]);
  }
  CK_UNROLL
  for (int j = 0; j < kIn; ++j)
    CK_UNROLL
    for (int t = 0; t < kTiles; ++t) {
      float* m_t = m + (j * kGroup + t) * kLanes;
      store(m_t, first ? sum[j][t] : load(m_t) + sum[j][t]);
    }
}

template <int kTiles>
void multiply_rows(const float* v, const float* w, int64_t depth, bool first, float* m, const float* fetch) {
  multiply_row<0, kTiles>(v, w, depth, first, m, fetch);
  multiply_row<1, kTiles>(v, w, depth, first, m, fetch);
  multiply_row<2, kTiles>(v, w, depth, first, m, fetch);
  multiply_row<3, kTiles>(v, w, depth, first, m, fetch);
  multiply_row<4, kTiles>(v, w, depth, first, m, fetch);
  multiply_row<5, kTiles>(v, w, depth, first, m, fetch);
}

using MultiplyFn = void (*)(const float*, const float*, int64_t, bool, float*, const float*);
constexpr MultiplyFn kMultiply[] = {nullptr, multiply_rows<1>, multiply_rows<2>, multiply_rows<kGroup / 2 + 1>, multiply_rows<kGroup>};

CK_INLINE float* m_of(float* v, const Layout& l) { return v + ceil_div(l.block, kGroup) * l.chunks * kIn * kV; }

void run(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t first, int64_t last, void* scratch) {
  const Layout l = layout_of(p, images);
  float *v = static_cast<float*>(scratch), *m = m_of(v, l);
  const int64_t tiles = images * l.tiles, w_depth = kDepth * kTaps * kLanes;
  int64_t transformed = -1;
  Groups in{};
  for (int64_t task = first; task < last; ++task) {
    const int64_t block = task / l.panels, panel = task % l.panels, tile = tiles * block / l.blocks;
    if (block != transformed) {
      in.count = static_cast<int>(tiles * (block + 1) / l.blocks - tile);
      in.groups = static_cast<int>(ceil_div(in.count, kGroup));
      transform_inputs(p, a, l, tile, in, v);
      transformed = block;
    }
    const float* w = static_cast<const float*>(a.weights) + panel * p.c * kTaps * kLanes;
    for (int g = 0; g < in.groups; ++g)
      for (int64_t i = 0; i < l.chunks; ++i) {
        // The first group brings the weights, those of the next panel after the last chunks.
        const float *w_i = w + i * w_depth, *fetch = g == 0 ? w_i + 2 * w_depth : w_i;
        kMultiply[in.first(g + 1) - in.first(g)](v + (g * l.chunks + i) * kIn * kV, w_i, least(kDepth, p.c - i * kDepth), i == 0, m + g * kIn * kM, fetch);
      }
    const int64_t k = panel * kLanes;
    for (int g = 0; g < in.groups; ++g)
      for (int t = in.first(g); t < in.first(g + 1); ++t) {
        const int64_t n = (tile + t) / l.tiles, i = (tile + t) % l.tiles, row = i / l.columns * kOut, column = i % l.columns * kOut;
        const float* m_t = m + g * kIn * kM + (t - in.first(g)) * kLanes;
        if (p.k - k >= kLanes) store_tile<Whole, Whole>(p, a, n, row, column, m_t, kM, kGroup * kLanes, k, Full{});
        else store_tile<Whole, Whole>(p, a, n, row, column, m_t, kM, kGroup * kLanes, k, Part{static_cast<int>(p.k - k)});
      }
  }
}

const char* refuse(const ConvProblem& p) { return refuse_winograd(p, 3); }

int64_t packed_bytes(const ConvProblem& p) { return ceil_div(p.k, kLanes) * p.c * kTaps * kLanes * 4; }

double cost(const ConvProblem& p) {
  const Layout l = layout_of(p, 1);
  const double groups = static_cast<double>(ceil_div(l.tiles, kGroup)), tiles = static_cast<double>(l.tiles);
  const double vecs = static_cast<double>(l.panels), c = static_cast<double>(p.c);
  const double products = (groups * 100 + tiles * 62) * vecs * c, transforms = tiles * 170 * (vecs + c / kLanes);
  return (products + transforms) / kVectorsPerMicrosecond + static_cast<double>(packed_bytes(p)) / kBytesPerMicrosecond;
}

int64_t scratch_bytes(const ConvProblem& p) {
  const Layout l = layout_of(p, 1 << 20);  // blocks are as large as they get
  return align64((l.block + kGroup) / kGroup * kIn * (l.chunks * kV + kM) * 4);
}

int64_t tasks(const ConvProblem& p, int64_t images) {
  const Layout l = layout_of(p, images);
  return l.blocks * l.panels;
}

int64_t pack_tasks(const ConvProblem& p) { return ceil_div(p.k, kLanes); }

void pack(const ConvProblem& p, const void* weights, const void* scale, void* packed, int64_t first, int64_t last) {
  const float* w = static_cast<const float*>(weights);
  const float* s = static_cast<const float*>(scale);
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t k = panel * kLanes;
    const int have = static_cast<int>(least(kLanes, p.k - k));
    const vf factor = s ? load_n(s + k, have) : splat(1.f);
    float* out = static_cast<float*>(packed) + k * p.c * kTaps;
    for (int64_t c = 0; c < p.c; ++c)
      for (int64_t tap = 0; tap < kTaps; ++tap, out += kLanes) store(out, load_n(w + (tap * p.c + c) * p.k + k, have) * factor);
  }
}

// The same from the weights 3 3 K C of the layer whose gradient this is, by squares of filters and channels.
void pack_swapped(const ConvProblem& p, const void* weights, bool flip, void* packed, int64_t first, int64_t last) {
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t k = panel * kLanes;
    float* out = static_cast<float*>(packed) + k * p.c * kTaps;
    for (int64_t tap = 0; tap < kTaps; ++tap) {
      const float* w = static_cast<const float*>(weights) + (flip ? kTaps - 1 - tap : tap) * p.k * p.c;
      for (int64_t c = 0; c < p.c; c += kLanes) {
        const int have = static_cast<int>(least(kLanes, p.c - c));
        vf square[kLanes];
        CK_UNROLL
        for (int l = 0; l < kLanes; ++l) square[l] = k + l < p.k ? load_n(w + (k + l) * p.c + c, have) : splat(0.f);
        transpose(square);
        CK_UNROLL
        for (int l = 0; l < kLanes; ++l)
          if (l < have) store(out + ((c + l) * kTaps + tap) * kLanes, square[l]);
      }
    }
  }
}

}  // namespace

extern const ConvKernel conv_winograd_small;
const ConvKernel conv_winograd_small = {"conv_winograd_small", refuse,     cost, scratch_bytes, tasks,       run,
                                        packed_bytes,          pack_tasks, pack, false,         pack_swapped, true};

}  // namespace CK_ISA
}  // namespace ck
