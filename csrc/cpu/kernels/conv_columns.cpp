// conv_columns.cpp: transposed convolution to few channels, such as the gradient of an image behind a first layer; float32.
//
// Computes  y[n, i*sh-ph+r*dh, j*sw-pw+s, k] += sum_c x[n,i,j,c] * w[r,s,c,k], then the epilogue
// Layout    x NHWC, y NHWK; w in gemm.h's panels, as if the R*S*K values that one pixel spreads were the filters of a 1x1 convolution
// Tiling    a task is a band of output rows of one image, held in scratch with margins for what falls beside the image:
//             for each input row that reaches the band, kTile pixels at a time:
//               M [pixel][r][s][k] = x [pixel][c] * w [c][r,s,k]      gemm.h's register tile: vectors are full however few channels K has
//               each pixel's S*K neighbouring values are added to row r of the band; pixels whose windows overlap are not taken one after the
//               other, for a load that meets two stores under way waits for both
// Cost      2*NHWC*R*S*K flop, input rows shared by two bands twice; 2*NHW*R*S*K additions
// Refuses   not transposed; groups; dilation along the rows; volumes; more channels than a vector
// Source    Chellapilla, Puri, Simard 2006 (columns); the order of additions: i, j, then overlapping windows, fixed
#include "cpu/gemm.h"
#include "cpu/pixels.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int64_t kBandBytes = 192 << 10;

struct Layout {
  ConvProblem spread;  // 1x1: C channels to R*S*K values
  Panels panels;
  int64_t values, step;  // R*S*K, and floats of a pixel in M
  int64_t row_floats, rows, bands;
};

CK_INLINE Layout layout_of(const ConvProblem& p) {
  Layout l;
  l.spread = p;
  l.spread.t = l.spread.r = l.spread.s = 1;
  l.values = l.spread.k = p.r * p.s * p.k;
  l.panels = panels_of(l.spread);
  l.step = l.panels.vecs * kLanes;
  l.row_floats = (most((p.w - 1) * p.stride_w + p.s, p.q + p.pad_w_lo) * p.k + 2 * kLanes - 1) / kLanes * kLanes;
  l.rows = most(p.stride_h, least(p.p, kBandBytes / (l.row_floats * 4)));
  l.bands = (p.p + l.rows - 1) / l.rows;
  return l;
}

CK_INLINE void add_span(const float* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(to + i) + load(from + i));
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    store_n(to + i, load_n(to + i, rest) + load_n(from + i, rest), rest);
  }
}

void run(const ConvProblem& p, const ConvArgs& a, int64_t, int64_t first, int64_t last, void* memory) {
  const Layout l = layout_of(p);
  float* band = static_cast<float*>(memory);
  float* m = band + l.rows * l.row_floats;
  const Activation none{Act::kNone, 0, 0};
  const int32_t tap = 0;
  const float* bias = static_cast<const float*>(a.bias);
  const int apart = static_cast<int>((p.s + p.stride_w - 1) / p.stride_w);
  constexpr int kCount = kTile[3] < kTile[2] ? kTile[3] : kTile[2];  // a panel of three vectors takes narrower tiles
  const int tile_pixels = l.panels.vecs > 2 && l.panels.vecs % 2 ? kCount : kTile[2];
  for (int64_t task = first; task < last; ++task) {
    const int64_t n = task / l.bands, h_first = p.p * (task % l.bands) / l.bands, h_last = p.p * (task % l.bands + 1) / l.bands;
    for (int64_t i = 0; i < (h_last - h_first) * l.row_floats; i += kLanes) store(band + i, splat(0.f));
    const int64_t reach = h_first + p.pad_h_lo - (p.r - 1) * p.dil_h, end = h_last - 1 + p.pad_h_lo;
    const int64_t i_first = reach > 0 ? (reach + p.stride_h - 1) / p.stride_h : 0, i_last = end < 0 ? -1 : least(p.h - 1, end / p.stride_h);
    for (int64_t i = i_first; i <= i_last; ++i)
      for (int64_t j = 0; j < p.w; j += tile_pixels) {
        const int count = static_cast<int>(least(tile_pixels, p.w - j));
        const float* x[kTilePixels];
        for (int pixel = 0; pixel < count; ++pixel) x[pixel] = at<const float>(a.x, n, 0, i, j + pixel);
        for (int64_t panel = 0; panel < l.panels.count; ++panel) {
          const int vecs = panel_width(l.panels, panel);
          const int64_t k = panel_first(l.panels, panel) * kLanes;
          tile_fn(vecs, count)(Tile{x, &tap, 1, p.c, static_cast<const float*>(a.weights) + k * p.c, m + k, nullptr, l.step, 0, nullptr,
                                    vecs * kLanes, &none});
        }
        for (int64_t r = 0; r < p.r; ++r) {
          const int64_t h = i * p.stride_h - p.pad_h_lo + r * p.dil_h;
          if (h < h_first || h >= h_last) continue;
          float* row = band + (h - h_first) * l.row_floats + j * p.stride_w * p.k;
          for (int start = 0; start < apart; ++start)
            for (int pixel = start; pixel < count; pixel += apart)
              add_span(m + pixel * l.step + r * p.s * p.k, row + pixel * p.stride_w * p.k, p.s * p.k);
        }
      }
    for (int64_t h = h_first; h < h_last; ++h) {
      const float* row = band + (h - h_first) * l.row_floats + p.pad_w_lo * p.k;
      for (int64_t q = 0; q < p.q; ++q) {
        float* y = at<float>(a.y, n, 0, h, q);
        const float* residual = a.residual.data ? at<const float>(a.residual, n, 0, h, q) : nullptr;
        for (int64_t k = 0; k < p.k; ++k) {
          float v = row[q * p.k + k];
          if (bias) v += bias[k];
          if (residual) v += residual[k];
          y[k] = v;
        }
        if (p.act.kind != Act::kNone) activate_span(y, y, p.k, p.act);
      }
    }
  }
}

const char* refuse(const ConvProblem& p) {
  if (!p.transposed) return "not transposed";
  if (p.groups != 1) return "groups";
  if (p.d != 1 || p.z != 1 || p.t != 1) return "volumes";
  if (p.dil_w != 1 || p.pad_w_lo < 0) return "dilation or negative padding along the rows";
  if (p.k > kLanes) return "more channels than a vector";
  return nullptr;
}

double cost(const ConvProblem& p) {
  const Layout l = layout_of(p);
  const double pixels = static_cast<double>(p.h * p.w), halo = 1.0 + static_cast<double>((p.r - 1) * p.dil_h) / static_cast<double>(l.rows);
  const double fmas = pixels * static_cast<double>(l.panels.vecs * p.c) * (l.panels.vecs == 1 ? 1.3 : 1.0);
  const double additions = pixels * static_cast<double>(p.r * ((p.s * p.k + kLanes - 1) / kLanes)) * 3.0;
  return halo * (fmas / (0.85 * 3000.0) + additions / 3000.0) + static_cast<double>(p.p * p.q * p.k) / 3000.0;
}

int64_t scratch_bytes(const ConvProblem& p) {
  const Layout l = layout_of(p);
  return align64((l.rows * l.row_floats + kTilePixels * l.step) * 4);
}
int64_t tasks(const ConvProblem& p, int64_t images) { return images * layout_of(p).bands; }
int64_t packed_bytes(const ConvProblem& p) { return gemm_packed_bytes(layout_of(p).spread); }

int64_t pack_tasks(const ConvProblem& p) { return layout_of(p).panels.count; }
void pack(const ConvProblem& p, const void* weights, const void* scale, void* packed, int64_t first, int64_t last) {
  const Layout l = layout_of(p);
  const float* w = static_cast<const float*>(weights);
  const float* s = static_cast<const float*>(scale);
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t from = panel_first(l.panels, panel) * kLanes, width = panel_width(l.panels, panel) * kLanes;
    float* out = static_cast<float*>(packed) + from * p.c;
    for (int64_t c = 0; c < p.c; ++c)
      for (int64_t i = from; i < from + width; ++i, ++out) {
        const int64_t tap = i / p.k, k = i % p.k;
        *out = i >= l.values ? 0.f : w[(tap * p.c + c) * p.k + k] * (s ? s[k] : 1.f);
      }
  }
}

}  // namespace

extern const ConvKernel conv_columns;
const ConvKernel conv_columns = {"conv_columns", refuse, cost, scratch_bytes, tasks, run, packed_bytes, pack_tasks, pack};

}  // namespace CK_ISA
}  // namespace ck
