// conv_weight_planes.cpp: the gradient of the weights of a convolution of few channels to few filters, such as LeNet-5's first layer; float32.
//
// Computes  dw[r,s,c,k] = sum_npq x[n, p*sh-ph+r*dh, q-pw+s*dw, c] * dy[n,p,q,k]
// Layout    x NHWC, dy NPQK; scratch: both as planes, one for each channel (cpu/planes.h), and a vector of sums for each weight
// Tiling    the lanes of a vector are neighbouring pixels, as in conv_planes. Registers: kTaps of the R*S*C places in the window x K filters, kept
//           over the rows of a band; one load of x and one of dy feed K and kTaps FMAs. A task is a part of the batch's bands; the number of parts
//           depends on the problem and the images alone, and phase 1 adds them in order.
// Cost      2*NPQ*RSC*K flop; copies of x and dy
// Refuses   as conv_planes
// Source    as conv_weight_gemm.cpp for the parts
// Measured  LeNet-5's first layer, 64 images: 428 to 110 us beside conv_weight_gemm (Granite Rapids, 2 threads, November 2026)
#include "cpu/planes.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int64_t kBandFloats = 8 << 10;  // planes of a band: two thirds of the first-level cache
constexpr int64_t kParts = 16;
constexpr int kRegisters = kMaxTile >= 12 ? 32 : 16;

// Places of the window whose sums share the registers with a vector of x each, and one of dy.
constexpr int taps_together(int filters) { return (kRegisters - 2) / (filters + 1) < 6 ? (kRegisters - 2) / (filters + 1) : 6; }

struct Layout {
  int64_t width, dy_width, rows, bands;  // floats of a row of x's and dy's planes; rows of dy in a band at most; bands of an image
  int64_t taps, blocks, together;        // R*S*C, and how they are cut
  int64_t x_floats, dy_floats, sums;     // scratch
};

CK_INLINE Layout layout_of(const ConvProblem& p) {
  Layout l;
  l.dy_width = whole_lanes(p.q), l.width = row_width(p, l.dy_width);
  const int64_t fit = (kBandFloats - p.c * ((p.r - 1) * p.dil_h + 1) * l.width) / (p.c * p.stride_h * l.width + p.k * l.dy_width);
  l.bands = (p.p + most(1, fit) - 1) / most(1, fit);
  l.rows = (p.p + l.bands - 1) / l.bands;
  l.taps = p.r * p.s * p.c, l.together = taps_together(static_cast<int>(p.k)), l.blocks = (l.taps + l.together - 1) / l.together;
  l.x_floats = p.c * rows_read(p, l.rows) * l.width, l.dy_floats = p.k * l.rows * l.dy_width;
  l.sums = l.blocks * l.together * p.k * kLanes;
  return l;
}
CK_INLINE int64_t parts_of(const Layout& l, int64_t images) { return most(1, least(kParts, images * l.bands)); }

// Rows [first, first + rows) of dy, plane by plane: [k][row][dy_width]; zeros behind a row's end.
CK_INLINE void gradient_planes(const ConvProblem& p, const Layout& l, const View& dy, int64_t n, int64_t first, int64_t rows, float* out) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t q = 0; q < p.q; q += kLanes) {
      const float* from = at<const float>(dy, n, 0, first + row, q);
      const int64_t count = least(kLanes, p.q - q);
      for (int64_t k = 0; k < p.k; k += kLanes) {
        const int have = static_cast<int>(least(kLanes, p.k - k));
        alignas(64) float pixels[kLanes][kLanes];
        for (int64_t i = 0; i < kLanes; ++i) {
          const float* pixel = from + i * dy.pixel + k;
          store(pixels[i], i >= count ? splat(0.f) : have == kLanes ? load(pixel) : load_n(pixel, have));
        }
        vf square[kLanes];
  CK_UNROLL
        for (int i = 0; i < kLanes; ++i) square[i] = load(pixels[i]);
        transpose(square);
        CK_UNROLL
        for (int i = 0; i < kLanes; ++i)
          if (i < have) store(out + ((k + i) * rows + row) * l.dy_width + q, square[i]);
      }
    }
  }
}

struct Band {
  const float *x, *dy;
  int64_t rows, x_step, dy_step, dy_plane, q;  // x_step: from one row of dy to the next
};

// Adds the products of a band to the sums of kTaps places, which lie at `offsets` of x.
template <int kTaps, int kFilters>
CK_INLINE void add_band(const Band& b, const int64_t* offsets, float* sums) {
  vf acc[kTaps][kFilters];
  CK_UNROLL
  for (int i = 0; i < kTaps; ++i)
    CK_UNROLL
    for (int k = 0; k < kFilters; ++k) acc[i][k] = load(sums + (i * kFilters + k) * kLanes);
  for (int64_t row = 0; row < b.rows; ++row) {
    const float *x = b.x + row * b.x_step, *dy = b.dy + row * b.dy_step;
    const auto step = [&](auto io, int64_t q) __attribute__((always_inline)) {
      vf pixels[kTaps];
      CK_UNROLL
      for (int i = 0; i < kTaps; ++i) pixels[i] = io.load(x + offsets[i] + q);
      CK_UNROLL
      for (int k = 0; k < kFilters; ++k) {
        const vf gradient = load(dy + k * b.dy_plane + q);
        CK_UNROLL
        for (int i = 0; i < kTaps; ++i) acc[i][k] += pixels[i] * gradient;
      }
    };
    int64_t q = 0;
    for (; q + kLanes <= b.q; q += kLanes) step(Full{}, q);
    if (q < b.q) step(Part{static_cast<int>(b.q - q)}, q);  // what stands behind the row's end may be infinite
  }
  CK_UNROLL
  for (int i = 0; i < kTaps; ++i)
    CK_UNROLL
    for (int k = 0; k < kFilters; ++k) store(sums + (i * kFilters + k) * kLanes, acc[i][k]);
}

// All places; those behind the last repeat it, and their sums are not used.
template <int kFilters>
void add_all(const ConvProblem& p, const Layout& l, const Band& b, int64_t plane, float* sums) {
  constexpr int kTaps = taps_together(kFilters);
  for (int64_t block = 0; block < l.blocks; ++block, sums += kTaps * kFilters * kLanes) {
    int64_t offsets[kTaps];
    for (int i = 0; i < kTaps; ++i) {
      const int64_t tap = least(l.taps - 1, block * kTaps + i), c = tap % p.c, s = tap / p.c % p.s, r = tap / (p.c * p.s);
      offsets[i] = c * plane + r * p.dil_h * l.width + s * p.dil_w;
    }
    add_band<kTaps, kFilters>(b, offsets, sums);
  }
}
using AddFn = void (*)(const ConvProblem&, const Layout&, const Band&, int64_t, float*);
constexpr AddFn kAddFn[kMostFilters + 1] = {nullptr, add_all<1>, add_all<2>, add_all<3>, add_all<4>, add_all<5>, add_all<6>, add_all<7>, add_all<8>};

void run(const ConvProblem& p, const ConvWeightArgs& a, int64_t images, int phase, int64_t first, int64_t last, void* scratch, void* shared) {
  const Layout l = layout_of(p);
  const int64_t parts = parts_of(l, images), units = images * l.bands, weights = l.taps * p.k;
  float *totals = static_cast<float*>(shared), *dw = static_cast<float*>(a.dw);
  if (phase == 1) {
    for (int64_t i = 0; i < weights; ++i) {
      float sum = totals[i];
      for (int64_t part = 1; part < parts; ++part) sum += totals[part * weights + i];
      dw[i] = sum;
    }
    return;
  }
  float *sums = static_cast<float*>(scratch), *x = sums + l.sums, *dy = x + l.x_floats;
  for (int64_t part = first; part < last; ++part) {
    for (int64_t i = 0; i < l.sums; i += kLanes) store(sums + i, splat(0.f));
    for (int64_t unit = units * part / parts; unit < units * (part + 1) / parts; ++unit) {
      const int64_t n = unit / l.bands, from = p.p * (unit % l.bands) / l.bands, rows = p.p * (unit % l.bands + 1) / l.bands - from;
      image_planes(p, a.x, n, from * p.stride_h, rows_read(p, rows), l.width, x);
      gradient_planes(p, l, a.dy, n, from, rows, dy);
      kAddFn[p.k](p, l, Band{x, dy, rows, p.stride_h * l.width, l.dy_width, rows * l.dy_width, p.q}, rows_read(p, rows) * l.width, sums);
    }
    for (int64_t i = 0; i < weights; ++i) {
      float lanes[kLanes];
      store(lanes, lane_sum(load(sums + i * kLanes)));
      totals[part * weights + i] = lanes[0];
    }
  }
}

double cost(const ConvProblem& p) {
  const Layout l = layout_of(p);
  const double vectors = static_cast<double>(p.p * (l.dy_width / kLanes));
  const double fmas = vectors * static_cast<double>(l.blocks * l.together * p.k);
  const double copies = vectors * static_cast<double>(5 * kLanes) + static_cast<double>(p.h * p.w * p.c) * (p.c > 1 ? 1.0 : 0.2);
  return (fmas / 0.8 + copies) / kVectorsPerMicrosecond;
}
int64_t scratch_bytes(const ConvProblem& p) {
  const Layout l = layout_of(p);
  return (l.sums + l.x_floats + l.dy_floats) * 4;
}
int64_t shared_bytes(const ConvProblem& p, int64_t images) {
  const Layout l = layout_of(p);
  return parts_of(l, images) * l.taps * p.k * 4;
}
int64_t phases(const ConvProblem&, int64_t) { return 2; }
int64_t tasks(const ConvProblem& p, int64_t images, int phase) { return phase == 0 ? parts_of(layout_of(p), images) : 1; }

}  // namespace

extern const ConvWeightKernel conv_weight_planes;
const ConvWeightKernel conv_weight_planes = {"conv_weight_planes", refuse_planes, cost, scratch_bytes, shared_bytes, phases, tasks, run};

}  // namespace CK_ISA
}  // namespace ck
