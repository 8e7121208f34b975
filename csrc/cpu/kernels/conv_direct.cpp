// conv_direct.cpp: convolution by indirect GEMM: any filter, stride, dilation, padding, groups, 1-D to 3-D, transposed too; float32.
//
// Computes  y[n,z,p,q,k] = act(sum_trsc x[n, z*sd-pd+t*dd, p*sh-ph+r*dh, q*sw-pw+s*dw, c] * w[t,r,s,c,k] + bias + residual)
// Layout    x NDHWC, w in gemm.h's panels, y NZPQK
// Tiling    a task is a tile of up to kTile pixels (flat over z p q of one image) times a super-panel of filters that stays in L2.
//           For each tile a table of pointers, tap x pixel, is made once and used by all panels; a padded pixel points at a row of zeros.
//           1x1 with stride 1: pixels lie evenly, no table is needed (even_tile.h).
//           Few channels (C < 16, undilated): the S pixels of a window row lie side by side in NHWC, so (s, c) is one reduction of S*C and only
//           (t, r) remain as taps; windows that cross the left or right edge are copied to scratch with their zeros. C=3 needs no other kernel;
//           the usual first layers have an instance of the tile with their sizes as constants.
//           Small maps (fewer pixels than a tile): tiles run across images, so that Dense at batch 8 reads its weights once.
//           Transposed: outputs of one residue q mod stride see the same taps, so a tile steps by the stride.
// Cost      2*NZPQK*TRSC/G flop; 4*(x + w + y) bytes plus x once more per super-panel
// Refuses   nothing; poor for groups of fewer filters than a vector
// Tried     7x7 maps of 1x1 layers by tiles across images, 28 in place of 32 at N=8: no gain; the walk panel by panel for light weights too: small 1x1
//           layers alone 2 to 9 % slower, networks no faster (Granite Rapids, November 2026)
// Source    Dukhan 2019, arXiv:1907.02129
#include "cpu/even_tile.h"
#include "cpu/gemm.h"
#include "cpu/pixels.h"
#include "cpu/swapped.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int64_t kFewTiles = 6;            // of the batch: the weights come from memory as fast as they are used
constexpr int64_t kHeavyBytes = 512 << 10;  // of weights: they are gone from the second-level cache when the layer is called again

enum class Mode { kFlat, kRows, kTransposed };

// The register tile where pixels of few channels lie side by side (kRows) and the sizes of the usual first layers are constants: one pointer
// for each window row, all offsets from it in the instructions.
template <int kPixels, int kVecs, int kWidth, int kPitch>
void first_tile(const Tile& t) {
  vf acc[kPixels][kVecs];
  CK_UNROLL
  for (int i = 0; i < kPixels; ++i)
    CK_UNROLL
    for (int j = 0; j < kVecs; ++j) acc[i][j] = splat(0.f);
  if (t.ahead) fetch_outputs<kPixels, kVecs>(t);
  for (int64_t e = 0; e < t.entries; ++e) {
    const float* x = t.x[e];
    const float* w = t.w + t.tap[e] * kWidth * kVecs * kLanes;
    __builtin_prefetch(x + t.ahead, 0, 2);
    __builtin_prefetch(x + t.ahead + 16, 0, 2);
    _Pragma("GCC unroll 64")
    for (int c = 0; c < kWidth; ++c) {
      asm volatile("" ::: "memory");  // windows overlap: the compiler would keep their common numbers in registers that it does not have
      vf b[kVecs];
      CK_UNROLL
      for (int j = 0; j < kVecs; ++j) b[j] = load(w + (c * kVecs + j) * kLanes);
      CK_UNROLL
      for (int i = 0; i < kPixels; ++i) {
        const vf a = splat(x[i * kPitch + c]);
        CK_UNROLL
        for (int j = 0; j < kVecs; ++j) acc[i][j] += a * b[j];
      }
    }
  }
  finish(t, acc);
}

// Its instance for panels of two vectors, a window row of `width` floats and outputs `pitch` floats apart, or null.
CK_INLINE TileFn first_tile_fn(int pixels, int64_t width, int64_t pitch) {
  constexpr int kFull = kTile[2];
  if (pixels < kFull - 1) return nullptr;
#define CK_FIRST(w, p) \
  if (width == (w) && pitch == (p)) return pixels == kFull ? first_tile<kFull, 2, w, p> : first_tile<kFull - 1, 2, w, p>;
  CK_FIRST(9, 3)    // VGG, DenseNet for small images: 3x3
  CK_FIRST(9, 6)    // Inception, MobileNet, EfficientNet: 3x3, stride 2
  CK_FIRST(21, 6)   // ResNet, DenseNet: 7x7, stride 2
  CK_FIRST(33, 12)  // AlexNet: 11x11, stride 4
#undef CK_FIRST
  return nullptr;
}

// What a run needs to know about its problem, computed once.
struct Shape {
  Mode mode;
  bool across;         // tiles run across images
  bool few;            // so few tiles that panels are walked one by one, each tile fetching its share of the next (gemm.h)
  bool heavy;          // weights beyond kHeavyBytes
  int64_t pixels;      // flat: outputs of one image; rows, transposed: outputs of one row (of one residue)
  int64_t tile;        // pixels of the largest tile: the smallest kTile of the panels in use
  int64_t tiles;       // of one image (across: of the batch)
  int64_t entries, c;  // entries of the pointer table and the channels each reduces
  int64_t row_floats;  // kRows: floats of a staged window row; staged: of a staged pixel
  bool
      staged;  // the pixels of a tile lie a multiple of 4 KB apart (1x1: 2 KB), in the same few sets of the first-level cache: they are copied first
  Split split;
};

CK_INLINE int64_t apart(const Shape& s) { return s.entries == 1 ? 512 : 1024; }

CK_INLINE Shape shape_of(const ConvProblem& p, int64_t images) {
  Shape s;
  const int64_t c_group = p.c / p.groups;
  s.mode = p.transposed ? Mode::kTransposed : (p.groups == 1 && p.c < 16 && p.dil_w == 1 && p.s > 1) ? Mode::kRows : Mode::kFlat;
  s.across = s.mode == Mode::kFlat && p.z * p.p * p.q < kTilePixels;
  // A last panel of three vectors takes narrower tiles; its outputs are the same bits, so the tile may be split there.
  s.tile = kTilePixels;
  s.entries = s.mode == Mode::kRows ? p.t * p.r : p.t * p.r * p.s;
  s.c = s.mode == Mode::kRows ? p.s * c_group : c_group;
  s.staged = s.mode == Mode::kFlat && !s.across && p.groups == 1 && kTilePixels > 8 && p.c % kLanes == 0 && p.c * p.stride_w % apart(s) == 0;
  s.row_floats = s.mode == Mode::kRows ? ((s.tile - 1) * p.stride_w + p.s) * p.c : s.staged ? c_group + kLanes : 0;
  if (s.mode == Mode::kFlat) {
    s.pixels = p.z * p.p * p.q * (s.across ? images : 1);
    s.tiles = (s.pixels + s.tile - 1) / s.tile;
  } else {
    const int64_t step = s.mode == Mode::kTransposed ? p.stride_w : 1;
    s.pixels = (p.q + step - 1) / step;
    s.tiles = p.z * p.p * step * ((s.pixels + s.tile - 1) / s.tile);
  }
  s.heavy = gemm_packed_bytes(p) >= kHeavyBytes;
  s.few = s.mode == Mode::kFlat && (s.across ? s.tiles : images * s.tiles) <= kFewTiles;
  s.split = split_of(p, s.few ? l2_bytes / 8 : l2_bytes * 5 / 8);
  if (s.few && s.split.total % s.split.supers) s.split.supers = s.split.total;  // 5 panels, 3 and 2 of them: a fifth of the time one thread would wait
  return s;
}

struct Scratch {
  float* zeros;          // c values
  const float** x;       // [entries][count]
  const float** x_part;  // the same for a narrower tile
  int32_t* tap;          // [entries]
  float* rows;           // staged windows (kRows) or pixels (staged)
};

CK_INLINE int64_t scratch_layout(const ConvProblem& p, const Shape& s, char* at, Scratch* out) {
  const int64_t zeros = align64(p.c * 4), table = align64(s.entries * s.tile * 8), taps = align64(s.entries * 4);
  if (out) {
    out->zeros = reinterpret_cast<float*>(at);
    out->x = reinterpret_cast<const float**>(at + zeros);
    out->x_part = reinterpret_cast<const float**>(at + zeros + table);
    out->tap = reinterpret_cast<int32_t*>(at + zeros + 2 * table);
    out->rows = reinterpret_cast<float*>(at + zeros + 2 * table + taps);
  }
  return zeros + 2 * table + taps + align64(s.row_floats * 4 * (s.staged ? s.tile * s.entries * (s.few || (s.heavy && s.entries == 1) ? kFewTiles : 1) : p.t * p.r));
}

// Pointers of the window rows of outputs (z, row, q .. q + count): see the header, few channels. `side_by_side`: of the first of them alone.
CK_INLINE int64_t point_rows(const ConvProblem& p, const Shape& s, const View& x, int64_t n, int64_t z, int64_t row, int64_t q, int count,
                             bool side_by_side, const Scratch& scratch) {
  const int64_t w0 = q * p.stride_w - p.pad_w_lo, width = (count - 1) * p.stride_w + p.s;
  const bool inside = w0 >= 0 && w0 + width <= p.w && x.pixel == p.c;
  const int64_t from = most(0, -w0), to = most(from, least(width, p.w - w0));
  int64_t entries = 0;
  for (int64_t t = 0; t < p.t; ++t)
    for (int64_t r = 0; r < p.r; ++r) {
      const int64_t d = source(z, t, p.stride_d, p.pad_d_lo, p.dil_d, p.d), h = source(row, r, p.stride_h, p.pad_h_lo, p.dil_h, p.h);
      if (d < 0 || h < 0) continue;
      const float* base;
      if (inside) {
        base = at<const float>(x, n, d, h, w0);
      } else {
        float* staged = scratch.rows + entries * s.row_floats;
        for (int64_t i = 0; i < from * p.c; ++i) staged[i] = 0.f;
        if (x.pixel == p.c) {
          const float* x_w = at<const float>(x, n, d, h, w0 + from);
          for (int64_t i = 0; i < (to - from) * p.c; ++i) staged[from * p.c + i] = x_w[i];
        } else {
          for (int64_t w = from; w < to; ++w) {
            const float* x_w = at<const float>(x, n, d, h, w0 + w);
            for (int64_t c = 0; c < p.c; ++c) staged[w * p.c + c] = x_w[c];
          }
        }
        for (int64_t i = to * p.c; i < width * p.c; ++i) staged[i] = 0.f;
        base = staged;
      }
      if (side_by_side) scratch.x[entries] = base;
      else
        for (int i = 0; i < count; ++i) scratch.x[entries * count + i] = base + i * p.stride_w * p.c;
      scratch.tap[entries++] = static_cast<int32_t>(t * p.r + r);
    }
  return entries;
}

CK_INLINE int64_t point_transposed(const ConvProblem& p, const View& x, int64_t n, int64_t z, int64_t row, int64_t q, int count,
                                   const Scratch& scratch) {
  int64_t entries = 0, tap = 0;
  for (int64_t t = 0; t < p.t; ++t)
    for (int64_t r = 0; r < p.r; ++r)
      for (int64_t c = 0; c < p.s; ++c, ++tap) {
        const int64_t d = source_transposed(z, t, p.stride_d, p.pad_d_lo, p.dil_d, p.d);
        const int64_t h = source_transposed(row, r, p.stride_h, p.pad_h_lo, p.dil_h, p.h);
        const int64_t shifted = q + p.pad_w_lo - c * p.dil_w;
        if (d < 0 || h < 0 || shifted % p.stride_w) continue;
        bool any = false;
        for (int i = 0; i < count; ++i) {
          const int64_t w = source_transposed(q + i * p.stride_w, c, p.stride_w, p.pad_w_lo, p.dil_w, p.w);
          scratch.x[entries * count + i] = w < 0 ? scratch.zeros : at<const float>(x, n, d, h, w);
          any |= w >= 0;
        }
        scratch.tap[entries] = static_cast<int32_t>(tap);
        entries += any;
      }
  return entries;
}

// Which weights a task fetches while it works: its own (nobody fetched them before), or those that will be read `next` floats behind them.
struct Fetch {
  bool cold = false;
  int64_t next = 0, tile = 0, tiles = 0;
};

// All panels [first, last) of one tile; `first_tile` in place of the usual kernel. `x` is a table of s.tile-wide rows made for `count` pixels.
CK_INLINE void multiply(const ConvProblem& p, const Shape& s, const ConvArgs& a, int64_t first, int64_t last, int count, int64_t entries,
                        float* y, int64_t y_step, const float* residual, int64_t residual_step, const Scratch& scratch, int64_t ahead, const Fetch& fetch, TileFn first_tile = nullptr, int64_t x_step = 0) {
  const int64_t c_group = p.c / p.groups, rows = taps_of(p) * c_group;
  const Panels& panels = s.split.panels;
  const float* weights = static_cast<const float*>(a.weights);
  const float* bias = static_cast<const float*>(a.bias);
  for (int64_t i = first; i < last; ++i) {
    const int64_t g = p.groups == 1 ? 0 : i / panels.count, j = i - g * panels.count;
    const int vecs = panel_width(panels, j);
    const int64_t k_first = panel_first(panels, j) * kLanes, k = g * panels.group_k + k_first;
    Tile t{scratch.x,
           scratch.tap,
           entries,
           s.c,
           weights + (g * panels.vecs * kLanes + k_first) * rows,
           y + k,
           residual ? residual + k : nullptr,
           y_step,
           residual_step,
           bias ? bias + k : nullptr,
           least(vecs * kLanes, panels.group_k - k_first),
           &p.act};
    t.x_channel = g * c_group, t.x_step = x_step;
    t.ahead = ahead && i - first < 7 ? ahead + (i - first) * kFetch / kChunk * s.c : 0;
    if (fetch.cold) t.fetch = t.w + kWeightsAhead, t.fetch_step = kChunk * vecs * kLanes, t.fetch_all = true;
    else if (fetch.next) fetch_share(t, t.w + fetch.next, vecs * kLanes * rows, vecs * kLanes, fetch.tile, fetch.tiles);
    if (count <= kTile[vecs]) {
      (first_tile ? first_tile : x_step ? even_tile_fn(vecs, count) : tile_fn(vecs, count))(t);
      continue;
    }
    // A wider panel takes fewer pixels at a time: halves (or thirds) of the tile.
    const int parts = (count + kTile[vecs] - 1) / kTile[vecs];
    for (int part = 0; part < parts; ++part) {
      const int from = count * part / parts, to = count * (part + 1) / parts;
      Tile u = t;
      u.x = scratch.x_part;
      if (x_step) scratch.x_part[0] = scratch.x[0] + from * x_step;
      else
        for (int64_t e = 0; e < entries; ++e)
          for (int pixel = from; pixel < to; ++pixel) scratch.x_part[e * (to - from) + pixel - from] = scratch.x[e * count + pixel];
      u.y = t.y + from * y_step;
      if (residual) u.residual = t.residual + from * residual_step;
      (x_step ? even_tile_fn(vecs, to - from) : tile_fn(vecs, to - from))(u);
    }
  }
}

void run(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t first, int64_t last, void* memory) {
  const Shape s = shape_of(p, images);
  const bool staged = s.staged && a.x.pixel * p.stride_w % apart(s) == 0;
  const bool even = kEvenTiles && s.mode == Mode::kFlat && !s.across && evenly(p, a.x);
  const int64_t x_step = !even ? 0 : staged ? s.row_floats : a.x.pixel;
  Scratch scratch;
  scratch_layout(p, s, static_cast<char*>(memory), &scratch);
  for (int64_t c = 0; c < p.c; ++c) scratch.zeros[c] = 0.f;
  const Table table{scratch.x, scratch.tap, scratch.zeros};
  const int64_t tiles = s.across ? s.tiles : images * s.tiles;
  int64_t super = first / tiles, tile = first % tiles;
  int64_t n = s.across ? 0 : tile / s.tiles, in_image = s.across ? tile : tile % s.tiles;
  int64_t pixel = s.pixels * in_image / s.tiles, panel_from = s.split.total * super / s.split.supers,
          panel_to = s.split.total * (super + 1) / s.split.supers;
  const auto advance = [&] {  // to the next task without divisions: a tile of few channels takes 300 cycles
    ++tile;
    if (++in_image < s.tiles) return;
    in_image = pixel = 0;
    if (++n < images && !s.across) return;
    n = tile = 0, ++super;
    panel_from = panel_to, panel_to = s.split.total * (super + 1) / s.split.supers;
  };
  // Panels [from, to) of `count` pixels from m on in image n. Staged pixels go to slot `slot`, or are `there` already.
  const auto flat = [&](int64_t n, int64_t m, int count, int64_t from, int64_t to, int64_t slot, bool there, const Fetch& fetch) __attribute__((always_inline)) {
    int64_t entries = 1;
    if (even && !staged) scratch.x[0] = at<const float>(a.x, n, 0, 0, 0) + m * a.x.pixel, scratch.tap[0] = 0;
    else entries = point_flat(p, s.across, a.x, n, m, count, table);
    // The next tile's pixels follow this one's, if the filter leaves none out.
    int64_t ahead = p.stride_w <= p.s && !s.few ? count * p.stride_w * a.x.pixel : 0;
    if (staged && entries) {
      float* row = scratch.rows + slot * s.tile * s.entries * s.row_floats;
      for (int64_t i = 0; i < entries * count; ++i, row += s.row_floats) {
        const float* from = scratch.x[i];
        if (!there)
          for (int64_t c = 0, channels = s.c; c < channels; c += kLanes) store(row + c, load(from + c));
        if (i == 0 && ahead) ahead = s.entries == 1 ? ahead + (from - row) : 0;
        scratch.x[i] = row;
      }
    }
    // Within an image the pixels of y are evenly spaced; across images only if the images are (they are one pixel or dense).
    const int64_t image = p.z * p.p * p.q;
    if (!s.across || (a.y.image == image * a.y.pixel && (!a.residual.data || a.residual.image == image * a.residual.pixel))) {
      float* y = s.across ? static_cast<float*>(a.y.data) + m * a.y.pixel : at<float>(a.y, n, 0, 0, 0) + m * a.y.pixel;
      const float* residual = nullptr;
      if (a.residual.data)
        residual = s.across ? static_cast<const float*>(a.residual.data) + m * a.residual.pixel
                            : at<float>(a.residual, n, 0, 0, 0) + m * a.residual.pixel;
      multiply(p, s, a, from, to, count, entries, y, a.y.pixel, residual, a.residual.pixel, scratch, ahead, fetch, nullptr, x_step);
      return;
    }
    for (int i = 0; i < count; ++i) {  // a gap between images: pixel by pixel (views of small maps only)
      const int64_t at_n = (m + i) / image, at_m = (m + i) % image;
      const int64_t e = point_flat(p, true, a.x, 0, m + i, 1, table);
      multiply(p, s, a, from, to, 1, e, at<float>(a.y, at_n, 0, 0, 0) + at_m * a.y.pixel, 0,
               a.residual.data ? at<float>(a.residual, at_n, 0, 0, 0) + at_m * a.residual.pixel : nullptr, 0, scratch, 0, Fetch{});
    }
  };
  const int64_t panel_floats = 2 * kLanes * taps_of(p) * (p.c / p.groups);
  for (int64_t task = first; task < last; ++task, advance()) {
    if (s.mode == Mode::kFlat) {
      const auto next_pixels = [&] {
        const int64_t m = pixel;
        pixel = s.pixels * (in_image + 1) / s.tiles;
        return m;
      };
      if (s.few) {
        Fetch fetch;
        fetch.cold = task == first || tiles == 1;
        if (task + tiles < last) fetch.next = (panel_to - panel_from) * panel_floats, fetch.tile = tile, fetch.tiles = tiles;
        const int64_t m = next_pixels();
        flat(n, m, static_cast<int>(pixel - m), panel_from, panel_to, in_image, images == 1 && task - tiles >= first, fetch);
        continue;
      }
      // The first tiles of a super-panel, whose weights come from memory, are walked panel by panel, too.
      struct {
        int64_t n, m;
        int count;
      } group[kFewTiles];
      int64_t size = 0;
      const bool fresh = s.heavy && (task == first || tile == 0);
      const int64_t most_tiles = fresh && panel_to - panel_from > 1 && (!staged || s.entries == 1) ? least(kFewTiles, least(last - task, tiles - tile)) : 1;
      for (;;) {
        const int64_t m = next_pixels();
        group[size++] = {n, m, static_cast<int>(pixel - m)};
        if (size == most_tiles) break;
        ++task, advance();
      }
      const int64_t panels = size > 1 ? 1 : panel_to - panel_from;
      for (int64_t panel = panel_from; panel < panel_to; panel += panels)
        for (int64_t g = 0; g < size; ++g) {
          Fetch fetch;
          fetch.cold = fresh && panel == panel_from && g == 0;
          if (size > 1 && panel + 1 < panel_to) fetch.next = panel_floats, fetch.tile = g, fetch.tiles = size;
          flat(group[g].n, group[g].m, group[g].count, panel, panel + panels, g, panel > panel_from, fetch);
        }
      continue;
    }
    const int64_t step = s.mode == Mode::kTransposed ? p.stride_w : 1;
    const int64_t row_tiles = (s.pixels + s.tile - 1) / s.tile;
    const int64_t part = in_image % row_tiles, residue = in_image / row_tiles % step, row = in_image / (row_tiles * step) % p.p,
                  z = in_image / (row_tiles * step * p.p);
    if (residue >= p.q) continue;
    const int64_t pixels = (p.q - residue + step - 1) / step;
    const int64_t from = pixels * part / row_tiles;
    const int count = static_cast<int>(pixels * (part + 1) / row_tiles - from);
    if (!count) continue;
    const int64_t q = residue + from * step;
    const bool pairs = s.mode == Mode::kRows && s.split.panels.vecs % 2 == 0;
    const TileFn first_tile = pairs ? first_tile_fn(count, s.c, p.stride_w * p.c) : nullptr;
    const int64_t entries = s.mode == Mode::kRows ? point_rows(p, s, a.x, n, z, row, q, count, first_tile != nullptr, scratch)
                                                  : point_transposed(p, a.x, n, z, row, q, count, scratch);
    multiply(p, s, a, panel_from, panel_to, count, entries, at<float>(a.y, n, z, row, q), step * a.y.pixel,
             a.residual.data ? at<float>(a.residual, n, z, row, q) : nullptr, step * a.residual.pixel, scratch,
             s.mode == Mode::kRows ? count * p.stride_w * p.c : 0, Fetch{}, first_tile);
  }
}

const char* refuse(const ConvProblem&) { return nullptr; }

double cost(const ConvProblem& p) {
  // FMAs issued, with the lanes that padding to whole vectors wastes, at 85 % of the peak; weights once from memory.
  const Panels s = panels_of(p);
  const double outputs = static_cast<double>(p.transposed ? p.d * p.h * p.w : p.z * p.p * p.q);
  const double fmas = outputs * static_cast<double>(p.groups * s.vecs * taps_of(p) * (p.c / p.groups));
  return fmas / (0.85 * kVectorsPerMicrosecond) * (s.vecs == 1 ? 1.3 : 1.0) + static_cast<double>(gemm_packed_bytes(p)) / kBytesPerMicrosecond;
}

int64_t scratch_bytes(const ConvProblem& p) { return scratch_layout(p, shape_of(p, 1), nullptr, nullptr); }

int64_t tasks(const ConvProblem& p, int64_t images) {
  const Shape s = shape_of(p, images);
  return s.split.supers * (s.across ? s.tiles : images * s.tiles);
}

int64_t packed_bytes(const ConvProblem& p) { return gemm_packed_bytes(p); }
int64_t pack_tasks(const ConvProblem& p) { return gemm_pack_tasks(p); }
void pack(const ConvProblem& p, const void* weights, const void* scale, void* packed, int64_t first, int64_t last) {
  gemm_pack(p, weights, scale, packed, first, last);
}
void pack_swapped(const ConvProblem& p, const void* weights, bool flip, void* packed, int64_t first, int64_t last) {
  gemm_pack_swapped(p, weights, flip, packed, first, last);
}

}  // namespace

extern const ConvKernel conv_direct;
const ConvKernel conv_direct = {"conv_direct", refuse, cost, scratch_bytes, tasks, run, packed_bytes, pack_tasks, pack, false, pack_swapped, true};

}  // namespace CK_ISA
}  // namespace ck
