// conv_planes.cpp: convolution of few channels to few filters, such as the first layer of LeNet-5; float32.
//
// Computes  y[n,p,q,k] = epi(sum_rsc x[n, p*sh-ph+r*dh, q-pw+s*dw, c] * w[r,s,c,k])
// Layout    x NHWC, w RSCK as it is, y NPQK; scratch: the rows of x that a band reads as planes [c][row][pixel] (cpu/planes.h), zeros outside
// Tiling    the lanes of a vector are neighbouring pixels, for six filters would fill six lanes of sixteen. Registers: K filters x kVecs vectors
//           of pixels; one broadcast of w[r,s,c,k] feeds kVecs FMAs, one load of x[c][row][q+s] feeds K. A task is a band of rows of an image.
//           Sums, bias and activation in planes; then squares of kLanes x kLanes are transposed in registers to pixels of K channels.
// Cost      2*PQ*RSC*K flop; copies of x and y
// Refuses   transposed, groups, volumes, stride along the rows, more than 4 channels or 8 filters
// Source    none; the order of sums is r, s, c
// Measured  LeNet-5's first layer, 64 images: 379 to 101 us beside conv_direct (Granite Rapids, 2 threads, November 2026)
#include "cpu/planes.h"
#include "simd/math.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int64_t kBandFloats = 6 << 10;  // planes of a band: half of the first-level cache
constexpr int kMostVecs = 2;

struct Layout {
  int64_t width, rows, bands;  // floats of a plane's row; rows of y in a band at most; bands
};

CK_INLINE Layout layout_of(const ConvProblem& p) {
  Layout l;
  l.width = row_width(p, (p.q + kMostVecs * kLanes - 1) / (kMostVecs * kLanes) * kMostVecs * kLanes);
  const int64_t fit = kBandFloats / (p.c * l.width) - (p.r - 1) * p.dil_h - 1;
  l.bands = (p.p + most(1, fit / p.stride_h) - 1) / most(1, fit / p.stride_h);
  l.rows = (p.p + l.bands - 1) / l.bands;
  return l;
}

struct Window {
  const float *x, *w, *bias;  // x: the first row's planes at the pixel
  int64_t r, s, c, x_r, x_s, x_c;
  float* sums;  // [k][kMostVecs * kLanes]
};

template <int kFilters, int kVecs>
CK_INLINE void sum_window(const Window& t) {
  vf acc[kFilters][kVecs] = {};
  const float* w = t.w;
  for (int64_t r = 0; r < t.r; ++r) {
    for (int64_t s = 0; s < t.s; ++s) {
      for (int64_t c = 0; c < t.c; ++c, w += kFilters) {
        const float* x = t.x + r * t.x_r + s * t.x_s + c * t.x_c;
        vf pixels[kVecs];
  CK_UNROLL
        for (int v = 0; v < kVecs; ++v) pixels[v] = load(x + v * kLanes);
        CK_UNROLL
        for (int k = 0; k < kFilters; ++k) {
          const vf filter = splat(w[k]);
          CK_UNROLL
          for (int v = 0; v < kVecs; ++v) acc[k][v] += pixels[v] * filter;
        }
      }
    }
  }
  CK_UNROLL
  for (int k = 0; k < kFilters; ++k) {
    const vf bias = splat(t.bias ? t.bias[k] : 0.f);
    CK_UNROLL
    for (int v = 0; v < kVecs; ++v) store(t.sums + (k * kMostVecs + v) * kLanes, acc[k][v] + bias);
  }
}

// kMostVecs vectors of pixels, in as many parts as the registers ask for.
template <int kFilters>
void sums(const Window& t) {
  if constexpr (kFilters * kMostVecs <= kSums) {
    sum_window<kFilters, kMostVecs>(t);
  } else {
    Window half = t;
    for (int v = 0; v < kMostVecs; ++v, half.x += kLanes, half.sums += kLanes) sum_window<kFilters, 1>(half);
  }
}
using SumsFn = void (*)(const Window&);
constexpr SumsFn kSumsFn[kMostFilters + 1] = {nullptr, sums<1>, sums<2>, sums<3>, sums<4>, sums<5>, sums<6>, sums<7>, sums<8>};

void run(const ConvProblem& p, const ConvArgs& a, int64_t, int64_t first, int64_t last, void* memory) {
  const Layout l = layout_of(p);
  float* planes = static_cast<float*>(memory);
  const SumsFn sums_fn = kSumsFn[p.k];
  alignas(64) float tile[kMostFilters * kMostVecs * kLanes];
  const bool plain = p.act.kind == Act::kNone;
  for (int64_t task = first; task < last; ++task) {
    const int64_t n = task / l.bands, from = p.p * (task % l.bands) / l.bands, to = p.p * (task % l.bands + 1) / l.bands;
    const int64_t rows = rows_read(p, to - from);
    image_planes(p, a.x, n, from * p.stride_h, rows, l.width, planes);
    Window t{nullptr, static_cast<const float*>(a.weights), static_cast<const float*>(a.bias), p.r, p.s, p.c, p.dil_h * l.width, p.dil_w,
             rows * l.width, tile};
    for (int64_t row = from; row < to; ++row)
      for (int64_t q = 0; q < p.q; q += kMostVecs * kLanes) {
        t.x = planes + (row - from) * p.stride_h * l.width + q;
        sums_fn(t);
        if (!plain && !a.residual.data) activate_span(tile, tile, p.k * kMostVecs * kLanes, p.act);
        float* y = at<float>(a.y, n, 0, row, q);
        const float* residual = a.residual.data ? at<const float>(a.residual, n, 0, row, q) : nullptr;
        for (int v = 0; v < kMostVecs && q + v * kLanes < p.q; ++v) {
          const int64_t count = least(kLanes, p.q - q - v * kLanes);
          for (int64_t k = 0; k < p.k; k += kLanes) {
            const int have = static_cast<int>(least(kLanes, p.k - k));
            vf square[kLanes];
            CK_UNROLL
            for (int i = 0; i < kLanes; ++i) square[i] = i < have ? load(tile + ((k + i) * kMostVecs + v) * kLanes) : splat(0.f);
            transpose(square);
            alignas(64) float pixels[kLanes][kLanes];
            CK_UNROLL
            for (int i = 0; i < kLanes; ++i) store(pixels[i], square[i]);
            for (int64_t i = 0; i < count; ++i) {
              vf value = load(pixels[i]);
              const int64_t at_pixel = v * kLanes + i;
              if (residual) {
                const float* added = residual + at_pixel * a.residual.pixel + k;
                value = activate(value + (have == kLanes ? load(added) : load_n(added, have)), p.act);
              }
              float* out = y + at_pixel * a.y.pixel + k;
              if (have == kLanes) store(out, value);
              else store_n(out, value, have);
            }
          }
        }
      }
  }
}

double cost(const ConvProblem& p) {
  const double vectors = static_cast<double>(p.p * ((p.q + kLanes - 1) / kLanes));
  const double fmas = vectors * static_cast<double>(p.r * p.s * p.c * (p.k + 1));
  const double copies = vectors * static_cast<double>(5 * kLanes) + static_cast<double>(p.h * p.w * p.c) * (p.c > 1 ? 1.0 : 0.2);
  return (fmas / 0.7 + copies) / kVectorsPerMicrosecond;
}

int64_t scratch_bytes(const ConvProblem& p) {
  const Layout l = layout_of(p);
  return p.c * rows_read(p, l.rows) * l.width * 4;
}
int64_t tasks(const ConvProblem& p, int64_t images) { return images * layout_of(p).bands; }
int64_t packed_bytes(const ConvProblem& p) { return p.r * p.s * p.c * p.k * 4; }
int64_t pack_tasks(const ConvProblem&) { return 1; }
void pack(const ConvProblem& p, const void* weights, const void* scale, void* packed, int64_t, int64_t) {
  const float *w = static_cast<const float*>(weights), *factor = static_cast<const float*>(scale);
  float* out = static_cast<float*>(packed);
  for (int64_t i = 0; i < p.r * p.s * p.c * p.k; ++i) out[i] = w[i] * (factor ? factor[i % p.k] : 1.f);
}

}  // namespace

extern const ConvKernel conv_planes;
const ConvKernel conv_planes = {"conv_planes", refuse_planes, cost, scratch_bytes, tasks, run, packed_bytes, pack_tasks, pack};

}  // namespace CK_ISA
}  // namespace ck
