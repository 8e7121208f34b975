// conv_grouped_wide.cpp: 3x3 convolution in groups that fill vectors (ResNeXt: 16 or 32 channels in, as many out), float32.
//
// Computes  y[n,z,p,q,k] = act(sum_rsc x[n, z, p*st-ph+r, q*st-pw+s, g*Cg + c] * w[r,s,c,k] + bias + residual),  g = k / Kg, st = 1 or 2
// Layout    x NDHWC, y NZPQK; w [group][one or two vectors of filters][tap][c][lane], c padded to a multiple of 4
// Tiling    a group gives only a vector or two of filters, so that conv_direct's tiles are half empty or set up their pointers for little work. Here a
//           tile has rows x columns that fit the map: of one vector 2 x 14, 3 x 8 or 4 x 7 outputs (AVX-512), where a weight is loaded once for 28
//           FMAs that broadcast their input number themselves; of two vectors 2 x 7, 3 x 4 or 1 x 14; with 16 registers about half as many.
//           The window of a tile is copied first: its pixels lie C floats apart, 2 or 4 KB, in the same few sets of the first-level cache; in the
//           copy all offsets are constants and borders are zeros.
//
//             copy of the next group's window, a row with every tap    |  9 taps x Cg:  28 sums += x[pixel][c] * w[tap][c]
//             lines of the next band of tiles, to the second level     |
//
//           A task is a tile of a block of groups, whose weights stay in the second-level cache while the tiles of an image pass.
// Cost      2*NZPQ*K*9*Cg flop; from the first-level cache 85 % of peak with one vector (29 loads for 28 FMAs), 91 with two (Granite Rapids)
// Tried     (Granite Rapids, November 2026, one thread, N=8, input from memory)
//           the copy, and the fetching, in a burst before each tile: 28x28x512 stride 2 4.4 ms in place of 2.1
//           blocks inside tiles (all weights pass with each tile): 14x14x1024 stride 2 2.3 ms in place of 1.7
//           steps of 8 or 16 channels in place of 4: nothing; fetching weights to the first level: nothing
//           tiles of two vectors for 24 filters, the second half empty: no faster than one vector after the other
//           for full vectors, two one after the other, 28 outputs each: 7 % slower (Cg = 32, stride 2), with AVX2 10 to 15 (Cg = 16)
// Refuses   transposed; not 3x3; dilated; strides other than 1 and 2; one group; groups of more than 64 channels (conv_direct's tiles are full then)
// Source    Xie et al. 2017, arXiv:1611.05431, sec. 3.3 (the layers)
#include "core/machine.h"
#include "cpu/grouped.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int kFloats = 16;           // of a pixel in a layer of the window
constexpr int kUnroll = 4;            // channels: the weights of a tap are padded to a multiple
constexpr int64_t kMaxChannels = 64;  // of a group
constexpr int64_t kBlockChannels = 256;
constexpr int kTaps = kWidth * kWidth;

// What is done for the tiles to come while one is computed, a part with every tap.
struct Ahead {
  Copy<kFloats> copy;
  int rows;
  Fetch fetch;
  int64_t lines;
};

// One panel of filters. `staged`: the copied window, whose layers of kFloats channels lie layer_floats apart.
template <int kVecs, int kRows, int kCols, int kStride>
void tile(const float* staged, int64_t channels, int64_t layer_floats, const float* w, const Out& out, Ahead& ahead) {
  constexpr int kPitch = window(kCols, kStride);
  vf acc[kVecs][kRows][kCols];
  CK_UNROLL
  for (int v = 0; v < kVecs; ++v)
    CK_UNROLL
    for (int i = 0; i < kRows; ++i)
      CK_UNROLL
      for (int j = 0; j < kCols; ++j) acc[v][i][j] = splat(0.f);
  for (int r = 0; r < kWidth; ++r)
    for (int s = 0; s < kWidth; ++s) {
      for (int i = 0; i < ahead.rows && !ahead.copy.done(); ++i) ahead.copy.step();
      ahead.fetch.some(ahead.lines);
      const float* layer = staged + (r * kPitch + s) * kFloats;
      for (int64_t c = channels; c > 0; c -= kFloats, layer += layer_floats) {
        const float* end = layer + (c < kFloats ? c : kFloats);
        for (const float* x = layer; x < end; x += kUnroll, w += kUnroll * kVecs * kLanes) {
          CK_UNROLL
          for (int u = 0; u < kUnroll; ++u) {
            asm volatile("" ::: "memory");  // compilers would gather the numbers of several channels in registers that they do not have
            vf b[kVecs];
            CK_UNROLL
            for (int v = 0; v < kVecs; ++v) b[v] = load(w + (u * kVecs + v) * kLanes);
            CK_UNROLL
            for (int i = 0; i < kRows; ++i)
              CK_UNROLL
              for (int j = 0; j < kCols; ++j) {
                const float* x_ij = x + (i * kStride * kPitch + j * kStride) * kFloats + u;
                if constexpr (kVecs == 1) {
                  add_product(acc[0][i][j], x_ij, b[0]);
                } else {
                  const vf number = splat(*x_ij);
                  CK_UNROLL
                  for (int v = 0; v < kVecs; ++v) add_product(acc[v][i][j], number, b[v]);
                }
              }
          }
        }
      }
    }
  CK_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    Out out_v = out;
    out_v.k = least(kLanes, out.k - v * kLanes);
    out_v.y += v * kLanes;
    if (out.residual) out_v.residual += v * kLanes;
    if (out.bias) out_v.bias += v * kLanes;
    finish(out_v, acc[v]);
  }
}

using WideTile = void (*)(const float*, int64_t, int64_t, const float*, const Out&, Ahead&);

// Tiles of as many sums as there are registers for them; the last of an image may have fewer rows.
struct Tiles {
  int rows, cols;
  WideTile fn[2][4];  // by stride and rows
};
template <int kVecs, int kCols, int... kRows>
struct MakeTiles {
  static constexpr Tiles value = {sizeof...(kRows), kCols, {{tile<kVecs, kRows, kCols, 1>...}, {tile<kVecs, kRows, kCols, 2>...}}};
};
constexpr bool kMany = kRegisters == 32;
constexpr int kSizes = 3;
constexpr Tiles kTiles[2][kSizes] = {  // of one vector, of two
    {MakeTiles<1, kMany ? 14 : 6, 1, 2>::value, MakeTiles<1, kMany ? 8 : 4, 1, 2, 3>::value, MakeTiles<1, kMany ? 7 : 3, 1, 2, 3, 4>::value},
    {MakeTiles<2, kMany ? 7 : 3, 1, 2>::value, MakeTiles<2, kMany ? 4 : 2, 1, 2, 3>::value, MakeTiles<2, kMany ? 14 : 6, 1>::value}};

struct Layout {
  const Tiles* tiles;
  Cut cut;
  int64_t group_c, group_k;        // channels and filters of a group
  int64_t vecs, width, panels;     // vectors of filters: of a group, of a tile; tiles of a group
  int64_t rows;                    // of weights of a vector
  int64_t blocks;                  // of groups
  int height, pitch;               // of the window
  int64_t layer_floats, layers;
};

CK_INLINE Layout layout_of(const ConvProblem& p) {
  Layout l;
  l.group_c = p.c / p.groups, l.group_k = p.k / p.groups;
  l.width = l.group_k % (2 * kLanes) ? 1 : 2;
  l.vecs = (l.group_k + kLanes - 1) / kLanes, l.panels = l.vecs / l.width;
  l.tiles = kTiles[l.width - 1];
  for (const Tiles& t : kTiles[l.width - 1])  // the fewest columns computed in vain
    if ((p.q + t.cols - 1) / t.cols * t.cols < (p.q + l.tiles->cols - 1) / l.tiles->cols * l.tiles->cols) l.tiles = &t;
  l.cut = cut(p, l.tiles->rows, l.tiles->cols);
  l.rows = kTaps * ((l.group_c + kUnroll - 1) / kUnroll * kUnroll);
  const int64_t block_groups = most(1, kBlockChannels / l.group_c);
  l.blocks = (p.groups + block_groups - 1) / block_groups;
  const int stride = static_cast<int>(p.stride_w);
  l.height = window(l.cut.rows, stride), l.pitch = window(l.cut.cols, stride);
  l.layer_floats = l.height * l.pitch * kFloats;
  l.layers = (l.group_c + kFloats - 1) / kFloats;
  return l;
}

// The tile of a group: what is staged at once. Units of a range of tasks, one after the other.
struct Unit {
  int64_t task, last, from, to, g;
  int64_t n, tile;
  Place at_tile;

  CK_INLINE_MEMBER void enter(const ConvProblem& p, const Layout& l) {
    if (task >= last) return;
    const int64_t block = task / l.cut.tiles % l.blocks;
    tile = task % l.cut.tiles, n = task / (l.cut.tiles * l.blocks);
    at_tile = place(p, l.cut, tile);
    from = g = p.groups * block / l.blocks, to = p.groups * (block + 1) / l.blocks;
  }
  CK_INLINE_MEMBER void advance(const ConvProblem& p, const Layout& l) {
    if (++g == to) ++task, enter(p, l);
  }
};

void run(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t first, int64_t last, void* memory) {
  const Layout l = layout_of(p);
  const int stride = static_cast<int>(p.stride_w);
  float* staged = static_cast<float*>(memory);
  float* other = staged + l.layers * l.layer_floats;
  Ahead ahead{};
  ahead.rows = static_cast<int>((l.layers * l.height + l.panels * kTaps - 1) / (l.panels * kTaps));
  const auto start = [&](const Unit& u, float* to) __attribute__((always_inline)) {
    if (u.task >= last) return;
    ahead.copy.start(p, a.x, u.n, u.at_tile.z, u.at_tile.p * stride - p.pad_h_lo, u.at_tile.q * stride - p.pad_w_lo, u.g * l.group_c,
                     l.group_c, window(u.at_tile.rows, stride), l.pitch, to, l.layer_floats);
  };
  Unit unit{first, last, 0, 0, 0, 0, 0, {}};
  unit.enter(p, l);
  start(unit, staged);
  while (!ahead.copy.done()) ahead.copy.step();
  while (unit.task < last) {
    Unit next = unit;
    next.advance(p, l);
    start(next, other);
    if (unit.g == unit.from) {
      ahead.fetch = fetch_next(p, l.cut, a.x, unit.n, images, unit.tile, unit.from * l.group_c, (unit.to - unit.from) * l.group_c, unit.to - unit.from);
      ahead.lines = (ahead.fetch.each + l.panels * kTaps - 1) / (l.panels * kTaps);
    }
    const float* w = static_cast<const float*>(a.weights) + unit.g * l.vecs * l.rows * kLanes;
    for (int64_t v = 0; v < l.vecs; v += l.width, w += l.width * l.rows * kLanes) {
      Out out = out_of(p, a, unit.n, unit.at_tile, unit.g * l.group_k + v * kLanes, 0);
      out.k = l.group_k - v * kLanes;
      l.tiles->fn[stride - 1][unit.at_tile.rows - 1](staged, l.group_c, l.layer_floats, w, out, ahead);
    }
    unit = next;
    float* swap = staged;
    staged = other, other = swap;
  }
}

const char* refuse(const ConvProblem& p) {
  if (!plain_square(p)) return "not 3x3, or dilated, or of another stride than 1 or 2";
  if (p.groups == 1) return "one group: conv_direct";
  if (p.c / p.groups > kMaxChannels) return "groups of more than 64 channels: conv_direct";
  return nullptr;
}

double cost(const ConvProblem& p) {
  const Layout l = layout_of(p);
  const double fmas = static_cast<double>(p.z * p.p * l.cut.parts * l.cut.cols * p.groups * l.vecs * l.rows);
  // Of the peak. Three vectors fill conv_direct's tiles; four lanes do not outweigh a load for each FMA.
  const double share = l.width > 1 ? 0.9 : kLanes == 4 ? 0.6 : l.vecs > 2 ? 0.8 : 0.87;
  return fmas / (share * kVectorsPerMicrosecond) + static_cast<double>(p.groups * l.vecs * l.rows * kLanes * 4) / kBytesPerMicrosecond;
}

int64_t scratch_bytes(const ConvProblem& p) {
  const Layout l = layout_of(p);
  return 2 * l.layers * l.layer_floats * 4;
}
int64_t tasks(const ConvProblem& p, int64_t images) {
  const Layout l = layout_of(p);
  return l.blocks * images * l.cut.tiles;
}
int64_t packed_bytes(const ConvProblem& p) {
  const Layout l = layout_of(p);
  return p.groups * l.vecs * l.rows * kLanes * 4;
}

int64_t pack_tasks(const ConvProblem& p) { return p.groups; }
void pack(const ConvProblem& p, const void* weights, const void* scale, void* packed, int64_t first, int64_t last) {
  const Layout l = layout_of(p);
  const float* w = static_cast<const float*>(weights);
  const float* s = static_cast<const float*>(scale);
  float* out = static_cast<float*>(packed) + first * l.vecs * l.rows * kLanes;
  const int64_t rows = l.rows / kTaps;
  for (int64_t g = first; g < last; ++g)
    for (int64_t v = 0; v < l.vecs; v += l.width)
      for (int64_t tap = 0; tap < kTaps; ++tap)
        for (int64_t c = 0; c < rows; ++c)
          for (int64_t j = v * kLanes; j < (v + l.width) * kLanes; ++j, ++out) {
            const int64_t k = g * l.group_k + j;
            if (c >= l.group_c || j >= l.group_k) *out = 0.f;
            else *out = w[(tap * l.group_c + c) * p.k + k] * (s ? s[k] : 1.f);
          }
}

}  // namespace

extern const ConvKernel conv_grouped_wide;
const ConvKernel conv_grouped_wide = {"conv_grouped_wide", refuse, cost, scratch_bytes, tasks, run, packed_bytes, pack_tasks, pack};

}  // namespace CK_ISA
}  // namespace ck
