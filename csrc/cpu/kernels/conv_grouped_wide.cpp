// conv_grouped_wide.cpp: 3x3 convolution in many groups that fill vectors (ResNeXt: 16 or 32 channels in, as many out), float32.
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

template <int kRows, int kCols, int kStride>
void tile(const float* window_x, int64_t channels, int64_t layer_floats, const float* w, const Out& out, Ahead& ahead) {
  constexpr int kPitch = window(kCols, kStride);
  vf acc[kRows][kCols];
  CK_UNROLL
  for (int i = 0; i < kRows; ++i)
    CK_UNROLL
    for (int j = 0; j < kCols; ++j) acc[i][j] = splat(0.f);
  for (int r = 0; r < kWidth; ++r)
    for (int s = 0; s < kWidth; ++s) {
      for (int i = 0; i < ahead.rows && !ahead.copy.done(); ++i) ahead.copy.step();
      ahead.fetch.some(ahead.lines);
      const float* layer = window_x + (r * kPitch + s) * kFloats;
      for (int64_t c = channels; c > 0; c -= kFloats, layer += layer_floats) {
        const float* end = layer + (c < kFloats ? c : kFloats);
        for (const float* x = layer; x < end; x += kUnroll, w += kUnroll * kLanes) {
          CK_UNROLL
          for (int u = 0; u < kUnroll; ++u) {
            asm volatile("" ::: "memory");  // compilers would gather the numbers of several channels in registers that they do not have
            const vf b = load(w + u * kLanes);
            CK_UNROLL
            for (int i = 0; i < kRows; ++i)
              CK_UNROLL
              for (int j = 0; j < kCols; ++j) add_product(acc[i][j], x + (i * kStride * kPitch + j * kStride) * kFloats + u, b);
          }
        }
      }
    }
  finish(out, acc);
}

using WideTile = void (*)(const float*, int64_t, int64_t, const float*, const Out&, Ahead&);

// Tiles of as many outputs as there are registers for their sums; the last of an image may have fewer rows.
struct Tiles {
  int rows, cols;
  WideTile fn[2][4];  // by stride and rows
};
template <int kCols, int... kRows>
struct MakeTiles {
  static constexpr Tiles value = {sizeof...(kRows), kCols, {{tile<kRows, kCols, 1>...}, {tile<kRows, kCols, 2>...}}};
};
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr Tiles kTiles[] = {MakeTiles<14, 1, 2>::value, MakeTiles<8, 1, 2, 3>::value, MakeTiles<7, 1, 2, 3, 4>::value};
#else
constexpr Tiles kTiles[] = {MakeTiles<6, 1, 2>::value, MakeTiles<4, 1, 2, 3>::value};
#endif

struct Layout {
  const Tiles* tiles;
  Cut cut;
  int64_t group_c, group_k, vecs;  // channels and filters of a group; vectors of filters
  int64_t rows;                    // of weights of a vector
  int64_t block_groups, blocks;    // a task is a tile of a block of groups
  int height, pitch;               // of the window
  int64_t layer_floats, layers;
};

CK_INLINE Layout layout_of(const ConvProblem& p) {
  Layout l;
  l.tiles = kTiles;
  for (const Tiles& t : kTiles)  // the fewest columns computed in vain
    if ((p.q + t.cols - 1) / t.cols * t.cols < (p.q + l.tiles->cols - 1) / l.tiles->cols * l.tiles->cols) l.tiles = &t;
  l.cut = cut(p, l.tiles->rows, l.tiles->cols);
  l.group_c = p.c / p.groups, l.group_k = p.k / p.groups;
  l.vecs = (l.group_k + kLanes - 1) / kLanes;
  l.rows = kTaps * ((l.group_c + kUnroll - 1) / kUnroll * kUnroll);
  l.block_groups = most(1, kBlockChannels / l.group_c);
  l.blocks = (p.groups + l.block_groups - 1) / l.block_groups;
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
    const int64_t tiles = l.cut.tiles;
    int64_t block;
    tile = task % tiles, block = task / tiles % l.blocks, n = task / (tiles * l.blocks);
    at_tile = place(p, l.cut, tile);
    from = g = block * l.block_groups, to = least(p.groups, g + l.block_groups);
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
  Ahead ahead;
  const auto start = [&](const Unit& u, float* to) __attribute__((always_inline)) {
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
    if (next.task < last) start(next, other);
    ahead.rows = static_cast<int>((l.layers * l.height + l.vecs * kTaps - 1) / (l.vecs * kTaps));
    if (unit.g == unit.from) {
      ahead.fetch = fetch_next(p, l.cut, a.x, unit.n, images, unit.tile, unit.from * l.group_c, (unit.to - unit.from) * l.group_c, unit.to - unit.from);
      ahead.lines = (ahead.fetch.each + l.vecs * kTaps - 1) / (l.vecs * kTaps);
    }
    const WideTile fn = l.tiles->fn[stride - 1][unit.at_tile.rows - 1];
    const float* w = static_cast<const float*>(a.weights) + unit.g * l.vecs * l.rows * kLanes;
    for (int64_t k = 0; k < l.group_k; k += kLanes, w += l.rows * kLanes)
      fn(staged, l.group_c, l.layer_floats, w, out_of(p, a, unit.n, unit.at_tile, unit.g * l.group_k + k, l.group_k - k), ahead);
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
  return fmas / (0.9 * kVectorsPerMicrosecond) + static_cast<double>(p.groups * l.vecs * l.rows * kLanes * 4) / kBytesPerMicrosecond;
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
    for (int64_t v = 0; v < l.vecs; ++v)
      for (int64_t tap = 0; tap < kTaps; ++tap)
        for (int64_t c = 0; c < rows; ++c)
          for (int64_t lane = 0; lane < kLanes; ++lane, ++out) {
            const int64_t k = g * l.group_k + v * kLanes + lane;
            if (c >= l.group_c || v * kLanes + lane >= l.group_k) *out = 0.f;
            else *out = w[(tap * l.group_c + c) * p.k + k] * (s ? s[k] : 1.f);
          }
}

}  // namespace

extern const ConvKernel conv_grouped_wide;
const ConvKernel conv_grouped_wide = {"conv_grouped_wide", refuse, cost, scratch_bytes, tasks, run, packed_bytes, pack_tasks, pack};

}  // namespace CK_ISA
}  // namespace ck
