// conv_winograd.cpp: stride 1 convolution by Winograd's F(4x4, 3x3), F(2x2, 3x3) and F(2x2, 5x5): 36, 16 and 36 multiplications for a tile of
// outputs instead of 144, 36 and 100; float32.
//
// Computes  Y = A' [ sum_c (G g_c G') . (B' d_c B) ] A  for each tile of outputs and its 6x6 (4x4) tile of inputs, then the epilogue
// Points    those of winograd.h: rounding errors of 1.9-2.0 times direct float32's (RMS), with 4x4 tiles 0.7-0.8 times
// Layout    x NHWC, y NPQK; U = G g G' in float64 at plan time, rounded once: [panel][product][c][nv * kLanes], 4 (1.78, 1.44) times the weights
// Tiling    a task is a block of tiles times a panel of filters. A thread transforms a block of inputs once,
//             V [product][tile][c]  --  gemm.h's register tile for each product  -->  M [product][tile][nv * kLanes]  --  inverse + epilogue --> y
//           and keeps V and M in its second-level cache. Blocks run across images: a tile's bits do not depend on its neighbours.
// Cost      2*36/16*NPQKC (16/4, 36/4) flop, about 150 vector instructions a tile for each vector of channels (in) and of filters (out)
//           F(2x2, 3x3) reads less than half of F(4x4)'s weights: it wins where few tiles share them (9 and 10 pixels wide; others: conv_winograd_mixed.cpp,
//           conv_winograd_small.cpp)
// Tried     even_tile.h for the products: no gain, U's way from the third-level cache is what they wait for (Granite Rapids, November 2026)
// Refuses   other filters, strides, dilation, groups, transposed; exact; lean; fewer than 32 channels or 16 filters
// Source    as winograd.h
#include "cpu/gemm.h"
#include "cpu/winograd.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int64_t kMaxGroup = 4, kMaxBlock = 128;

struct Layout {
  int64_t rows, columns, tiles;  // tiles of one image
  int64_t block, blocks;         // tiles of a block at most, blocks of all images
  int64_t stride;                // floats from one tile of V to the next: off the powers of two, which fall into one cache set
  Panels panels;
  int64_t group, groups;  // panels that share a task at most, groups of panels
  bool far;               // U does not stay in the second-level cache
};

// U in the second-level cache, or nearly: few tiles, whose V stays there too, and a panel after the other. A larger U is read once for each
// block: twice the tiles, and product by product for a group of panels, so that what is in use at a time stays small.
template <int kIn, int kOut>
CK_INLINE Layout layout_of(const ConvProblem& p, int64_t images) {
  Layout l;
  l.rows = (p.p + kOut - 1) / kOut;
  l.columns = (p.q + kOut - 1) / kOut;
  l.tiles = l.rows * l.columns;
  l.stride = (p.c + kLanes - 1) / kLanes * kLanes + kLanes;
  l.panels = panels_of(p);
  const int64_t bytes = kIn * kIn * p.c * l.panels.vecs * kLanes * 4;
  l.far = bytes > l2_bytes / 2;
  const bool large = bytes > 2 * l2_bytes;
  l.block = least(images * l.tiles, !large ? 2 * kMaxTile : kIn == 4 ? kMaxBlock : 4 * kMaxTile);
  l.blocks = (images * l.tiles + l.block - 1) / l.block;
  l.blocks += l.blocks > 1 && l.blocks % 2;  // a block that two threads share is transformed by both: 12 % of a layer with 7 blocks
  l.group = !large ? 1 : l.blocks * l.panels.count < 32 ? kMaxGroup / 2 : kMaxGroup;
  l.groups = (l.panels.count + l.group - 1) / l.group;
  return l;
}

template <int kIn, int kOut, bool kEdge, class IO>
CK_INLINE void scatter(const ConvProblem& p, const View& x, const float* x_n, int64_t h0, int64_t w0, float* v, int64_t v_step, IO io) {
  vf d[kIn * kIn];
  load_tile<Along<kIn, kOut>, Along<kIn, kOut>, kEdge>(p, x, x_n, h0, w0, d, io);
  CK_UNROLL
  for (int i = 0; i < kIn * kIn; ++i) store(v + i * v_step, d[i]);
}

template <int kIn, int kOut>
void transform_inputs(const ConvProblem& p, const ConvArgs& a, const Layout& l, int64_t tile, int count, float* v) {
  const int64_t v_step = l.block * l.stride;
  for (int t = 0; t < count; ++t, ++tile) {
    const int64_t n = tile / l.tiles, h0 = tile % l.tiles / l.columns * kOut - p.pad_h_lo, w0 = tile % l.columns * kOut - p.pad_w_lo;
    const bool inside = h0 >= 0 && w0 >= 0 && h0 + kIn <= p.h && w0 + kIn <= p.w;
    const float* x_n = at<const float>(a.x, n, 0, 0, 0);
    float* v_t = v + t * l.stride;
    int64_t c = 0;
    for (; c + kLanes <= p.c; c += kLanes) {
      if (inside) scatter<kIn, kOut, false>(p, a.x, x_n + c, h0, w0, v_t + c, v_step, Full{});
      else scatter<kIn, kOut, true>(p, a.x, x_n + c, h0, w0, v_t + c, v_step, Full{});
    }
    if (c < p.c) scatter<kIn, kOut, true>(p, a.x, x_n + c, h0, w0, v_t + c, v_step, Part{static_cast<int>(p.c - c)});
  }
}

template <int kIn>
int64_t packed_bytes(const ConvProblem& p) {
  return kIn * kIn * p.c * panels_of(p).vecs * kLanes * 4;
}

template <int kIn, int kOut>
void run(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t first, int64_t last, void* memory) {
  constexpr int kProducts = kIn * kIn;
  const Layout l = layout_of<kIn, kOut>(p, images);
  float* v = static_cast<float*>(memory);
  float* m = v + kProducts * l.block * l.stride;
  const int64_t tiles = images * l.tiles;
  const Activation none{Act::kNone, 0, 0};
  const int32_t tap = 0;
  int64_t transformed = -1;
  int count = 0;
  for (int64_t task = first; task < last; ++task) {
    const int64_t block = task / l.groups, group = task % l.groups, tile = tiles * block / l.blocks;
    if (block != transformed) {
      count = static_cast<int>(tiles * (block + 1) / l.blocks - tile);
      transform_inputs<kIn, kOut>(p, a, l, tile, count, v);
      transformed = block;
    }
    const int64_t from = l.panels.count * group / l.groups, to = l.panels.count * (group + 1) / l.groups;
    const auto weights = [&](int64_t i, int64_t panel) {
      return static_cast<const float*>(a.weights) + (panel_first(l.panels, panel) * kProducts + i * panel_width(l.panels, panel)) * kLanes * p.c;
    };
    const auto products = [&](int64_t panel) { return m + (panel - from) * 2 * kLanes * kProducts * l.block; };
    for (int i = 0; i < kProducts; ++i)
      for (int64_t panel = from; panel < to; ++panel) {
        const int vecs = panel_width(l.panels, panel), width = vecs * kLanes, parts = (count + kTile[vecs] - 1) / kTile[vecs];
        const float* u = weights(i, panel);
        // The weights of the next product are fetched meanwhile, each part of the tiles a share.
        const float* next = panel + 1 < to ? weights(i, panel + 1) : i + 1 < kProducts ? weights(i + 1, from) : u;
        for (int part = 0; part < parts; ++part) {
          const int t_from = count * part / parts, t_to = count * (part + 1) / parts;
          const float* x[kTilePixels];
          for (int t = t_from; t < t_to; ++t) x[t - t_from] = v + (i * l.block + t) * l.stride;
          Tile t{x, &tap, 1, p.c, u, products(panel) + (i * l.block + t_from) * width, nullptr, width, 0, nullptr, width, &none};
          if (l.far) fetch_share(t, next, p.c * width, width, part, parts);
          tile_fn(vecs, t_to - t_from)(t);
        }
      }
    for (int64_t panel = from; panel < to; ++panel) {
      const int vecs = panel_width(l.panels, panel), width = vecs * kLanes;
      const int64_t step = l.block * width;
      for (int t = 0; t < count; ++t) {
        const int64_t n = (tile + t) / l.tiles, row = (tile + t) % l.tiles / l.columns * kOut, column = (tile + t) % l.columns * kOut;
        for (int j = 0; j < vecs; ++j) {
          const int64_t k = (panel_first(l.panels, panel) + j) * kLanes;
          const float* m_t = products(panel) + t * width + j * kLanes;
          if (p.k - k >= kLanes) store_tile<Along<kIn, kOut>, Along<kIn, kOut>>(p, a, n, row, column, m_t, kIn * step, step, k, Full{});
          else if (p.k > k) store_tile<Along<kIn, kOut>, Along<kIn, kOut>>(p, a, n, row, column, m_t, kIn * step, step, k, Part{static_cast<int>(p.k - k)});
        }
      }
    }
  }
}

template <int kIn, int kOut>
const char* refuse(const ConvProblem& p) {
  if (p.lean && !p.exact) return "lean: its weights are larger";
  return refuse_winograd(p, kIn + 1 - kOut);
}

template <int kIn, int kOut>
double cost(const ConvProblem& p) {
  const Layout l = layout_of<kIn, kOut>(p, 1);
  const double tiles = static_cast<double>(l.tiles), vecs = static_cast<double>(l.panels.vecs);
  const double gemm = tiles * kIn * kIn * vecs * static_cast<double>(p.c) / 0.8;
  const double transforms = tiles * (kIn == 6 ? 150.0 : 60.0) * (vecs + static_cast<double>(p.c) / kLanes);
  // Weights that exceed the second-level cache stream from the third or from memory.
  return (gemm + transforms) / kVectorsPerMicrosecond + static_cast<double>(packed_bytes<kIn>(p)) / kBytesPerMicrosecond;
}

template <int kIn, int kOut>
int64_t scratch_bytes(const ConvProblem& p) {
  const Layout l = layout_of<kIn, kOut>(p, kMaxBlock);  // blocks are as large as they get
  const int64_t group = l.group == 1 ? 1 : kMaxGroup;          // and groups, with more images
  return align64(kIn * kIn * l.block * (l.stride + (2 * group + 1) * kLanes) * 4);
}

template <int kIn, int kOut>
int64_t tasks(const ConvProblem& p, int64_t images) {
  const Layout l = layout_of<kIn, kOut>(p, images);
  return l.blocks * l.groups;
}

int64_t pack_tasks(const ConvProblem& p) { return panels_of(p).count; }

template <int kIn, int kOut>
void pack(const ConvProblem& p, const void* weights, const void* scale, void* packed, int64_t first, int64_t last) {
  constexpr int kR = kIn + 1 - kOut;
  constexpr double p1 = kIn == 4 ? 1 : kP;
  constexpr double points[] = {0, p1, -p1, kQ, -kQ};
  double g[kIn][kR] = {};  // row j: 1, x, x^2 ... at point j over the product of its distances to the others; infinity: the last coefficient
  for (int j = 0; j < kIn - 1; ++j) {
    double value = 1;
    for (int i = 0; i < kIn - 1; ++i)
      if (i != j) value /= points[j] - points[i];
    for (int b = 0; b < kR; ++b, value *= points[j]) g[j][b] = value;
  }
  g[kIn - 1][kR - 1] = 1;
  const float* w = static_cast<const float*>(weights);
  const float* s = static_cast<const float*>(scale);
  const Panels panels = panels_of(p);
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t k_first = panel_first(panels, panel) * kLanes, width = panel_width(panels, panel) * kLanes, have = least(width, p.k - k_first);
    float* u = static_cast<float*>(packed) + k_first * kIn * kIn * p.c;
    for (int64_t c = 0; c < p.c; ++c)
      for (int64_t j = 0; j < width; j += kLanes) {  // one vector of filters at a time: the inner loops vectorise in double
        double filter[kR * kR][kLanes] = {}, half[kIn][kR][kLanes] = {};
        for (int i = 0; i < kR * kR; ++i)
          for (int64_t l = 0; l < least(kLanes, have - j); ++l)
            filter[i][l] = w[(i * p.c + c) * p.k + k_first + j + l] * (s ? s[k_first + j + l] : 1.f);
        for (int i = 0; i < kIn; ++i)
          for (int b = 0; b < kR; ++b)
            for (int r = 0; r < kR; ++r)
              for (int l = 0; l < kLanes; ++l) half[i][b][l] += g[i][r] * filter[r * kR + b][l];
        for (int i = 0; i < kIn; ++i)
          for (int b = 0; b < kIn; ++b) {
            double sum[kLanes] = {};
            for (int r = 0; r < kR; ++r)
              for (int l = 0; l < kLanes; ++l) sum[l] += half[i][r][l] * g[b][r];
            float* out = u + ((i * kIn + b) * p.c + c) * width + j;
            for (int l = 0; l < kLanes; ++l) out[l] = static_cast<float>(sum[l]);
          }
      }
  }
}

template <int kIn, int kOut>
constexpr ConvKernel row(const char* name) {
  return {name, refuse<kIn, kOut>, cost<kIn, kOut>, scratch_bytes<kIn, kOut>, tasks<kIn, kOut>, run<kIn, kOut>, packed_bytes<kIn>, pack_tasks, pack<kIn, kOut>, false, nullptr, true};
}

}  // namespace

extern const ConvKernel conv_winograd, conv_winograd2, conv_winograd5;
const ConvKernel conv_winograd = row<6, 4>("conv_winograd");
const ConvKernel conv_winograd2 = row<4, 2>("conv_winograd2");
const ConvKernel conv_winograd5 = row<6, 2>("conv_winograd5");

}  // namespace CK_ISA
}  // namespace ck
