// gemm.h: the register-blocked matrix product at the heart of the dense convolutions (direct, im2col, 1x1) and of Dense.
//
// Computes  y[i,k] = act(sum_e x_e[i][c] * w[e,c,k] + bias[k] + residual[i,k])   for a tile of pixels i and a panel of filters k
//           where e runs over the filter's taps and x_e[i] is a pointer to the pixel that tap e of output i reads (the "indirect" GEMM)
// Layout    w: panels of nv vectors, [panel][tap][c][nv * kLanes], zero beyond the last filter
//
//              nv vectors of filters (loaded once per c)
//            +-----------+-----------+
//    x[0]  --| acc[0][0] | acc[0][1] |     one broadcast of x[i][c] feeds nv FMAs: (tile + nv) loads for tile * nv FMAs,
//    x[1]  --| acc[1][0] | acc[1][1] |     16 / 28 = 0.57 loads an FMA at 14 x 2 (AVX-512)
//     ...    |    ...    |    ...    |
//
// Weights that are used once or twice come from memory: the hardware's stream stops at every 4 KB page, so they are fetched ahead.
//
// Order of sums: tap by tap, channel by channel, one chain an output: the same bits for every tile shape.
// Tried     fetching the next panel of w ahead as well: 5 % slower (ResNet-50 N=1, Zen 4, November 2026): the hardware follows one stream by itself
//           a branch around the fetch of x where there is nothing to fetch: no gain
//           x copied to [chunk][pixel][lane] first, to need one pointer only: a copy of each tap costs more than it gains (Granite Rapids, November 2026)
//           one index for all pixels instead of pointers that move every 16 channels: 14 pointers, w and the index do not fit the general
//           registers: 82 % of peak in place of 88 (Granite Rapids, November 2026)
//           all lines of the next weights by the first of few tiles: 15 % of a layer slower than by all tiles, eight of sixteen lines (the same)
//           fetching the first weights of a later step at the end of a step: 1 % of ResNet-50 at N=1, not worth the plan's part in it (the same)
//           sums as a*b+c, left to the compiler: it lets them wander through the registers, 0 to 4 % slower from one edit to the next
// Source    Dukhan 2019, arXiv:1907.02129 (indirect convolution); Goto and van de Geijn 2008 (panels); BLIS (microkernel)
#pragma once
#include "core/kernel.h"
#include "core/machine.h"
#include "simd/math.h"
#include "simd/vec.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int kMaxVecs = 3;
constexpr int64_t kWeightsAhead = 4096;  // floats
constexpr int kFetch = 8 * 16;           // floats
constexpr int kQuad = 4;
constexpr int kChunk = 16;  // channels between two moves of the pointers

struct Tile {
  const float* const* x;  // [entries][pixels]
  const int32_t* tap;     // [entries]: which tap of the panel each entry multiplies
  int64_t entries, c;     // c: channels (or, for rows of pixels, window * channels) reduced per entry
  const float* w;         // the panel
  float* y;
  const float* residual;  // or null
  int64_t y_step, residual_step;
  const float* bias;  // or null
  int64_t k;          // filters that exist in this panel
  const Activation* act;
  int64_t x_channel = 0;  // first channel read: the start of a group
  int64_t x_step = 0;     // floats from pixel to pixel, for even_tile.h
  // On the way lines are fetched into the second-level cache: with every chunk of channels eight of x + ahead of each entry (what the next tile
  // will read), or of `fetch`, which then moves by fetch_step floats (weights that will be read soon and come from memory), or as many of these
  // as w has.
  int64_t ahead = 0;
  const float* fetch = nullptr;
  int fetch_step = kFetch;
  bool fetch_all = false;
};

CK_INLINE vf load_some(const float* p, int64_t n) { return n >= kLanes ? load(p) : load_n(p, static_cast<int>(n)); }
CK_INLINE void store_some(float* p, vf v, int64_t n) {
  if (n >= kLanes) store(p, v);
  else store_n(p, v, static_cast<int>(n));
}

// kChannels channels of one tap: all offsets from the pointers are constants.
template <int kPixels, int kVecs, int kChannels>
CK_INLINE void multiply_chunk(const float* const (&x)[kPixels], const float* w, vf (&acc)[kPixels][kVecs]) {
  CK_UNROLL
  for (int c = 0; c < kChannels; c += kQuad) {
    Quad a[kPixels];
    CK_UNROLL
    for (int i = 0; i < kPixels; ++i) a[i].load(x[i] + c);
    CK_UNROLL
    for (int u = 0; u < kQuad; ++u) {
      vf b[kVecs];
      CK_UNROLL
      for (int j = 0; j < kVecs; ++j) b[j] = load(w + ((c + u) * kVecs + j) * kLanes);
      CK_UNROLL
      for (int i = 0; i < kPixels; ++i) {
        const vf a_u = a[i][u];
        CK_UNROLL
        for (int j = 0; j < kVecs; ++j) add_product(acc[i][j], a_u, b[j]);
      }
    }
  }
}

// The epilogue of a tile and its only store: in registers where it is a few instructions.
template <int kPixels, int kVecs>
CK_INLINE void finish(const Tile& t, vf (&acc)[kPixels][kVecs]) {
  constexpr int kStep = kVecs * kLanes;
  if (t.bias) {
    CK_UNROLL
    for (int j = 0; j < kVecs; ++j) {
      if (t.k <= j * kLanes) break;
      const vf b = load_some(t.bias + j * kLanes, t.k - j * kLanes);
      CK_UNROLL
      for (int i = 0; i < kPixels; ++i) acc[i][j] += b;
    }
  }
  if (t.residual) {
    CK_UNROLL
    for (int j = 0; j < kVecs; ++j) {
      if (t.k <= j * kLanes) break;
      CK_UNROLL
      for (int i = 0; i < kPixels; ++i) acc[i][j] += load_some(t.residual + i * t.residual_step + j * kLanes, t.k - j * kLanes);
    }
  }
  if (t.act->kind == Act::kClamp) {
    const vf lo = splat(t.act->a);
    CK_UNROLL
    for (int i = 0; i < kPixels; ++i)
      CK_UNROLL
      for (int j = 0; j < kVecs; ++j) acc[i][j] = vmax(acc[i][j], lo);
    if (t.act->b < __builtin_inf()) {  // not ReLU
      const vf hi = splat(t.act->b);
      CK_UNROLL
      for (int i = 0; i < kPixels; ++i)
        CK_UNROLL
        for (int j = 0; j < kVecs; ++j) acc[i][j] = vmin(acc[i][j], hi);
    }
  }
  if (t.k >= kStep) {
    CK_UNROLL
    for (int i = 0; i < kPixels; ++i)
      CK_UNROLL
      for (int j = 0; j < kVecs; ++j) store(t.y + i * t.y_step + j * kLanes, acc[i][j]);
  } else {
    CK_UNROLL
    for (int j = 0; j < kVecs; ++j) {
      if (t.k <= j * kLanes) break;
      CK_UNROLL
      for (int i = 0; i < kPixels; ++i) store_some(t.y + i * t.y_step + j * kLanes, acc[i][j], t.k - j * kLanes);
    }
  }
  // The others need more registers than the tile leaves free: a second pass over what was just stored.
  if (t.act->kind != Act::kNone && t.act->kind != Act::kClamp) activate_rows(t.y, t.y_step, kPixels, t.k, *t.act);
}

// Asks for the lines that finish will write.
template <int kPixels, int kVecs>
CK_INLINE void fetch_outputs(const Tile& t) {
  CK_UNROLL
  for (int i = 0; i < kPixels; ++i)
    for (int j = 0; j < kVecs * kLanes; j += 16) __builtin_prefetch(t.y + i * t.y_step + j, 1);
}

template <int kPixels, int kVecs>
void tile(const Tile& t) {
  vf acc[kPixels][kVecs];
  CK_UNROLL
  for (int i = 0; i < kPixels; ++i)
    CK_UNROLL
    for (int j = 0; j < kVecs; ++j) acc[i][j] = splat(0.f);
  constexpr int kStep = kVecs * kLanes;
  if (t.ahead) fetch_outputs<kPixels, kVecs>(t);
  const float* fetch = t.fetch;
  for (int64_t e = 0; e < t.entries; ++e) {
    const float* const* x_e = t.x + e * kPixels;
    const float* w = t.w + t.tap[e] * t.c * kStep;
    const float* x[kPixels];
    CK_UNROLL
    for (int i = 0; i < kPixels; ++i) x[i] = x_e[i] + t.x_channel;
    if (!t.fetch) fetch = x[0] + t.ahead;
    int64_t c = t.c;
    for (; c >= kChunk; c -= kChunk, w += kChunk * kStep, fetch += t.fetch_step) {
      CK_UNROLL
      for (int i = 0; i < kFetch; i += 16) __builtin_prefetch(fetch + i, 0, 2);
      if (t.fetch_all) {
        CK_UNROLL
        for (int i = kFetch; i < kChunk * kStep; i += 16) __builtin_prefetch(fetch + i, 0, 2);
      }
      multiply_chunk<kPixels, kVecs, kChunk>(x, w, acc);
      CK_UNROLL
      for (int i = 0; i < kPixels; ++i) x[i] += kChunk;
    }
    for (; c >= kQuad; c -= kQuad, w += kQuad * kStep) {
      multiply_chunk<kPixels, kVecs, kQuad>(x, w, acc);
      CK_UNROLL
      for (int i = 0; i < kPixels; ++i) x[i] += kQuad;
    }
    for (int64_t u = 0; u < c; ++u, w += kStep) {
      vf b[kVecs];
      CK_UNROLL
      for (int j = 0; j < kVecs; ++j) b[j] = load(w + j * kLanes);
      CK_UNROLL
      for (int i = 0; i < kPixels; ++i) {
        const vf a = splat(x[i][u]);
        CK_UNROLL
        for (int j = 0; j < kVecs; ++j) acc[i][j] += a * b[j];
      }
    }
  }
  finish(t, acc);
}

using TileFn = void (*)(const Tile&);

template <int kVecs, int... kPixels>
struct Tiles {
  static constexpr TileFn table[] = {nullptr, tile<kPixels, kVecs>...};
};

// The function for `pixels` x `vecs` of a table of register tiles; pixels <= kTile[vecs].
template <template <int, int...> class Table>
CK_INLINE auto tile_of(int vecs, int pixels) {
  using Functions = decltype(+Table<1, 1>::table);
#if defined(__AVX512F__)
  static constexpr Functions kTables[kMaxVecs + 1] = {nullptr, Table<1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14>::table,
                                                      Table<2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14>::table,
                                                      Table<3, 1, 2, 3, 4, 5, 6, 7, 8, 9>::table};
#elif defined(__aarch64__)
  static constexpr Functions kTables[kMaxVecs + 1] = {nullptr, Table<1, 1, 2, 3, 4, 5, 6, 7, 8>::table, Table<2, 1, 2, 3, 4, 5, 6, 7, 8>::table,
                                                      Table<3, 1, 2, 3, 4, 5, 6>::table};
#else
  static constexpr Functions kTables[kMaxVecs + 1] = {nullptr, Table<1, 1, 2, 3, 4, 5, 6>::table, Table<2, 1, 2, 3, 4, 5, 6>::table,
                                                      Table<3, 1, 2, 3, 4>::table};
#endif
  return kTables[vecs][pixels];
}

CK_INLINE TileFn tile_fn(int vecs, int pixels) { return tile_of<Tiles>(vecs, pixels); }

// How the filters of one group are cut into panels: pairs of vectors; an odd count ends in a panel of three (or is a single vector).
struct Panels {
  int64_t vecs, count, group_k;
};

CK_INLINE Panels panels_of(const ConvProblem& p) {
  const int64_t group_k = p.k / p.groups, vecs = (group_k + kLanes - 1) / kLanes;
  return {vecs, vecs <= 3 ? 1 : vecs / 2, group_k};
}
CK_INLINE int64_t panel_first(const Panels&, int64_t i) { return 2 * i; }
CK_INLINE int panel_width(const Panels& s, int64_t i) { return static_cast<int>(i + 1 == s.count ? s.vecs - 2 * i : 2); }

// The share of a panel's `floats`, all used by `tiles` tiles, that tile `i` fetches: an even pace. More than eight lines a chunk hold up the
// loads of what is in the second-level cache (both wait in the same buffers): beyond these the hardware's own stream is better.
CK_INLINE void fetch_share(Tile& t, const float* next, int64_t floats, int width, int64_t i, int64_t tiles) {
  t.fetch = next + floats * i / tiles;
  t.fetch_step = static_cast<int>((width + tiles - 1) / tiles) * kChunk;
}

CK_INLINE int64_t taps_of(const ConvProblem& p) { return p.t * p.r * p.s; }

CK_INLINE int64_t gemm_packed_bytes(const ConvProblem& p) {
  return p.groups * panels_of(p).vecs * kLanes * taps_of(p) * (p.c / p.groups) * static_cast<int64_t>(sizeof(float));
}

// T R S C/G K -> [group][panel][tap][c][nv * kLanes]
CK_INLINE int64_t gemm_pack_tasks(const ConvProblem& p) { return p.groups * panels_of(p).count; }

CK_INLINE void gemm_pack(const ConvProblem& p, const void* weights, const void* scale, void* packed, int64_t first, int64_t last) {
  const float* w = static_cast<const float*>(weights);
  const float* s = static_cast<const float*>(scale);
  const Panels panels = panels_of(p);
  const int64_t rows = taps_of(p) * (p.c / p.groups);
  for (int64_t task = first; task < last; ++task) {
    const int64_t g = task / panels.count, i = task % panels.count;
    const int64_t k_first = panel_first(panels, i) * kLanes, width = panel_width(panels, i) * kLanes;
    const int64_t have = panels.group_k - k_first < width ? panels.group_k - k_first : width;
    const int64_t k = g * panels.group_k + k_first;
    float* out = static_cast<float*>(packed) + (g * panels.vecs * kLanes + k_first) * rows;
    for (int64_t row = 0; row < rows; ++row, out += width) {
      for (int64_t j = 0; j < have; ++j) out[j] = s ? w[row * p.k + k + j] * s[k + j] : w[row * p.k + k + j];
      for (int64_t j = have; j < width; ++j) out[j] = 0.f;
    }
  }
}

// Panels are walked in super-panels that stay in the second-level cache while pixels stream past them: [super-panel][pixel tile][panel].
// They hold the same number of panels where a few more of them allow it, so that a cut between threads halves the work.
struct Split {
  Panels panels;
  int64_t total;   // panels of all groups
  int64_t supers;  // super-panels
};

CK_INLINE Split split_of(const ConvProblem& p, int64_t room) {
  Split s;
  s.panels = panels_of(p);
  s.total = p.groups * s.panels.count;
  const int64_t bytes = gemm_packed_bytes(p);
  const int64_t least = (bytes + room - 1) / room;
  int64_t supers = least;
  while (supers < least * 8 / 5 && s.total % supers) ++supers;
  s.supers = s.total % supers ? least : supers;
  if (s.supers > s.total) s.supers = s.total;
  if (s.supers < 1) s.supers = 1;
  return s;
}

}  // namespace
}  // namespace CK_ISA
}  // namespace ck
