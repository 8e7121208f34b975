// conv_weight_gemm.cpp: the gradient of a convolution's weights as a matrix product whose sums run over pixels, float32.
//
// Computes  dw[tap,b,s] = sum_m big[m moved by tap][b] * small[m][s];  big = x, small = dy (a transposed convolution: big = dy, small = x;
//           a 1x1 convolution whose pixels meet one to one: whichever wastes fewer lanes)
// Layout    big and small NDHWC; packed: a tile of big's channels side by side, [tile][pixel][kStride], a panel of two vectors of small's
//           channels, [panel][pixel][2 * kLanes]; partial sums [part][group][panel][tile][tap][channel][2 * kLanes]
// Tiling    registers: kTile[2] channels of big x 2 vectors of small's, kept over all pixels of a chunk:
//
//              2 vectors of small[m]
//            +-----------+-----------+
//   big[m][0]| acc[0][0] | acc[0][1] |   one broadcast of big[m][b] feeds two FMAs: 16 loads for 28 FMAs (AVX-512)
//   big[m][1]| acc[1][0] | acc[1][1] |
//            |    ...    |    ...    |
//
//           A chunk is some rows, about two hundred pixels; its tile (with the rows and columns around, zeros outside the image) and its panel
//           lie in the first-level cache and serve all taps. A task takes a block of panels, of tiles, and one part of the batch's rows;
//           the number of parts depends on the problem and the images alone, and phase 1 adds them in order.
//           windows   few channels (C < 8): the whole window of a pixel is one row of T*R*S*C channels, copied side by side
//           in place  images of one pixel (Dense): no copy of big, sums go straight to dw
//                     1x1, pixels at most kNear floats apart: big and small are read where they lie, if few tiles or panels read them
//           What the next chunk reads is fetched by the products of this one, a line or two with each pixel: the chunks of 1x1 convolutions
//           are as much memory as arithmetic. 1.05 to 1.6 times as fast on one core (Granite Rapids, November 2026), with both.
// Cost      2*NZPQ*TRSC/G*K flop; x is packed once for each block of panels
// Refuses   depthwise and other narrow groups are better served elsewhere, but nothing is refused
// Tried     fetching the lines of the sums before a product writes them: no gain (Granite Rapids, November 2026)
//           reading in place with 512 channels and more, or with stride 2: up to half as fast, their pixels share few sets of the cache
// Source    Goto and van de Geijn 2008 (packing); the fixed parts: DESIGN habit of deterministic reductions
#include "cpu/products.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int64_t kBlockChannels = 512, kBlockFilters = 256;  // of a task: tiles and panels
constexpr int64_t kSegment = 256;                             // longer rows are cut
constexpr int64_t kTasks = 16;                                // parts are made until there are as many
constexpr int64_t kFew = 8;                                   // a pixel read that often is read where it lies
constexpr int64_t kNear = 384;                                // unless pixels lie that far apart, in few sets of the cache
constexpr int64_t kMostGroups = 16, kNarrow = 128;            // of a task, and their channels
constexpr int64_t kPartBytes = 16 << 20;                      // unless all parts together take more

struct Layout {
  int64_t big[3], small[3], window[3], stride[3], pad[3], dil[3];  // d h w
  int64_t big_c, small_c, groups;                                  // channels of a group
  bool exchanged, windows, in_place;                               // exchanged: big is dy
  int64_t taps, channels;                                          // windows: 1 and T*R*S*C
  int64_t tiles, vecs, panels;                                     // of a group
  int64_t tile_block, panel_block, tile_blocks, panel_blocks, group_block, group_blocks;
  int64_t pieces, segment;               // of a row, and pixels of the longest
  int64_t units;                         // rows (or pieces) in a chunk
  int64_t columns, column_step;          // of a packed row, and from one pixel of small to the next
  int64_t row_step, depth_rows, slices;  // packed rows per row of small; packed rows of a slice at most; slices
  int64_t width;                         // of a packed pixel of a panel
  int64_t window_stride;                 // windows: floats of a pixel
  bool plain_big, plain_small;           // one tap, read by few tiles or panels: not worth a copy
  int64_t tile_floats, panel_floats;     // packed, of a chunk
  int64_t big_floats, small_floats;      // packed, of a task
};

// Whether big is dy and small is x.
CK_INLINE bool exchanged(const ConvProblem& p) {
  const bool symmetric = p.t * p.r * p.s == 1 && p.d == p.z && p.h == p.p && p.w == p.q && p.stride_d * p.stride_h * p.stride_w == 1 &&
                         p.pad_d_lo == 0 && p.pad_h_lo == 0 && p.pad_w_lo == 0 && p.z * p.p * p.q > 1;
  if (!symmetric) return p.transposed;
  const int64_t c = p.c / p.groups, k = p.k / p.groups;
  const auto work = [](int64_t big, int64_t small) __attribute__((always_inline)) {
    const int64_t vecs = ceil_div(small, kLanes);
    return big * vecs * (vecs == 1 ? 5 : 4);  // a single vector takes more loads for each product
  };
  return work(k, c) < work(c, k);
}

CK_INLINE Layout layout_of(const ConvProblem& p) {
  Layout l{};
  const int64_t x[3] = {p.d, p.h, p.w}, y[3] = {p.z, p.p, p.q};
  const int64_t window[3] = {p.t, p.r, p.s}, stride[3] = {p.stride_d, p.stride_h, p.stride_w};
  const int64_t pad[3] = {p.pad_d_lo, p.pad_h_lo, p.pad_w_lo}, dil[3] = {p.dil_d, p.dil_h, p.dil_w};
  l.exchanged = exchanged(p);
  for (int i = 0; i < 3; ++i) {
    l.big[i] = l.exchanged ? y[i] : x[i], l.small[i] = l.exchanged ? x[i] : y[i];
    l.window[i] = window[i], l.stride[i] = stride[i], l.pad[i] = pad[i], l.dil[i] = dil[i];
  }
  l.groups = p.groups;
  l.big_c = (l.exchanged ? p.k : p.c) / p.groups, l.small_c = (l.exchanged ? p.c : p.k) / p.groups;
  const int64_t taps = p.t * p.r * p.s;
  l.in_place = taps == 1 && l.small[0] * l.small[1] * l.small[2] == 1 && pad[0] == 0 && pad[1] == 0 && pad[2] == 0 && !l.exchanged;
  l.windows = !l.in_place && l.big_c < 8 && taps > 1 && l.big_c * taps <= 1024;
  l.taps = l.windows ? 1 : taps;
  l.channels = l.windows ? taps * l.big_c : l.big_c;
  l.vecs = ceil_div(l.small_c, kLanes);
  const int64_t tile_rows = l.vecs == 1 ? kStride : kRows;  // of one vector each, more sums fit the registers
  l.tiles = ceil_div(l.channels, tile_rows);
  l.panels = ceil_div(l.vecs, 2);
  l.tile_blocks = ceil_div(l.tiles, ceil_div(kBlockChannels, tile_rows));  // of equal size, about
  l.tile_block = ceil_div(l.tiles, l.tile_blocks);
  l.panel_blocks = ceil_div(l.panels, most(1, ceil_div(kBlockFilters, l.taps * kWidth)));
  l.panel_block = ceil_div(l.panels, l.panel_blocks);
  l.width = l.vecs == 1 ? kLanes : kWidth;
  // Narrow groups go together, so that whole cache lines and pages are read.
  const bool narrow = !l.windows && l.tile_blocks == 1 && l.panel_blocks == 1;
  l.group_block = narrow ? most(1, least(least(l.groups, kMostGroups), kNarrow / most(l.big_c, l.small_c))) : 1;
  l.group_blocks = ceil_div(l.groups, l.group_block);
  l.pieces = ceil_div(l.small[2], kSegment);
  l.segment = ceil_div(l.small[2], l.pieces);
  // Pixels of a chunk: the tile and the panel stay in the first-level cache; with many weights, twice as many, for the partial sums are
  // read and written once a chunk. All that a task packed stays in the second-level cache.
  const int64_t weights = l.taps * least(l.channels, kBlockChannels) * least(l.small_c, l.panel_block * kWidth) * 4;
  int64_t pixels = weights > (1 << 20) ? 448 : 224;
  const int64_t floats = l.group_block * (l.tile_block * kStride * (l.taps > 1 ? 2 : 1) + l.panel_block * l.width);
  pixels = least(pixels, most(64, (256 << 10) / floats));
  l.units = most(1, pixels / l.segment);
  const bool strided = l.window[2] > 1;
  l.column_step = strided ? l.stride[2] : 1;
  l.columns = strided ? (l.segment - 1) * l.stride[2] + (l.window[2] - 1) * l.dil[2] + 1 : l.segment;
  l.slices = l.window[0];
  const int64_t span = (l.window[1] - 1) * l.dil[1] + 1;
  l.row_step = l.window[1] > 1 ? l.stride[1] : 1;
  const int64_t bands = l.pieces > 1 ? l.units : l.units / l.small[1] + 2;
  l.depth_rows = l.window[1] > 1 ? l.units * l.row_step + bands * most(0, span - l.row_step) : l.units;
  l.window_stride = (ceil_div(l.channels, 16) | 1) * 16;
  l.tile_floats = (l.slices * l.depth_rows * l.columns | 1) * kStride;  // odd: a pixel's lines go to different sets of the cache
  l.panel_floats = l.units * l.segment * l.width;
  l.big_floats = l.windows ? l.units * l.segment * l.window_stride : l.group_block * l.tile_block * l.tile_floats;
  l.small_floats = l.group_block * l.panel_block * l.panel_floats;
  const bool still = taps == 1 && pad[0] == 0 && pad[1] == 0 && pad[2] == 0;  // every pixel of small has its pixel of big
  l.plain_big = still && !l.windows && p.pad_d_hi <= 0 && p.pad_h_hi <= 0 && p.pad_w_hi <= 0 && l.panel_block <= kFew &&
                l.groups * l.big_c * l.stride[2] <= kNear;
  l.plain_small = l.small_c % kLanes == 0 && (l.windows ? 1 : l.taps) * l.tile_block <= kFew && l.groups * l.small_c <= kNear;
  if (l.in_place || l.plain_big) l.big_floats = 0;
  if (l.in_place || l.plain_small) l.small_floats = 0;
  return l;
}

CK_INLINE int64_t tile_first(const Layout& l, int64_t i) { return l.channels * i / l.tiles; }
CK_INLINE int panel_vecs(const Layout& l, int64_t i) { return static_cast<int>(least(2, l.vecs - 2 * i)); }
CK_INLINE int64_t part_floats(const Layout& l) { return l.groups * l.taps * l.channels * l.vecs * kLanes; }
CK_INLINE int64_t blocks_of(const Layout& l) { return l.group_blocks * l.tile_blocks * l.panel_blocks; }
CK_INLINE int64_t units_of(const Layout& l, int64_t images) { return images * l.small[0] * l.small[1] * l.pieces; }

// Into how many parts the rows of the batch are cut.
CK_INLINE int64_t parts_of(const Layout& l, int64_t images) {
  int64_t parts = ceil_div(kTasks, blocks_of(l));
  parts = least(parts, most(1, kPartBytes / (part_floats(l) * 4)));
  return most(1, least(parts, units_of(l, images) / l.units));
}

// What a task computes: ranges of groups, of tiles and of panels.
struct Block {
  int64_t group_from, group_to, tile_from, tile_to, panel_from, panel_to;
};

// kStride floats of channels [c, end) of a pixel; zeros behind the end.
CK_INLINE void copy_tile(const float* from, int64_t have, float* to) {
  CK_UNROLL
  for (int64_t j = 0; j < kStride; j += kLanes) {
    const int64_t n = have - j;
    store(to + j, n >= kLanes ? load(from + j) : n > 0 ? load_n(from + j, static_cast<int>(n)) : splat(0.f));
  }
}

struct Unit {
  int64_t n, z, p, q, count;
};
CK_INLINE Unit unit_of(const Layout& l, int64_t i) {
  const int64_t piece = i % l.pieces, row = i / l.pieces;
  const int64_t q = l.small[2] * piece / l.pieces;
  return {row / (l.small[0] * l.small[1]), row / l.small[1] % l.small[0], row % l.small[1], q, l.small[2] * (piece + 1) / l.pieces - q};
}

// The tiles of a task, group by group: a table, for it is looked up for each pixel that is packed.
constexpr int64_t kMaxTiles = (kBlockChannels + kRows - 1) / kRows + kMostGroups;
struct Tiles {
  int64_t count, first[kMaxTiles], have[kMaxTiles];  // channel of a pixel, and how many of them belong to the group from there on
};

// One packed row of big: columns of row (n,d,h) from column w0 on, in steps of w_step; outside the image zeros.
CK_INLINE void pack_row(const Layout& l, const View& big, int64_t n, int64_t d, int64_t h, int64_t w0, int64_t w_step,
                       const Tiles& tiles, float* out) {
  const bool row_inside =
      static_cast<uint64_t>(d) < static_cast<uint64_t>(l.big[0]) && static_cast<uint64_t>(h) < static_cast<uint64_t>(l.big[1]);
  for (int64_t j = 0; j < l.columns; ++j, out += kStride) {
    const int64_t w = w0 + j * w_step;
    if (row_inside && static_cast<uint64_t>(w) < static_cast<uint64_t>(l.big[2])) {
      const float* pixel = at<const float>(big, n, d, h, w);
      float* to = out;
      for (int64_t i = 0; i < tiles.count; ++i, to += l.tile_floats) copy_tile(pixel + tiles.first[i], tiles.have[i], to);
    } else {
      for (int64_t i = 0; i < tiles.count; ++i) copy_tile(nullptr, 0, out + i * l.tile_floats);
    }
  }
}

// The windows of a unit, one after the other: a row (t, r) of all of them at a time.
CK_INLINE void pack_windows(const Layout& l, const View& big, const Unit& u, int64_t channel, float* out) {
  const int64_t run = l.window[2] * l.big_c, start = u.q * l.stride[2] - l.pad[2], w_step = l.stride[2];
  // Windows whose columns lie inside: [from, to).
  const bool together = l.dil[2] == 1 && big.pixel == l.big_c;
  const int64_t space = l.big[2] - l.window[2] - start;
  const int64_t from = together ? least(u.count, start < 0 ? ceil_div(-start, w_step) : 0) : u.count;
  const int64_t to = together && space >= 0 ? most(from, least(u.count, space / w_step + 1)) : from;
  for (int64_t t = 0; t < l.window[0]; ++t)
    for (int64_t r = 0; r < l.window[1]; ++r, out += run) {
      const int64_t d = u.z * l.stride[0] - l.pad[0] + t * l.dil[0], h = u.p * l.stride[1] - l.pad[1] + r * l.dil[1];
      const bool inside =
          static_cast<uint64_t>(d) < static_cast<uint64_t>(l.big[0]) && static_cast<uint64_t>(h) < static_cast<uint64_t>(l.big[1]);
      const float* row = at<const float>(big, u.n, inside ? d : 0, inside ? h : 0, 0) + channel;
      const auto slow = [&](int64_t m) {
        float* value = out + m * l.window_stride;
        for (int64_t s = 0; s < l.window[2]; ++s, value += l.big_c) {
          const int64_t w = start + m * w_step + s * l.dil[2];
          const bool in = inside && static_cast<uint64_t>(w) < static_cast<uint64_t>(l.big[2]);
          for (int64_t c = 0; c < l.big_c; ++c) value[c] = in ? row[w * big.pixel + c] : 0.f;
        }
      };
      if (!inside) {
        for (int64_t m = 0; m < u.count; ++m)
          for (int64_t i = 0; i < run; ++i) out[m * l.window_stride + i] = 0.f;
        continue;
      }
      for (int64_t m = 0; m < from; ++m) slow(m);
      for (int64_t i = 0; i < run; i += kLanes) {
        const float* source = row + (start + from * w_step) * l.big_c + i;
        float* value = out + from * l.window_stride + i;
        const int64_t n = run - i;
        if (n >= kLanes) {
          for (int64_t m = from; m < to; ++m, source += w_step * l.big_c, value += l.window_stride) store(value, load(source));
        } else {
          for (int64_t m = from; m < to; ++m, source += w_step * l.big_c, value += l.window_stride)
            store_n(value, load_n(source, static_cast<int>(n)), static_cast<int>(n));
        }
      }
      for (int64_t m = to; m < u.count; ++m) slow(m);
    }
}

// Pixels of small, panel by panel; lanes behind the last channel are zero.
CK_INLINE void pack_small(const Layout& l, const View& small, const Unit& u, int64_t channel, const Block& b, float* out) {
  const float* pixel = at<const float>(small, u.n, u.z, u.p, u.q) + channel;
  for (int64_t m = 0; m < u.count; ++m, pixel += small.pixel, out += l.width)
    for (int64_t i = b.panel_from; i < b.panel_to; ++i) {
      float* to = out + (i - b.panel_from) * l.panel_floats;
      for (int64_t j = 0; j < l.width; j += kLanes) {
        const int64_t c = i * kWidth + j, n = l.small_c - c;
        store(to + j, n >= kLanes ? load(pixel + c) : n > 0 ? load_n(pixel + c, static_cast<int>(n)) : splat(0.f));
      }
    }
}

struct Scratch {
  float *big, *small;
  int64_t *big_at, *small_at, *counts;
};
CK_INLINE int64_t scratch_layout(const Layout& l, char* memory, Scratch* s) {
  const int64_t big = align64(l.big_floats * 4), small = align64(l.small_floats * 4), table = align64(l.units * 8);
  if (s) {
    s->big = reinterpret_cast<float*>(memory);
    s->small = reinterpret_cast<float*>(memory + big);
    s->big_at = reinterpret_cast<int64_t*>(memory + big + small);
    s->small_at = reinterpret_cast<int64_t*>(memory + big + small + table);
    s->counts = reinterpret_cast<int64_t*>(memory + big + small + 2 * table);
  }
  return big + small + 3 * table;
}

// Units [first, last) of big and small, packed for one task. Fills the tables of where each unit begins: in what was packed, or in memory.
CK_INLINE void pack_chunk(const Layout& l, const View& big, const View& small, const Block& b, int64_t first, int64_t last, const Scratch& s) {
  Tiles tiles;
  tiles.count = 0;
  for (int64_t group = b.group_from; group < b.group_to; ++group)
    for (int64_t i = b.tile_from; i < b.tile_to; ++i) {
      tiles.first[tiles.count] = group * l.big_c + tile_first(l, i);
      tiles.have[tiles.count++] = l.big_c - tile_first(l, i);
    }
  int64_t pixels = 0, row = 0;
  for (int64_t i = first; i < last; ++i) {
    const Unit u = unit_of(l, i);
    s.counts[i - first] = u.count;
    if (l.plain_small) {
      s.small_at[i - first] = u.n * small.image + u.z * small.depth + u.p * small.row + u.q * small.pixel;
    } else {
      s.small_at[i - first] = pixels * l.width;
      for (int64_t group = b.group_from; group < b.group_to; ++group)
        pack_small(l, small, u, group * l.small_c, b,
                   s.small + (group - b.group_from) * (b.panel_to - b.panel_from) * l.panel_floats + pixels * l.width);
    }
    if (l.plain_big)
      s.big_at[i - first] = u.n * big.image + u.z * l.stride[0] * big.depth + u.p * l.stride[1] * big.row + u.q * l.stride[2] * big.pixel;
    if (l.windows) {
      pack_windows(l, big, u, b.group_from * l.big_c, s.big + pixels * l.window_stride);
      s.big_at[i - first] = pixels * l.window_stride;
    }
    pixels += u.count;
  }
  if (l.windows || l.plain_big) return;
  const int64_t span = (l.window[1] - 1) * l.dil[1] + 1;
  for (int64_t i = first; i < last;) {  // bands of rows that follow each other
    const Unit u = unit_of(l, i);
    const int64_t rows = l.pieces > 1 ? 1 : least(last - i, l.small[1] - u.p);
    const int64_t packed_rows = l.window[1] > 1 ? (rows - 1) * l.row_step + span : rows;
    const int64_t w_step = l.window[2] > 1 ? 1 : l.stride[2], h_step = l.window[1] > 1 ? 1 : l.stride[1];
    for (int64_t t = 0; t < l.slices; ++t)
      for (int64_t r = 0; r < packed_rows; ++r)
        pack_row(l, big, u.n, u.z * l.stride[0] - l.pad[0] + t * l.dil[0], u.p * l.stride[1] - l.pad[1] + r * h_step, u.q * l.stride[2] - l.pad[2],
                 w_step, tiles, s.big + ((t * l.depth_rows + row + r) * l.columns) * kStride);
    for (int64_t r = 0; r < rows; ++r) s.big_at[i - first + r] = (row + r * l.row_step) * l.columns * kStride;
    row += packed_rows;
    i += rows;
  }
}

CK_INLINE int64_t big_step(const Layout& l, const View& big) {
  return l.plain_big ? l.stride[2] * big.pixel : l.windows ? l.window_stride : l.column_step * kStride;
}
CK_INLINE int64_t small_step(const Layout& l, const View& small) { return l.plain_small ? small.pixel : l.width; }

// Units that follow each other in both operands become one: the end of a loop is a branch that is predicted wrongly. Returns how many are left.
CK_INLINE int64_t join_units(const Layout& l, const View& big, const View& small, int64_t units, const Scratch& s) {
  const int64_t big_pixel = big_step(l, big), small_pixel = small_step(l, small);
  int64_t last = 0;
  for (int64_t i = 1; i < units; ++i) {
    if (s.big_at[i] == s.big_at[last] + s.counts[last] * big_pixel && s.small_at[i] == s.small_at[last] + s.counts[last] * small_pixel) {
      s.counts[last] += s.counts[i];
    } else {
      ++last;
      s.big_at[last] = s.big_at[i], s.small_at[last] = s.small_at[i], s.counts[last] = s.counts[i];
    }
  }
  return last + 1;
}

// What the next chunk reads of a tensor, as streams of one line a pixel of this chunk. The products share them out.
struct Ahead {
  struct Source {
    const float* from;
    int64_t streams, across, step;  // across: streams that begin side by side in a pixel, `along` apart
    int64_t along, pixel_step;
  } sources[2];
  int64_t streams, products, product;

  CK_INLINE_MEMBER Stream stream(int64_t i) const {
    const Source& s = sources[i >= sources[0].streams];
    if (i >= sources[0].streams) i -= sources[0].streams;
    return {s.from + i / s.across * s.pixel_step + i % s.across * s.along, s.step};
  }
  // The streams of the next product: what it cannot take is left to the hardware.
  CK_INLINE_MEMBER void next(Stream* two) {
    const int64_t first = streams * product / products, last = streams * (product + 1) / products;
    for (int64_t i = 0; i < 2; ++i) two[i] = first + i < last ? stream(first + i) : Stream{};
    ++product;
  }
};

// Lines of `channels` channels of `pixels` pixels from `from` on, fetched by products of `count` pixels.
CK_INLINE Ahead::Source source_of(const float* from, int64_t channels, int64_t pixel, int64_t pixels, int64_t count) {
  constexpr int64_t kLine = 16;
  if (pixel < channels + kLine) return {from, ceil_div(pixels * pixel, count * kLine), 1, kLine, 0, count * kLine};  // (nearly) without gaps
  const int64_t across = ceil_div(channels, kLine);
  return {from, across * ceil_div(pixels, count), across, pixel, kLine, count * pixel};
}

// The products of a task in one chunk fetch the next, which begins with unit `first`; `pixels`: of this chunk.
CK_INLINE Ahead ahead_of(const Layout& l, const View& big, const View& small, const Block& b, int64_t first, int64_t pixels) {
  const Unit u = unit_of(l, first);
  const int64_t groups = b.group_to - b.group_from, every = l.stride[1] * l.stride[2];
  const bool window = l.window[1] * l.window[2] > 1;
  const int64_t row = window ? most(0, (l.window[1] - 1) * l.dil[1] + 1 - l.stride[1]) - l.pad[1] : 0;  // the first that this chunk has not read
  const int64_t big_from = l.windows ? 0 : tile_first(l, b.tile_from), big_to = l.windows ? l.big_c : tile_first(l, b.tile_to);
  const int64_t small_from = b.panel_from * kWidth, small_to = least(l.small_c, b.panel_to * kWidth);
  const float* x = at<const float>(big, u.n, u.z * l.stride[0], u.p * l.stride[1] + row, u.q * l.stride[2]) + b.group_from * l.big_c + big_from;
  const float* y = at<const float>(small, u.n, u.z, u.p, u.q) + b.group_from * l.small_c + small_from;
  Ahead a;
  a.sources[0] = source_of(x, (groups - 1) * l.big_c + big_to - big_from, big.pixel, window ? every * pixels : every == 1 ? pixels : 0, pixels);
  a.sources[1] = source_of(y, (groups - 1) * l.small_c + small_to - small_from, small.pixel, pixels, pixels);
  a.streams = a.sources[0].streams + a.sources[1].streams;
  a.products = groups * (b.tile_to - b.tile_from) * (b.panel_to - b.panel_from) * l.taps;
  a.product = 0;
  return a;
}

// The products of one group's tiles and panels in a chunk of `units`.
CK_INLINE void multiply_group(const Layout& l, const View& big, const View& small, const Block& b, int64_t group, int64_t units, bool fresh,
                              float* sums, const Scratch& s, Ahead& ahead) {
  const int64_t rows = l.taps * l.channels;
  for (int64_t j = b.panel_from; j < b.panel_to; ++j) {
    const int vecs = panel_vecs(l, j);
    float* sums_j = sums + j * kWidth * rows;
    for (int64_t i = b.tile_from; i < b.tile_to; ++i) {
      const int64_t c = tile_first(l, i), channels = tile_first(l, i + 1) - c;
      const ProductFn fn = product_fn(static_cast<int>(channels), vecs);
      Product t;
      t.big = l.plain_big  ? static_cast<const float*>(big.data) + group * l.big_c + c
              : l.windows  ? s.big + c
                           : s.big + (i - b.tile_from) * l.tile_floats;
      t.big_step = big_step(l, big);
      t.small = l.plain_small ? static_cast<const float*>(small.data) + group * l.small_c + j * kWidth : s.small + (j - b.panel_from) * l.panel_floats;
      t.small_step = small_step(l, small);
      t.big_at = s.big_at, t.small_at = s.small_at, t.counts = s.counts, t.units = units;
      t.sums = sums_j + l.taps * c * vecs * kLanes, t.sums_step = vecs * kLanes, t.fresh = fresh;
      if (l.windows || l.plain_big) {
        ahead.next(t.ahead);
        fn(t);
        continue;
      }
      const float* tile = t.big;
      for (int64_t z = 0; z < l.window[0]; ++z)
        for (int64_t r = 0; r < l.window[1]; ++r)
          for (int64_t q = 0; q < l.window[2]; ++q) {
            t.big = tile + ((z * l.depth_rows + r * l.dil[1]) * l.columns + q * l.dil[2]) * kStride;
            ahead.next(t.ahead);
            fn(t);
            t.sums += channels * vecs * kLanes;
          }
    }
  }
}

void sum_part(const Layout& l, const View& big, const View& small, int64_t images, int64_t task, float* parts, const Scratch& s) {
  const int64_t part_count = parts_of(l, images), units = units_of(l, images), part = task / blocks_of(l);
  const int64_t panel = task % l.panel_blocks * l.panel_block, tile = task / l.panel_blocks % l.tile_blocks * l.tile_block,
                group_from = task / (l.panel_blocks * l.tile_blocks) % l.group_blocks * l.group_block;
  const Block b{group_from, least(l.groups, group_from + l.group_block), tile, least(l.tiles, tile + l.tile_block),
                panel,      least(l.panels, panel + l.panel_block)};
  const int64_t begin = units * part / part_count, end = units * (part + 1) / part_count;
  const int64_t goes_on = blocks_of(l) == 1 ? units : end;  // what is behind this part is the next task's
  for (int64_t first = begin; first < end; first += l.units) {
    const int64_t last = least(end, first + l.units);
    pack_chunk(l, big, small, b, first, last, s);
    int64_t pixels = 0;
    for (int64_t i = 0; i < last - first; ++i) pixels += s.counts[i];
    Ahead ahead = ahead_of(l, big, small, b, last < goes_on ? last : first, pixels);
    if (last == goes_on) ahead.streams = 0;
    const int64_t joined = join_units(l, big, small, last - first, s);
    for (int64_t group = b.group_from; group < b.group_to; ++group) {
      const int64_t at = group - b.group_from;
      Scratch own = s;
      own.big += at * (b.tile_to - b.tile_from) * l.tile_floats, own.small += at * (b.panel_to - b.panel_from) * l.panel_floats;
      multiply_group(l, big, small, b, group, joined, first == begin, parts + (part * l.groups + group) * l.taps * l.channels * l.vecs * kLanes,
                     own, ahead);
    }
  }
}

// Phase 1: the parts of one tile and tap, added in order, to dw.
void add_parts(const Layout& l, int64_t images, int64_t task, const float* parts, float* dw) {
  const int64_t part_count = parts_of(l, images), part = part_floats(l), rows = l.taps * l.channels;
  const int64_t tap = task % l.taps, i = task / l.taps % l.tiles, group = task / (l.taps * l.tiles);
  const int64_t c = tile_first(l, i), channels = tile_first(l, i + 1) - c;
  const int64_t small_all = l.groups * l.small_c, big_all = l.groups * l.big_c;
  for (int64_t j = 0; j < l.panels; ++j) {
    const int64_t width = panel_vecs(l, j) * kLanes, have = least(width, l.small_c - j * kWidth);
    const float* from = parts + group * rows * l.vecs * kLanes + j * kWidth * rows + (l.taps * c + tap * channels) * width;
    for (int64_t b = 0; b < channels; ++b, from += width) {
      const int64_t row = l.windows ? c + b : tap * l.big_c + c + b;  // of T R S and big's channels
      for (int64_t v = 0; v < have; v += kLanes) {
        vf sum = load(from + v);
        for (int64_t k = 1; k < part_count; ++k) sum += load(from + k * part + v);
        const int n = static_cast<int>(least(kLanes, have - v));
        if (l.exchanged) {  // dw[tap][small][group, big]
          const int64_t t = row / l.big_c, b_c = row % l.big_c;
          float lanes[kLanes];
          store(lanes, sum);
          for (int64_t k = 0; k < n; ++k) dw[(t * l.small_c + j * kWidth + v + k) * big_all + group * l.big_c + b_c] = lanes[k];
        } else {
          float* to = dw + row * small_all + group * l.small_c + j * kWidth + v;
          if (n == kLanes) store(to, sum);
          else store_n(to, sum, n);
        }
      }
    }
  }
}

// Images of one pixel: channels [first, last) of dw, straight from x and dy.
void sum_in_place(const Layout& l, const View& x, const View& dy, int64_t images, int64_t task, float* dw) {
  const int64_t i = task % l.tiles, group = task / l.tiles;
  const int64_t c = tile_first(l, i), channels = tile_first(l, i + 1) - c, all = l.groups * l.small_c;
  const int64_t zero = 0;
  float* to = dw + c * all + group * l.small_c;
  const float* big = static_cast<const float*>(x.data) + group * l.big_c + c;
  const float* small = static_cast<const float*>(dy.data) + group * l.small_c;
  int64_t k = 0;
  for (; k + kLanes <= l.small_c; k += kWidth) {
    const int vecs = k + kWidth <= l.small_c ? 2 : 1;
    product_fn(static_cast<int>(channels), vecs)(Product{big, small + k, &zero, &zero, &images, 1, x.image, dy.image, to + k, all, true});
    if (vecs == 1) k -= kLanes;
  }
  if (k < l.small_c) {
    const int n = static_cast<int>(l.small_c - k);
    for (int64_t b = 0; b < channels; ++b) {
      vf sum = splat(0.f);
      for (int64_t m = 0; m < images; ++m) sum += splat(big[m * x.image + b]) * load_n(small + m * dy.image + k, n);
      store_n(to + b * all + k, sum, n);
    }
  }
}

void run(const ConvProblem& p, const ConvWeightArgs& a, int64_t images, int phase, int64_t first, int64_t last, void* scratch, void* shared) {
  const Layout l = layout_of(p);
  const View &big = l.exchanged ? a.dy : a.x, &small = l.exchanged ? a.x : a.dy;
  float* dw = static_cast<float*>(a.dw);
  Scratch s;
  scratch_layout(l, static_cast<char*>(scratch), &s);
  for (int64_t task = first; task < last; ++task) {
    if (l.in_place) sum_in_place(l, a.x, a.dy, images, task, dw);
    else if (phase == 0) sum_part(l, big, small, images, task, static_cast<float*>(shared), s);
    else add_parts(l, images, task, static_cast<const float*>(shared), dw);
  }
}

const char* refuse(const ConvProblem&) { return nullptr; }
double cost(const ConvProblem& p) {
  const Layout l = layout_of(p);
  const double pixels = static_cast<double>(l.small[0] * l.small[1] * l.small[2]);
  const double fmas = pixels * static_cast<double>(l.groups * l.taps * l.tiles * l.vecs) * 12;
  return fmas / (0.8 * 3000.0 * 2.0) * (l.vecs == 1 ? 1.3 : 1.0) + pixels * static_cast<double>(p.c + p.k) / 8000.0;
}
int64_t scratch_bytes(const ConvProblem& p) { return scratch_layout(layout_of(p), nullptr, nullptr); }
int64_t shared_bytes(const ConvProblem& p, int64_t images) {
  const Layout l = layout_of(p);
  return l.in_place ? 0 : parts_of(l, images) * part_floats(l) * 4;
}
int64_t phases(const ConvProblem&, int64_t) { return 2; }
int64_t tasks(const ConvProblem& p, int64_t images, int phase) {
  const Layout l = layout_of(p);
  if (l.in_place) return phase == 0 ? l.groups * l.tiles : 0;
  return phase == 0 ? parts_of(l, images) * blocks_of(l) : l.groups * l.taps * l.tiles;
}

}  // namespace

extern const ConvWeightKernel conv_weight_gemm;
const ConvWeightKernel conv_weight_gemm = {"conv_weight_gemm", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run};

}  // namespace CK_ISA
}  // namespace ck
