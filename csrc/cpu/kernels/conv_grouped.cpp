// conv_grouped.cpp: convolution in groups narrower than a vector (ResNeXt: 4 or 8 channels in, as many out), float32.
//
// Computes  y[..,k] = act(sum_trs sum_c x[.., g*Cg + c] * w[t,r,s,c,k] + bias + residual),  g = k / Kg, Cg = Kg in {2, 4, 8} < kLanes
// Layout    x NDHWC, y NZPQK; w [vector of filters][tap][d][lane], where lane l holds the weight of input c = (l % Cg) ^ d
// Tiling    one vector holds kLanes / Cg whole groups, of inputs and of outputs alike. Its lanes, exchanged within each group, bring every input
//           to every filter once:
//
//             x      = a0 a1 a2 a3 | b0 b1 b2 b3 | ...        (Cg = 4)
//             d = 1  : a1 a0 a3 a2 | b1 b0 b3 b2 | ...  * w[d=1] -> all filters of all groups of the vector
//
//           3x3, stride 1 or 2, undilated: a tile of 2 rows x 7 columns of outputs. For an input row and a d the weights of all outputs are in
//           registers, and an exchanged vector feeds up to six sums before the next is made; between two FMAs to one sum lie all columns:
//
//             for each input row, parity of the columns (stride 2), d:   weights [2 output rows][taps s]
//               for each column of the window:  turned = x ^ d;  sum[row][q] += turned * weight[row][s]   for every q, s with q * stride + s = column
//
//           Other shapes: a tile of outputs, one exchange an FMA.
// Cost      2*NZPQ*K*TRS*Cg flop; exchanges share a port with FMAs: 80 % of peak at best at stride 1, 66 % at stride 2 (Granite Rapids; reached from
//           the first-level cache: 76 and 61)
// Tried     (Granite Rapids, November 2026, share of peak from the first-level cache, Cg = 4)
//           2 x 14 sums, weights from memory with each FMA, four exchanges of one column in a row: 62 %, the chains of the sums wait for each other
//           pairs of lanes doubled by the load (vmovsldup) in place of every other exchange: 79 in place of 76 %, 1 % at Cg = 8; not worth an
//           instruction for each ISA
// Refuses   Cg != Kg; Cg not 2, 4 or 8, or not below the vector
// Source    Xie et al. 2017, arXiv:1611.05431, sec. 3.3 (the layers); the exchange is ours
#include "core/machine.h"
#include "cpu/grouped.h"
#include "simd/shuffle.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int kPixels = kTile[2];  // of the general loop
constexpr int kRows = 2;           // of a tile
constexpr int64_t kBlockVecs = 16;

// Columns of a tile: so many that the sums, the weights and the vectors of an input row fit the registers; or four where rows are short.
constexpr int kFew = 4, kCols = kRegisters == 32 ? 7 : kFew;
constexpr bool kKeeps = kRegisters == 32;  // the vectors of an input row stay in registers

struct Layout {
  bool square;  // 3x3, by tiles of rows x columns
  Cut cut;
  int64_t pixels, tiles, vecs, blocks;    // of an image; vectors of channels; blocks of vectors (a task is a tile and a block)
  int64_t zeros, pointers, taps, window;  // bytes
};

CK_INLINE Layout layout_of(const ConvProblem& p) {
  Layout l;
  l.square = plain_square(p);
  const int64_t cols = (p.q + kCols - 1) / kCols * kCols, few = (p.q + kFew - 1) / kFew * kFew;
  l.cut = cut(p, kRows, few * 9 < cols * 8 ? kFew : kCols);  // eight sums hide less of the latency than fourteen
  // Transposed: a tile is of one row, its outputs a stride apart, for these see the same taps.
  l.pixels = p.transposed ? (p.q + p.stride_w - 1) / p.stride_w : p.z * p.p * p.q;
  l.tiles = l.square ? l.cut.tiles : (l.pixels + kPixels - 1) / kPixels * (p.transposed ? p.z * p.p * p.stride_w : 1);
  l.vecs = (p.k + kLanes - 1) / kLanes;
  l.blocks = (l.vecs + kBlockVecs - 1) / kBlockVecs;
  const int stride = static_cast<int>(p.stride_w);
  l.window = l.square ? window(kRows, stride) * window(l.cut.cols, stride) * kLanes * 4 : 0;
  l.zeros = l.square ? 0 : align64((p.c + kLanes) * 4);
  l.pointers = l.square ? 0 : align64(p.t * p.r * p.s * kPixels * 8);
  l.taps = l.square ? 0 : align64(p.t * p.r * p.s * 4);
  return l;
}

// Pointers for the outputs q, q + stride, ... of one row of a transposed convolution, kPixels to an entry.
CK_INLINE int64_t point_transposed(const ConvProblem& p, const View& x, int64_t n, int64_t z, int64_t row, int64_t q, int count,
                                   const Table& table) {
  int64_t entries = 0, tap = 0;
  for (int64_t t = 0; t < p.t; ++t)
    for (int64_t r = 0; r < p.r; ++r)
      for (int64_t s = 0; s < p.s; ++s, ++tap) {
        const int64_t d = source_transposed(z, t, p.stride_d, p.pad_d_lo, p.dil_d, p.d);
        const int64_t h = source_transposed(row, r, p.stride_h, p.pad_h_lo, p.dil_h, p.h);
        if (d < 0 || h < 0 || (q + p.pad_w_lo - s * p.dil_w) % p.stride_w) continue;
        bool any = false;
        for (int i = 0; i < kPixels; ++i) {
          const int64_t w = i < count ? source_transposed(q + i * p.stride_w, s, p.stride_w, p.pad_w_lo, p.dil_w, p.w) : -1;
          table.x[entries * kPixels + i] = w < 0 ? table.zeros : at<const float>(x, n, d, h, w);
          any |= w >= 0;
        }
        table.tap[entries] = static_cast<int32_t>(tap);
        entries += any;
      }
  return entries;
}

// x's lane l ^ kD in every lane l.
template <int kD>
CK_INLINE vf turn(vf x) {
  if constexpr (kD == 0) return x;
  else return flip<kD>(x);
}

// Calls f with the constants 0 .. kN-1.
template <int kI>
struct Index {
  static constexpr int value = kI;
};
template <int kN, int kI = 0, class F>
CK_INLINE void each(const F& f) {
  if constexpr (kI < kN) {
    f(Index<kI>());
    each<kN, kI + 1>(f);
  }
}

// The general loop: `count` outputs, each with its pointers.
template <int kGroup>
void pixels(const Table& table, int64_t entries, int64_t k, const float* w, const Out& out) {
  vf acc[1][kPixels];
  CK_UNROLL
  for (int i = 0; i < kPixels; ++i) acc[0][i] = splat(0.f);
  for (int64_t e = 0; e < entries; ++e) {
    const float* w_e = w + table.tap[e] * kGroup * kLanes;
    vf b[kGroup];
    CK_UNROLL
    for (int d = 0; d < kGroup; ++d) b[d] = load(w_e + d * kLanes);
    CK_UNROLL
    for (int i = 0; i < kPixels; ++i) {
      const vf x = load_some(table.x[e * kPixels + i] + k, out.k);
      each<kGroup>([&](auto d) __attribute__((always_inline)) { add_product(acc[0][i], turn<d.value>(x), b[d.value]); });
    }
  }
  finish(out, acc);
}

// The window of a tile, for one vector of channels.
struct Window {
  const float* row[window(kRows, 2)];  // null: outside the input
  int64_t pixel;
  bool skip_first, skip_last;  // the first and the last column are outside
  Fetch fetch;
  int64_t lines;  // with every row
};

template <int kGroup, int kColumns, int kStride>
void tile(Window& x, const float* w, const Out& out) {
  constexpr int kHeight = window(kRows, kStride), kPitch = window(kColumns, kStride);
  const int64_t pixel = x.pixel;
  vf acc[kRows][kColumns];
  CK_UNROLL
  for (int i = 0; i < kRows; ++i)
    CK_UNROLL
    for (int j = 0; j < kColumns; ++j) acc[i][j] = splat(0.f);
  each<kHeight>([&](auto row) __attribute__((always_inline)) {
    constexpr int i = row.value;
    const float* x_i = x.row[i];
    if (!x_i) return;
    x.fetch.some(x.lines);
    each<kStride * kGroup>([&](auto step) __attribute__((always_inline)) {
      constexpr int d = step.value % kGroup, parity = step.value / kGroup;
      if (!kKeeps) asm("" : "+r"(x_i));
      vf b[kRows][kWidth];
      CK_UNROLL
      for (int o = 0; o < kRows; ++o)
        CK_UNROLL
        for (int s = parity; s < kWidth; s += kStride)
          if (i >= o * kStride && i - o * kStride < kWidth) b[o][s] = load(w + (((i - o * kStride) * kWidth + s) * kGroup + d) * kLanes);
      CK_UNROLL
      for (int j = parity; j < kPitch; j += kStride) {
        if (j == 0 && x.skip_first) continue;
        if (j == kPitch - 1 && x.skip_last) continue;
        const vf turned = turn<d>(load(x_i + j / 3 * 3 * pixel + j % 3 * pixel));  // few registers for the addresses
        CK_UNROLL
        for (int o = 0; o < kRows; ++o)
          CK_UNROLL
          for (int s = parity; s < kWidth; s += kStride)
            if (i >= o * kStride && i - o * kStride < kWidth && j >= s && (j - s) / kStride < kColumns)
              add_product(acc[o][(j - s) / kStride], turned, b[o][s]);
      }
    });
  });
  finish(out, acc);
}

// Tiles [first, last) of 3x3 filters.
template <int kGroup, int kColumns, int kStride>
void run_square(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t first, int64_t last, void* memory) {
  constexpr int kHeight = window(kRows, kStride), kPitch = window(kColumns, kStride);
  const Layout l = layout_of(p);
  float* staged = static_cast<float*>(memory);
  for (int64_t task = first; task < last; ++task) {
    const int64_t n = task / (l.tiles * l.blocks), block = task / l.tiles % l.blocks, tile_n = task % l.tiles;
    const int64_t from = l.vecs * block / l.blocks, to = l.vecs * (block + 1) / l.blocks;
    const Place at_tile = place(p, l.cut, tile_n);
    const int64_t h = at_tile.p * kStride - p.pad_h_lo, w = at_tile.q * kStride - p.pad_w_lo;
    const bool inside = w >= -1 && w + kPitch <= p.w + 1;
    const auto exists = [&](int i) { return i < window(at_tile.rows, kStride) && static_cast<uint64_t>(h + i) < static_cast<uint64_t>(p.h); };
    Window x;
    x.fetch = fetch_next(p, l.cut, a.x, n, images, tile_n, from * kLanes, (to - from) * kLanes, to - from);
    x.lines = (x.fetch.each + kHeight - 1) / kHeight;
    x.pixel = a.x.pixel, x.skip_first = w < 0, x.skip_last = w + kPitch > p.w;
    for (int i = 0; i < kHeight; ++i) x.row[i] = exists(i) ? at<const float>(a.x, n, at_tile.z, h + i, w) + from * kLanes : nullptr;
    Out out = out_of(p, a, n, at_tile, from * kLanes, kLanes);
    const float* weights = static_cast<const float*>(a.weights) + from * kLanes * kWidth * kWidth * kGroup;
    for (int64_t k = from * kLanes; k < to * kLanes; k += kLanes, weights += kLanes * kWidth * kWidth * kGroup) {
      out.k = least(kLanes, p.k - k);
      if (!inside || out.k < kLanes) {  // a copy with zeros where there is nothing
        Copy<kLanes> copy;
        copy.start(p, a.x, n, at_tile.z, h, w, k, out.k, kHeight, kPitch, staged, 0);
        while (!copy.done()) copy.step();
        for (int i = 0; i < kHeight; ++i) x.row[i] = exists(i) ? staged + i * kPitch * kLanes : nullptr;
        x.pixel = kLanes, x.skip_first = x.skip_last = false;
      }
      tile<kGroup, kColumns, kStride>(x, weights, out);
      for (int i = 0; i < kHeight; ++i)
        if (x.row[i]) x.row[i] += kLanes;
      out.y += kLanes;
      if (out.residual) out.residual += kLanes;
      if (out.bias) out.bias += kLanes;
    }
  }
}

template <int kGroup>
void run_group(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t first, int64_t last, void* memory) {
  const Layout l = layout_of(p);
  if (l.square) {
    const bool few = l.cut.cols == kFew;
    if (p.stride_w == 1) return (few ? run_square<kGroup, kFew, 1> : run_square<kGroup, kCols, 1>)(p, a, images, first, last, memory);
    return (few ? run_square<kGroup, kFew, 2> : run_square<kGroup, kCols, 2>)(p, a, images, first, last, memory);
  }
  char* at_byte = static_cast<char*>(memory);
  float* zeros = reinterpret_cast<float*>(at_byte);
  const Table table{reinterpret_cast<const float**>(at_byte + l.zeros), reinterpret_cast<int32_t*>(at_byte + l.zeros + l.pointers), zeros};
  for (int64_t c = 0; c < p.c + kLanes; ++c) zeros[c] = 0.f;
  for (int64_t task = first; task < last; ++task) {
    const int64_t n = task / (l.blocks * l.tiles), tile = task / l.blocks % l.tiles, block = task % l.blocks;
    int64_t entries;
    Out out;
    if (p.transposed) {
      const int64_t parts = (l.pixels + kPixels - 1) / kPixels, part = tile % parts, residue = tile / parts % p.stride_w;
      const int64_t row = tile / (parts * p.stride_w) % p.p, z = tile / (parts * p.stride_w * p.p);
      const int64_t pixels = residue < p.q ? (p.q - residue + p.stride_w - 1) / p.stride_w : 0, from = pixels * part / parts;
      const int count = static_cast<int>(pixels * (part + 1) / parts - from);
      if (!count) continue;
      const int64_t q = residue + from * p.stride_w;
      entries = point_transposed(p, a.x, n, z, row, q, count, table);
      out = out_of(p, a, n, {z, row, q, 1, count}, 0, 0);
      out.y_pixel *= p.stride_w, out.residual_pixel *= p.stride_w;
    } else {
      const int64_t m = l.pixels * tile / l.tiles;
      const int count = static_cast<int>(l.pixels * (tile + 1) / l.tiles - m);
      entries = point_flat(p, false, a.x, n, m, count, table);
      if (count < kPixels)
        for (int64_t e = entries - 1; e >= 0; --e)
          for (int i = kPixels - 1; i >= 0; --i) table.x[e * kPixels + i] = i < count ? table.x[e * count + i] : zeros;
      out = out_of(p, a, n, {0, 0, 0, 1, count}, 0, 0);
      out.y += m * a.y.pixel;
      if (out.residual) out.residual += m * a.residual.pixel;
    }
    const int64_t to = l.vecs * (block + 1) / l.blocks;
    for (int64_t v = l.vecs * block / l.blocks; v < to; ++v) {
      const int64_t k = v * kLanes;
      Out out_v = out;
      out_v.y += k, out_v.k = least(kLanes, p.k - k);
      if (out.residual) out_v.residual += k;
      if (out.bias) out_v.bias += k;
      pixels<kGroup>(table, entries, k, static_cast<const float*>(a.weights) + k * p.t * p.r * p.s * kGroup, out_v);
    }
  }
}

void run(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t first, int64_t last, void* memory) {
  switch (p.c / p.groups) {
    case 2: return run_group<2>(p, a, images, first, last, memory);
    // A group that fills a vector was refused: those cases only have to compile.
    case 4: return run_group<(kLanes > 4 ? 4 : 2)>(p, a, images, first, last, memory);
    case 8: return run_group<(kLanes > 8 ? 8 : 2)>(p, a, images, first, last, memory);
  }
}

const char* refuse(const ConvProblem& p) {
  const int64_t group = p.c / p.groups;
  if (p.c != p.k) return "as many filters as channels only";
  if (group != 2 && group != 4 && group != 8) return "groups of 2, 4 or 8 channels only";
  if (group >= kLanes) return "a group fills a vector: conv_direct";
  return nullptr;
}

double cost(const ConvProblem& p) {
  const Layout l = layout_of(p);
  const double taps = static_cast<double>(p.t * p.r * p.s), outputs = static_cast<double>(p.transposed ? p.d * p.h * p.w : p.z * p.p * p.q);
  const double an_fma = l.square && p.stride_w == 1 ? 1.35 : 1.65;
  return outputs * static_cast<double>(l.vecs) * taps * static_cast<double>(p.c / p.groups) * an_fma / kVectorsPerMicrosecond;
}

int64_t scratch_bytes(const ConvProblem& p) {
  const Layout l = layout_of(p);
  return l.zeros + l.pointers + l.taps + l.window;
}
int64_t tasks(const ConvProblem& p, int64_t images) {
  const Layout l = layout_of(p);
  return images * l.tiles * l.blocks;
}
int64_t packed_bytes(const ConvProblem& p) { return layout_of(p).vecs * kLanes * p.t * p.r * p.s * (p.c / p.groups) * 4; }

int64_t pack_tasks(const ConvProblem&) { return 1; }
void pack(const ConvProblem& p, const void* weights, const void* scale, void* packed, int64_t, int64_t) {
  const float* w = static_cast<const float*>(weights);
  const float* s = static_cast<const float*>(scale);
  float* out = static_cast<float*>(packed);
  const int64_t group = p.c / p.groups, rows = p.t * p.r * p.s * group;
  for (int64_t v = 0; v < layout_of(p).vecs; ++v)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t l = 0; l < kLanes; ++l, ++out) {
        const int64_t k = v * kLanes + l, c = row % group, from = row - c + ((l % group) ^ c);
        *out = k >= p.k ? 0.f : s ? w[from * p.k + k] * s[k] : w[from * p.k + k];
      }
}

}  // namespace

extern const ConvKernel conv_grouped;
const ConvKernel conv_grouped = {"conv_grouped", refuse, cost, scratch_bytes, tasks, run, packed_bytes, pack_tasks, pack};

}  // namespace CK_ISA
}  // namespace ck
