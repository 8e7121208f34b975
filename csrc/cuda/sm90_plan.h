// sm90_plan.h: what the host works out before it launches one of the sm_90a convolutions: sizes, tensor maps, the choice of a tile.
//
// Plain C++ without CUDA: maps are plain structs here, encoded only at the launch (sm90_launch.cuh), so that tests can check and interpret them.
//
//     GEMM rows    m = (n, p, q)        output pixels
//     GEMM columns k                    filters
//     GEMM depth     = (c-block, r, s)  one row of 128 (or 64) bytes of channels of one filter tap at a time
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/problem.h"
#include "core/tensor.h"

namespace ck::cuda {

constexpr int kSm90Shared = 232448;  // bytes of shared memory a block may have

// A tensor map before it is encoded: dimensions innermost first, strides[i] in bytes from one index of dimension i + 1 to the next.
struct MapSpec {
  enum Type : int32_t { kHalf, kBfloat, kTf32, kFloat };  // kTf32: floats, rounded on their way in
  const void* base;
  Type type;
  int32_t rank;
  uint64_t dim[4];
  uint64_t stride[3];
  uint32_t box[4];             // tiled maps; im2col: {channels, pixels}
  int32_t im2col;              // 1: rank 4 (C W H N), corners and steps below
  int32_t lower[2], upper[2];  // W first: pixel origins lie in [lower, dim - 1 + upper]
  uint32_t step[2];            // W first: from one origin to the next
  int32_t unused;              // no padding: specs are compared as bytes

  int element_bytes() const { return type == kTf32 || type == kFloat ? 4 : 2; }
  int swizzle_bytes() const { return static_cast<int>(box[0]) * element_bytes(); }  // 128 or 64: the row of a tile
};

// What the encoder would refuse, for what reason; null if it is a valid map.
inline const char* refuse_map(const MapSpec& m) {
  if (reinterpret_cast<uintptr_t>(m.base) % 16) return "a tensor map needs an address that is a multiple of 16 bytes";
  for (int i = 0; i + 1 < m.rank; ++i)
    if (m.stride[i] % 16 || m.stride[i] >= uint64_t{1} << 40) return "a tensor map needs strides that are multiples of 16 bytes below 2^40";
  for (int i = 0; i < m.rank; ++i)
    if (m.dim[i] < 1 || m.dim[i] > uint64_t{1} << 32) return "a tensor map needs sizes of 1 to 2^32";
  if (!m.im2col) {
    for (int i = 0; i < m.rank; ++i)
      if (m.box[i] < 1 || m.box[i] > 256) return "a tensor map's box has 1 to 256 elements a side";
    return nullptr;
  }
  if (m.box[0] > 256 || m.box[1] > 1024) return "im2col loads at most 256 channels of 1024 pixels";
  for (int i = 0; i < 2; ++i) {
    if (m.lower[i] < -128 || m.lower[i] > 127 || m.upper[i] < -128 || m.upper[i] > 127)
      return "padding and the filter's reach must be below 128 pixels (im2col corners)";
    if (m.step[i] > 8) return "strides must be at most 8 pixels (im2col)";
  }
  return nullptr;
}

// The kernels' argument: sizes, computed once.
struct Sm90Args {
  int m, k;      // GEMM rows (N*P*Q) and columns (filters)
  int p, q;      // output height and width
  int taps, s;   // R*S and S
  int k_blocks;  // taps * ceil(C / depth of a block)
  int stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;
  int pointwise;                          // 1: x is the matrix [m, C], loaded by a plain 2-D map
  int tiles_n, tiles;                     // output tiles: columns, total (columns vary fastest: they share the pixels in L2)
  int blocks_h, blocks_w;                 // halo: 8x8 output blocks of an image
  int patch_w, patch_pitch, patch_bytes;  // halo: width of a block's input patch in pixels; its bytes, and those rounded up to 1024
  int split;                              // cluster: blocks that share a tile
  int residual;                           // 1: there is one
  const float* scale;                     // per filter, or null for 1
  const float* bias;                      // per filter, or null for 0
  int act;                                // Act, with its parameters; kNone comes as kClamp from -inf to inf
  float act_a, act_b;
  // cluster: y and the residual are written and read by threads, elements of a pixel's pitch
  void* y;
  const void* residual_data;
  int64_t y_pixel, residual_pixel;
};

inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return div_up(a, b) * b; }

inline bool is_pointwise(const ConvProblem& c) {
  return c.r == 1 && c.s == 1 && c.stride_h == 1 && c.stride_w == 1 && !(c.pad_h_lo | c.pad_h_hi | c.pad_w_lo | c.pad_w_hi);
}
// Whether all pixels of a view lie at one pitch, so that (n, p, q) is one dimension.
inline bool is_matrix(const View& v, int64_t rows, int64_t columns) { return v.row == columns * v.pixel && v.image == rows * v.row; }

// One tile shape of one kernel. The cost model, in microseconds: start + waves * (blocks of depth * block + tile + cluster size * split), fitted to
// sweeps of all shapes over common layers on an H100 in half precision. TF32 takes the same time for a block of depth (half the elements).
struct Sm90Variant {
  const char* name;
  int tile_m, tile_n, row_bytes, threads, shared_bytes, blocks_per_sm;
  bool any_act;  // false: no activation or a clamp (ReLU, ReLU6)
  float start, block, tile, split;
  const void* kernel[3];  // half, bfloat, float (TF32)
};

inline int64_t halo_patch_pitch(const ConvProblem& c) {
  return round_up((8 + (c.r - 1) * c.dil_h) * (8 + (c.s - 1) * c.dil_w) * 128, 1024);
}
// Dynamic shared memory; the halo kernel's two patches per block of pixels come on top of the variant's.
inline int64_t halo_shared(const Sm90Variant& v, const ConvProblem& c) {
  return v.shared_bytes + 2 * (v.tile_m / 64) * halo_patch_pitch(c);
}

inline Sm90Args sm90_args(const ConvProblem& c, int64_t images, int element_bytes, const Sm90Variant& v, bool halo) {
  Sm90Args g{};
  g.p = static_cast<int>(c.p), g.q = static_cast<int>(c.q), g.k = static_cast<int>(c.k);
  g.m = static_cast<int>(images * c.p * c.q);
  g.taps = static_cast<int>(c.r * c.s), g.s = static_cast<int>(c.s);
  g.k_blocks = static_cast<int>(g.taps * div_up(c.c, v.row_bytes / element_bytes));
  g.stride_h = static_cast<int>(c.stride_h), g.stride_w = static_cast<int>(c.stride_w);
  g.pad_h = static_cast<int>(c.pad_h_lo), g.pad_w = static_cast<int>(c.pad_w_lo);
  g.dil_h = static_cast<int>(c.dil_h), g.dil_w = static_cast<int>(c.dil_w);
  g.tiles_n = static_cast<int>(div_up(c.k, v.tile_n));
  g.tiles = static_cast<int>(div_up(g.m, v.tile_m)) * g.tiles_n;
  g.split = 1;
  if (halo) {
    g.patch_w = static_cast<int>(8 + (c.s - 1) * c.dil_w);
    g.patch_bytes = static_cast<int>((8 + (c.r - 1) * c.dil_h) * g.patch_w * 128);
    g.patch_pitch = static_cast<int>(halo_patch_pitch(c));
    g.blocks_h = static_cast<int>(div_up(c.p, 8)), g.blocks_w = static_cast<int>(div_up(c.q, 8));
    g.tiles = static_cast<int>(div_up(images * g.blocks_h * g.blocks_w, v.tile_m / 64)) * g.tiles_n;
  }
  return g;
}

static_assert(sizeof(MapSpec) == 120, "no padding");

inline MapSpec tiled_map(MapSpec::Type type, const void* base, int rank) {
  MapSpec m;
  std::memset(&m, 0, sizeof m);
  m.base = base, m.type = type, m.rank = rank;
  return m;
}

// x as im2col: a box is `pixels` output pixels of one tap, walked across rows and images by the hardware.
inline MapSpec im2col_map(MapSpec::Type type, const ConvProblem& c, int64_t images, const View& x, int row_bytes, int pixels) {
  MapSpec m = tiled_map(type, x.data, 4);
  const uint64_t e = static_cast<uint64_t>(m.element_bytes());
  const uint64_t dim[4] = {uint64_t(c.c), uint64_t(c.w), uint64_t(c.h), uint64_t(images)};
  const uint64_t stride[3] = {x.pixel * e, x.row * e, x.image * e};
  std::memcpy(m.dim, dim, sizeof dim);
  std::memcpy(m.stride, stride, sizeof stride);
  m.box[0] = static_cast<uint32_t>(row_bytes / m.element_bytes()), m.box[1] = static_cast<uint32_t>(pixels);
  m.im2col = 1;
  m.lower[0] = static_cast<int32_t>(-c.pad_w_lo), m.lower[1] = static_cast<int32_t>(-c.pad_h_lo);
  m.upper[0] = static_cast<int32_t>(c.pad_w_hi - (c.s - 1) * c.dil_w), m.upper[1] = static_cast<int32_t>(c.pad_h_hi - (c.r - 1) * c.dil_h);
  m.step[0] = static_cast<uint32_t>(c.stride_w), m.step[1] = static_cast<uint32_t>(c.stride_h);
  return m;
}
// A matrix of `rows` pixels at one pitch.
inline MapSpec matrix_map(MapSpec::Type type, const View& v, int64_t columns, int64_t rows, int box_columns, int box_rows) {
  MapSpec m = tiled_map(type, v.data, 2);
  m.dim[0] = uint64_t(columns), m.dim[1] = uint64_t(rows);
  m.stride[0] = uint64_t(v.pixel) * uint64_t(m.element_bytes());
  m.box[0] = uint32_t(box_columns), m.box[1] = uint32_t(box_rows);
  return m;
}
// An image in blocks of box_h x box_w pixels.
inline MapSpec image_map(MapSpec::Type type, const View& v, int64_t c, int64_t w, int64_t h, int64_t n, int box_c, int box_w, int box_h) {
  MapSpec m = tiled_map(type, v.data, 4);
  const uint64_t e = static_cast<uint64_t>(m.element_bytes());
  const uint64_t dim[4] = {uint64_t(c), uint64_t(w), uint64_t(h), uint64_t(n)};
  const uint64_t stride[3] = {v.pixel * e, v.row * e, v.image * e};
  const uint32_t box[4] = {uint32_t(box_c), uint32_t(box_w), uint32_t(box_h), 1};
  std::memcpy(m.dim, dim, sizeof dim);
  std::memcpy(m.stride, stride, sizeof stride);
  std::memcpy(m.box, box, sizeof box);
  return m;
}
// Packed filters K R*S C: a box is one tap's row of channels of `filters` filters. The tap is a dimension of its own, so that a tail of channels
// fills with zeros instead of the next tap.
inline MapSpec filter_map(MapSpec::Type type, const void* w, int64_t c, int64_t taps, int64_t k, int row_bytes, int filters) {
  MapSpec m = tiled_map(type, w, 3);
  const uint64_t e = static_cast<uint64_t>(m.element_bytes());
  m.dim[0] = uint64_t(c), m.dim[1] = uint64_t(taps), m.dim[2] = uint64_t(k);
  m.stride[0] = uint64_t(c) * e, m.stride[1] = uint64_t(taps * c) * e;
  m.box[0] = static_cast<uint32_t>(row_bytes / m.element_bytes()), m.box[1] = 1, m.box[2] = uint32_t(filters);
  return m;
}

// --- choice ----------------------------------------------------------------------------------------------------------------------------

// Microseconds that memory alone takes: x once (of a 1xS filter with a stride, the rows it looks at), y once; from DRAM or from L2.
inline double traffic_us(const ConvProblem& c, int64_t images, int element_bytes) {
  double in = double(images) * double(c.h * c.w * c.c) * element_bytes;
  if (c.r == 1) in /= double(c.stride_h);
  const double bytes = in + double(images) * double(c.p * c.q * c.k) * element_bytes * (c.residual ? 2 : 1);
  return bytes / (bytes > 30e6 ? 2.75e6 : 6e6);
}

// Microseconds of one variant. `parallel` = tiles that run at once: SMs, or clusters of `split`. Waves of tiles cost the same whether full or not,
// which is what decides most choices; a memory-bound layer costs its traffic whatever the tile, and then the least work wins.
inline double variant_us(const Sm90Variant& v, const ConvProblem& c, int64_t images, int element_bytes, bool halo, int64_t parallel,
                         int split) {
  const double rows = halo ? double(images) * double(div_up(c.p, 8) * div_up(c.q, 8)) * 64 : double(images) * double(c.p * c.q);
  const double tiles = std::ceil(rows / v.tile_m) * double(div_up(c.k, v.tile_n));
  const int64_t depth = v.row_bytes / element_bytes;
  const double block = v.block * (!halo && c.c % depth ? 1.6 : 1.0);  // boxes that overhang the channels load slowly
  const int64_t blocks = c.r * c.s * div_up(c.c, depth);
  double waves = std::ceil(tiles / double(parallel));
  if (v.blocks_per_sm == 2 && tiles > double(parallel)) waves = 2 * std::ceil(tiles / double(2 * parallel));
  double t = v.start + waves * (double(div_up(blocks, split)) * block + v.tile + (v.split > 0 ? split * double(v.split) : 0));
  t *= 1 + 0.2 * std::fmin(1, t / 150);  // long kernels run at a lower clock
  return std::fmax(t, traffic_us(c, images, element_bytes)) + 0.02 * t;
}

inline bool is_clamp(const Activation& a) { return a.kind == Act::kNone || a.kind == Act::kClamp; }

struct Sm90Choice {
  const Sm90Variant* variant;  // null: none fits
  int split;
  double us;
};

}  // namespace ck::cuda
