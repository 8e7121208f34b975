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

template <int kRows, int kCols, int kStride>
void tile(const float* window_x, int64_t channels, int64_t layer_floats, const float* w, const Out& out) {
  constexpr int kPitch = window(kCols, kStride);
  vf acc[kRows][kCols];
  CK_UNROLL
  for (int i = 0; i < kRows; ++i)
    CK_UNROLL
    for (int j = 0; j < kCols; ++j) acc[i][j] = splat(0.f);
  for (int r = 0; r < kWidth; ++r)
    for (int s = 0; s < kWidth; ++s) {
      const float* layer = window_x + (r * kPitch + s) * kFloats;
      for (int64_t c = channels; c > 0; c -= kFloats, layer += layer_floats) {
        const float* end = layer + (c < kFloats ? c : kFloats);
        for (const float* x = layer; x < end; x += kUnroll, w += kUnroll * kLanes) {
          CK_UNROLL
          for (int u = 0; u < kUnroll; ++u) {
            const vf b = load(w + u * kLanes);
            CK_UNROLL
            for (int i = 0; i < kRows; ++i)
              CK_UNROLL
              for (int j = 0; j < kCols; ++j) add_scaled(acc[i][j], x + (i * kStride * kPitch + j * kStride) * kFloats + u, b);
          }
        }
      }
    }
  finish(out, acc);
}

using WideTile = void (*)(const float*, int64_t, int64_t, const float*, const Out&);

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
  l.rows = kWidth * kWidth * ((l.group_c + kUnroll - 1) / kUnroll * kUnroll);
  l.block_groups = most(1, kBlockChannels / l.group_c);
  l.blocks = (p.groups + l.block_groups - 1) / l.block_groups;
  const int stride = static_cast<int>(p.stride_w);
  l.height = window(l.cut.rows, stride), l.pitch = window(l.cut.cols, stride);
  l.layer_floats = l.height * l.pitch * kFloats;
  l.layers = (l.group_c + kFloats - 1) / kFloats;
  return l;
}

void run(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t first, int64_t last, void* memory) {
  const Layout l = layout_of(p);
  const int stride = static_cast<int>(p.stride_w);
  float* window_x = static_cast<float*>(memory);
  for (int64_t task = first; task < last; ++task) {
    const int64_t tile = task % l.cut.tiles, n = task / l.cut.tiles % images, block = task / (l.cut.tiles * images);
    const Place at_tile = place(p, l.cut, tile);
    const WideTile fn = l.tiles->fn[stride - 1][at_tile.rows - 1];
    const int height = window(at_tile.rows, stride);
    const int64_t to = least(p.groups, (block + 1) * l.block_groups);
    for (int64_t g = block * l.block_groups; g < to; ++g) {
      for (int64_t layer = 0; layer < l.layers; ++layer)
        stage(p, a.x, n, at_tile.z, at_tile.p * stride - p.pad_h_lo, at_tile.q * stride - p.pad_w_lo, g * l.group_c + layer * kFloats,
              static_cast<int>(least(kFloats, l.group_c - layer * kFloats)), height, l.pitch, kFloats, l.cut.rows * stride * a.x.row,
              kWidth - stride, window_x + layer * l.layer_floats);
      const float* w = static_cast<const float*>(a.weights) + g * l.vecs * l.rows * kLanes;
      for (int64_t k = 0; k < l.group_k; k += kLanes, w += l.rows * kLanes)
        fn(window_x, l.group_c, l.layer_floats, w, out_of(p, a, n, at_tile, g * l.group_k + k, l.group_k - k));
    }
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
  return l.layers * l.layer_floats * 4;
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
  const int64_t rows = l.rows / (kWidth * kWidth);
  for (int64_t g = first; g < last; ++g)
    for (int64_t v = 0; v < l.vecs; ++v)
      for (int64_t tap = 0; tap < kWidth * kWidth; ++tap)
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
