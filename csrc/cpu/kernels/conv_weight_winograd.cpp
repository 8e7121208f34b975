// conv_weight_winograd.cpp: the gradient of 3x3 weights by Winograd's F(3x3, 4x4): 36 multiplications for a tile of 4x4 pixels of dy instead of
// 144; float32.
//
// Computes  dw = A' [ sum over tiles of (B' x B) (G dy G') ] A: a 6x6 tile of x correlated with a 4x4 tile of dy gives 3x3 sums; dy is the filter
// Points    those of winograd.h: 0, +-5/8, +-3/2, infinity; B depends on the points alone, G and A change with the sizes
// Layout    V [tile of channels][36][tile of pixels][kStride] of x, U [panel of filters][36][tile of pixels][2 * kLanes] of dy
// Tiling    the batch's tiles of pixels are taken in groups. For each: both transforms of its tiles; then for each tile of channels and panel of
//           filters 36 products over the group's tiles (cpu/products.h) and the inverse transform, which is added to dw, group by group.
//             few channels   V and U of a group lie in the second-level cache of one core: a task is one of a fixed number of parts of the batch,
//                            with V, U and dw of its own; phase 1 adds the parts in order
//             many           all threads share V and U; two phases a group: a task is a tile, then a tile of channels and a panel of filters
//           Groups, parts and their order depend on the problem and the images alone: the same bits for any number of threads.
// Cost      2*36/16*NPQKC flop; some 300 vector instructions a tile for each vector of channels and of filters
// Refuses   other filters, strides, dilation, groups, transposed; exact; fewer than 16 channels or filters
// Tried     sharing V and U of few channels, too: what one core wrote another fetches, slowly: no gain from a second thread at 32 channels
// Source    Lavin and Gray 2016, arXiv:1509.09308, sec. 4 (F(3x3,4x4) for the gradient of the weights)
#include "cpu/products.h"
#include "cpu/winograd.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int kIn = 6, kProducts = kIn * kIn, kOut = 4, kFilter = 3;  // of a tile: 6x6 of x, 4x4 of dy
constexpr int64_t kSharedBytes = 8 << 20, kOwnBytes = 1200 << 10;     // of V and U
constexpr int64_t kMostTiles = 192, kLeastTiles = 24;  // of a group; fewer than kLeastTiles fit kOwnBytes: V and U are shared
constexpr int64_t kSums = kProducts * kRows * kWidth;  // floats
constexpr int64_t kParts = 16, kPartBytes = 16 << 20;

struct Layout {
  int64_t rows, columns, tiles;  // tiles of pixels of one image
  int64_t channel_tiles, panels, vecs;
  bool own;       // each task has V and U of its own
  int64_t parts;  // of the batch, then
  int64_t group;  // tiles of pixels of a group, at most
  int64_t step;   // the same, odd: no power of two between the 36 products
};

CK_INLINE Layout layout_of(const ConvProblem& p, int64_t images) {
  Layout l;
  l.rows = (p.p + kOut - 1) / kOut;
  l.columns = (p.q + kOut - 1) / kOut;
  l.tiles = l.rows * l.columns;
  l.channel_tiles = ceil_div(p.c, kRows);
  l.vecs = ceil_div(p.k, kLanes);
  l.panels = ceil_div(l.vecs, 2);
  const int64_t bytes = kProducts * 4 * (l.channel_tiles * kStride + l.panels * kWidth), all = images * l.tiles;
  l.own = kOwnBytes / bytes >= kLeastTiles;
  l.parts = 1;
  if (l.own) {
    const int64_t most_tiles = least(kMostTiles, kOwnBytes / bytes), dw_bytes = kFilter * kFilter * p.c * p.k * 4;
    const int64_t parts =
        least(least(kParts, kPartBytes / dw_bytes), ceil_div(ceil_div(all, most_tiles), 4) * 4);  // fours: threads get as many
    l.parts = most(1, least(parts, all / 16));
    const int64_t tiles = ceil_div(all, l.parts);
    l.group = ceil_div(tiles, most(1, ceil_div(tiles, most_tiles)));
  } else {
    const int64_t most_tiles = least(kMostTiles, most(32, kSharedBytes / bytes));
    l.group = ceil_div(all, most(1, ceil_div(all, most_tiles)));
  }
  l.step = l.group | 1;
  return l;
}

CK_INLINE int64_t groups_of(const Layout& l, int64_t images) { return images > 0 ? ceil_div(images * l.tiles, l.group) : 0; }
CK_INLINE int64_t tile_first(const ConvProblem& p, const Layout& l, int64_t i) { return p.c * i / l.channel_tiles; }
CK_INLINE int64_t big_floats(const Layout& l) { return l.channel_tiles * kProducts * l.step * kStride; }
CK_INLINE int64_t small_floats(const Layout& l) { return l.panels * kProducts * l.step * kWidth; }

// G g along one dimension: the cubic with the coefficients g at the points, over the product of each point's distances to the others.
CK_INLINE void transform_small(vf g0, vf g1, vf g2, vf g3, vf* u, int step) {
  constexpr double p2 = double(kP) * kP, q2 = double(kQ) * kQ;
  constexpr float zero = float(1 / (p2 * q2)), at_p = float(1 / (2 * p2 * (p2 - q2))), at_q = float(1 / (2 * q2 * (q2 - p2)));
  u[0] = zero * g0;
  const vf a = at_p * (g0 + kP2 * g2), b = at_p * kP * (g1 + kP2 * g3);
  u[step] = a + b;
  u[2 * step] = a - b;
  const vf c = at_q * (g0 + kQ2 * g2), d = at_q * kQ * (g1 + kQ2 * g3);
  u[3 * step] = c + d;
  u[4 * step] = c - d;
  u[5 * step] = g3;
}

// A' m along one dimension: six to three.
CK_INLINE void transform_sums(const vf* m, int step, vf* y, int y_step) {
  const vf s1 = m[step] + m[2 * step], d1 = m[step] - m[2 * step];
  const vf s2 = m[3 * step] + m[4 * step], d2 = m[3 * step] - m[4 * step];
  y[0] = m[0] + s1 + s2;
  y[y_step] = kP * d1 + kQ * d2;
  y[2 * y_step] = kP2 * s1 + kQ2 * s2 + m[5 * step];
}

template <bool kEdge, class IO>
CK_INLINE void scatter_big(const ConvProblem& p, const View& x, const float* x_n, int64_t h0, int64_t w0, float* v, int64_t v_step, IO io) {
  vf d[kProducts];
  load_tile<Along<kIn, kFilter>, Along<kIn, kFilter>, kEdge>(p, x, x_n, h0, w0, d, io);
  CK_UNROLL
  for (int i = 0; i < kProducts; ++i) store(v + i * v_step, d[i]);
}

template <bool kEdge, class IO>
CK_INLINE void scatter_small(const View& dy, const float* dy_n, int height, int width, float* u, int64_t u_step, IO io) {
  vf half[kIn * kOut];
  CK_UNROLL
  for (int j = 0; j < kOut; ++j) {
    vf g[kOut];
    CK_UNROLL
    for (int i = 0; i < kOut; ++i) g[i] = !kEdge || (i < height && j < width) ? io.load(dy_n + i * dy.row + j * dy.pixel) : splat(0.f);
    transform_small(g[0], g[1], g[2], g[3], half + j, kOut);
  }
  CK_UNROLL
  for (int i = 0; i < kIn; ++i) {
    vf row[kIn];
    transform_small(half[i * kOut], half[i * kOut + 1], half[i * kOut + 2], half[i * kOut + 3], row, 1);
    CK_UNROLL
    for (int j = 0; j < kIn; ++j) store(u + (i * kIn + j) * u_step, row[j]);
  }
}

// Both transforms of one tile of pixels, number `at` of its group.
void transform(const ConvProblem& p, const ConvWeightArgs& a, const Layout& l, int64_t tile, int64_t at_group, float* v, float* u) {
  const int64_t n = tile / l.tiles, row = tile % l.tiles / l.columns * kOut, column = tile % l.columns * kOut;
  const int64_t h0 = row - p.pad_h_lo, w0 = column - p.pad_w_lo;
  const bool inside = h0 >= 0 && w0 >= 0 && h0 + kIn <= p.h && w0 + kIn <= p.w;
  const float* x_n = at<const float>(a.x, n, 0, 0, 0);
  const int64_t v_step = l.step * kStride, u_step = l.step * kWidth;
  for (int64_t i = 0; i < l.channel_tiles; ++i)
    for (int64_t j = 0; j < kStride; j += kLanes) {
      const int64_t c = tile_first(p, l, i) + j, have = p.c - c;
      if (have <= 0) continue;  // lanes that no product reads
      float* to = v + (i * kProducts * l.step + at_group) * kStride + j;
      if (have < kLanes) scatter_big<true>(p, a.x, x_n + c, h0, w0, to, v_step, Part{static_cast<int>(have)});
      else if (inside) scatter_big<false>(p, a.x, x_n + c, h0, w0, to, v_step, Full{});
      else scatter_big<true>(p, a.x, x_n + c, h0, w0, to, v_step, Full{});
    }
  const float* dy_n = at<const float>(a.dy, n, 0, row, column);
  const int height = static_cast<int>(least(kOut, p.p - row)), width = static_cast<int>(least(kOut, p.q - column));
  for (int64_t i = 0; i < l.vecs; ++i) {
    const int64_t k = i * kLanes, have = p.k - k;
    float* to = u + (i / 2 * kProducts * l.step + at_group) * kWidth + i % 2 * kLanes;
    if (have < kLanes) scatter_small<true>(a.dy, dy_n + k, height, width, to, u_step, Part{static_cast<int>(have)});
    else if (height == kOut && width == kOut) scatter_small<false>(a.dy, dy_n + k, height, width, to, u_step, Full{});
    else scatter_small<true>(a.dy, dy_n + k, height, width, to, u_step, Full{});
  }
}

// The sums of a group for one tile of channels and one panel of filters, transformed back and added to dw.
void multiply(const ConvProblem& p, const Layout& l, int64_t count, int64_t task, bool fresh, const float* v, const float* u, float* dw, float* sums) {
  const int64_t i = task % l.channel_tiles, j = task / l.channel_tiles, zero = 0;
  const int64_t c = tile_first(p, l, i), channels = tile_first(p, l, i + 1) - c;
  const int vecs = static_cast<int>(least(2, l.vecs - 2 * j));
  const int64_t width = vecs * kLanes, m_step = channels * width;
  const ProductFn fn = product_fn(static_cast<int>(channels), vecs);
  for (int64_t e = 0; e < kProducts; ++e)
    fn(Product{v + (i * kProducts + e) * l.step * kStride, u + (j * kProducts + e) * l.step * kWidth, &zero, &zero, &count, 1, kStride, kWidth,
               sums + e * m_step, width, true});
  for (int64_t b = 0; b < channels; ++b)
    for (int64_t lane = 0; lane < width; lane += kLanes) {
      const int64_t k = j * kWidth + lane;
      if (k >= p.k) break;
      const float* m = sums + b * width + lane;
      vf half[kFilter * kIn], out[kFilter * kFilter];
      CK_UNROLL
      for (int column = 0; column < kIn; ++column) {
        vf m_column[kIn];
        CK_UNROLL
        for (int row = 0; row < kIn; ++row) m_column[row] = load(m + (row * kIn + column) * m_step);
        transform_sums(m_column, 1, half + column, kIn);
      }
      CK_UNROLL
      for (int r = 0; r < kFilter; ++r) transform_sums(half + r * kIn, 1, out + r * kFilter, 1);
      const int have = static_cast<int>(least(kLanes, p.k - k));
      CK_UNROLL
      for (int tap = 0; tap < kFilter * kFilter; ++tap) {
        float* to = dw + (tap * p.c + c + b) * p.k + k;
        if (have == kLanes) store(to, fresh ? out[tap] : load(to) + out[tap]);
        else store_n(to, fresh ? out[tap] : load_n(to, have) + out[tap], have);
      }
    }
}

// Few channels: one part of the batch.
void sum_part(const ConvProblem& p, const ConvWeightArgs& a, const Layout& l, int64_t images, int64_t part, float* dw, float* sums, float* v,
              float* u) {
  const int64_t begin = images * l.tiles * part / l.parts, end = images * l.tiles * (part + 1) / l.parts;
  for (int64_t first = begin; first < end; first += l.group) {
    const int64_t count = least(l.group, end - first);
    for (int64_t i = 0; i < count; ++i) transform(p, a, l, first + i, i, v, u);
    for (int64_t i = 0; i < l.channel_tiles * l.panels; ++i) multiply(p, l, count, i, first == begin, v, u, dw, sums);
  }
}

// Phase 1: one row of dw.
void add_parts(const ConvProblem& p, const Layout& l, int64_t row, const float* parts, float* dw) {
  const int64_t part = kFilter * kFilter * p.c * p.k, at = row * p.k;
  for (int64_t k = 0; k < p.k; k += kLanes) {
    const int n = static_cast<int>(least(kLanes, p.k - k));
    const float* from = parts + at + k;
    vf sum = load_n(from, n);
    for (int64_t i = 1; i < l.parts; ++i) sum += load_n(from + i * part, n);
    store_n(dw + at + k, sum, n);
  }
}

void run(const ConvProblem& p, const ConvWeightArgs& a, int64_t images, int phase, int64_t first, int64_t last, void* scratch, void* shared) {
  const Layout l = layout_of(p, images);
  float *dw = static_cast<float*>(a.dw), *sums = static_cast<float*>(scratch);
  if (l.own) {
    float *parts = static_cast<float*>(shared), *v = sums + kSums, *u = v + big_floats(l);
    for (int64_t task = first; task < last; ++task) {
      if (phase == 0) sum_part(p, a, l, images, task, parts + task * kFilter * kFilter * p.c * p.k, sums, v, u);
      else add_parts(p, l, task, parts, dw);
    }
    return;
  }
  float *v = static_cast<float*>(shared), *u = v + big_floats(l);
  const int64_t group = phase / 2, begin = group * l.group, count = least(l.group, images * l.tiles - begin);
  for (int64_t task = first; task < last; ++task) {
    if (phase % 2 == 0) transform(p, a, l, begin + task, task, v, u);
    else multiply(p, l, count, task, group == 0, v, u, dw, sums);
  }
}

const char* refuse(const ConvProblem& p) {
  if (p.exact) return "exact: Winograd changes the rounding";
  if (p.transposed || p.groups != 1) return "transposed or grouped";
  if (p.d != 1 || p.t != 1 || p.z != 1 || p.r != kFilter || p.s != kFilter) return "3x3 filters only";
  if (p.stride_h != 1 || p.stride_w != 1 || p.dil_h != 1 || p.dil_w != 1) return "stride 1 and dilation 1 only";
  if (p.c < 16 || p.k < 16) return "fewer than 16 channels or filters";
  return nullptr;
}

double cost(const ConvProblem& p) {
  const Layout l = layout_of(p, 8);
  const double tiles = static_cast<double>(l.tiles), pairs = static_cast<double>(l.channel_tiles * l.vecs);
  const double products = tiles * kProducts * pairs * (kRows / 2.0 + 1);
  const double transforms = tiles * (180.0 * static_cast<double>(l.channel_tiles) + 150.0 * static_cast<double>(l.vecs));
  // The products begin and end, and their sums are transformed, once a group (as of eight images).
  const double inverse = tiles / static_cast<double>(l.group) * pairs * 2600.0;
  return (products + transforms + inverse) / 2800.0;
}

int64_t scratch_bytes(const ConvProblem& p) {
  Layout l = layout_of(p, 1);
  l.step = least(kMostTiles, kOwnBytes / (kProducts * 4 * (l.channel_tiles * kStride + l.panels * kWidth))) | 1;  // for any number of images
  return (kSums + (l.own ? big_floats(l) + small_floats(l) : 0)) * 4;
}
int64_t shared_bytes(const ConvProblem& p, int64_t images) {
  const Layout l = layout_of(p, images);
  return (l.own ? l.parts * kFilter * kFilter * p.c * p.k : big_floats(l) + small_floats(l)) * 4;
}
int64_t phases(const ConvProblem& p, int64_t images) {
  const Layout l = layout_of(p, images);
  return l.own ? 2 : 2 * groups_of(l, images);
}
int64_t tasks(const ConvProblem& p, int64_t images, int phase) {
  const Layout l = layout_of(p, images);
  if (l.own) return phase == 0 ? l.parts : kFilter * kFilter * p.c;
  return phase % 2 == 0 ? least(l.group, images * l.tiles - phase / 2 * l.group) : l.channel_tiles * l.panels;
}

}  // namespace

extern const ConvWeightKernel conv_weight_winograd;
const ConvWeightKernel conv_weight_winograd = {"conv_weight_winograd", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run};

}  // namespace CK_ISA
}  // namespace ck
