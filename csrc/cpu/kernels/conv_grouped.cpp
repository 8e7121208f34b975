// conv_grouped.cpp: convolution in groups narrower than a vector (ResNeXt: 4 or 8 channels in, as many out), float32.
//
// Computes  y[..,k] = act(sum_trs sum_c x[.., g*Cg + c] * w[t,r,s,c,k] + bias + residual),  g = k / Kg, Cg = Kg in {2, 4, 8} < kLanes
// Layout    x NDHWC, y NZPQK; w [vector of filters][tap][c][lane]
// Tiling    one vector holds kLanes / Cg whole groups, of inputs and of outputs alike. Input c of every group at once is a shuffle of that vector:
//
//             x      = a0 a1 a2 a3 | b0 b1 b2 b3 | ...        (Cg = 4)
//             c = 1  : a1 a1 a1 a1 | b1 b1 b1 b1 | ...  * w[c=1] -> all filters of all groups of the vector
//
//           registers = kPixels accumulators; a tap's Cg filter vectors are loaded once for all pixels: (1 + 1 + Cg/kPixels) loads for Cg FMAs
// Cost      2*NZPQ*K*TRS*Cg flop, one shuffle an FMA (Zen 4 shares a pipe between them: 75 % of peak at best)
// Refuses   Cg != Kg; Cg not 2, 4 or 8, or not below the vector
// Source    Xie et al. 2017, arXiv:1611.05431, sec. 3.3 (the layers); the shuffle is ours
#include "cpu/pixels.h"
#include "simd/math.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int kPixels = kTile[2];

struct Layout {
  int64_t pixels, tiles, vecs, blocks;  // of an image; vectors of channels; blocks of vectors (a task is a tile and a block)
  int64_t zeros, pointers, taps;        // bytes
};
constexpr int64_t kBlockVecs = 8;

CK_INLINE Layout layout_of(const ConvProblem& p) {
  Layout l;
  // Transposed: a tile is of one row, its outputs a stride apart, for these see the same taps.
  l.pixels = p.transposed ? (p.q + p.stride_w - 1) / p.stride_w : p.z * p.p * p.q;
  l.tiles = (l.pixels + kPixels - 1) / kPixels * (p.transposed ? p.z * p.p * p.stride_w : 1);
  l.vecs = (p.k + kLanes - 1) / kLanes;
  l.blocks = (l.vecs + kBlockVecs - 1) / kBlockVecs;
  l.zeros = align64((p.c + kLanes) * 4);
  l.pointers = align64(p.t * p.r * p.s * kPixels * 8);
  l.taps = align64(p.t * p.r * p.s * 4);
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

// x's lane (l / kGroup) * kGroup + c in every lane l.
template <int kGroup, int kC>
CK_INLINE vf spread(vf x) {
  vi lane;
  CK_UNROLL
  for (int l = 0; l < kLanes; ++l) lane[l] = l / kGroup * kGroup + kC;
  return __builtin_shuffle(x, lane);
}

template <int kGroup, class IO>
CK_INLINE void accumulate(const float* const* x, int64_t channel, const float* w, IO io, vf (&acc)[kPixels]) {
  vf b[kGroup];
  CK_UNROLL
  for (int c = 0; c < kGroup; ++c) b[c] = load(w + c * kLanes);
  CK_UNROLL
  for (int i = 0; i < kPixels; ++i) {
    const vf a = io.load(x[i] + channel);
    acc[i] += spread<kGroup, 0>(a) * b[0];
    acc[i] += spread<kGroup, 1>(a) * b[1];
    if constexpr (kGroup > 2) {
      acc[i] += spread<kGroup, 2>(a) * b[2];
      acc[i] += spread<kGroup, 3>(a) * b[3];
    }
    if constexpr (kGroup > 4) {
      acc[i] += spread<kGroup, 4>(a) * b[4];
      acc[i] += spread<kGroup, 5>(a) * b[5];
      acc[i] += spread<kGroup, 6>(a) * b[6];
      acc[i] += spread<kGroup, 7>(a) * b[7];
    }
  }
}

template <int kGroup, class IO>
void vector(const ConvProblem& p, const ConvArgs& a, const Table& table, int64_t entries, int64_t k, int count, float* y, int64_t y_step,
            const float* residual, int64_t residual_step, IO io) {
  vf acc[kPixels];
  CK_UNROLL
  for (int i = 0; i < kPixels; ++i) acc[i] = splat(0.f);
  const float* w = static_cast<const float*>(a.weights) + k * p.t * p.r * p.s * kGroup;
  for (int64_t e = 0; e < entries; ++e) accumulate<kGroup>(table.x + e * kPixels, k, w + table.tap[e] * kGroup * kLanes, io, acc);
  const vf bias = a.bias ? io.load(static_cast<const float*>(a.bias) + k) : splat(0.f);
  CK_UNROLL
  for (int i = 0; i < kPixels; ++i) {
    if (i >= count) break;
    vf v = acc[i];
    if (a.bias) v += bias;
    if (residual) v += io.load(residual + i * residual_step + k);
    if (p.act.kind == Act::kClamp) v = clamp(v, splat(p.act.a), splat(p.act.b));
    io.store(y + i * y_step + k, v);
  }
  if (p.act.kind != Act::kNone && p.act.kind != Act::kClamp)
    for (int i = 0; i < count; ++i) {
      float* v = y + i * y_step + k;
      activate_span(v, v, least(kLanes, p.k - k), p.act);
    }
}

template <int kGroup>
void run_group(const ConvProblem& p, const ConvArgs& a, int64_t first, int64_t last, void* memory) {
  const Layout l = layout_of(p);
  char* at_byte = static_cast<char*>(memory);
  float* zeros = reinterpret_cast<float*>(at_byte);
  const Table table{reinterpret_cast<const float**>(at_byte + l.zeros), reinterpret_cast<int32_t*>(at_byte + l.zeros + l.pointers), zeros};
  for (int64_t c = 0; c < p.c + kLanes; ++c) zeros[c] = 0.f;
  for (int64_t task = first; task < last; ++task) {
    const int64_t n = task / (l.blocks * l.tiles), tile = task / l.blocks % l.tiles, block = task % l.blocks;
    int64_t entries, y_step = a.y.pixel, residual_step = a.residual.pixel;
    int count;
    float* y;
    const float* residual = nullptr;
    if (p.transposed) {
      const int64_t parts = (l.pixels + kPixels - 1) / kPixels, part = tile % parts, residue = tile / parts % p.stride_w;
      const int64_t row = tile / (parts * p.stride_w) % p.p, z = tile / (parts * p.stride_w * p.p);
      const int64_t pixels = residue < p.q ? (p.q - residue + p.stride_w - 1) / p.stride_w : 0, from = pixels * part / parts;
      count = static_cast<int>(pixels * (part + 1) / parts - from);
      if (!count) continue;
      const int64_t q = residue + from * p.stride_w;
      entries = point_transposed(p, a.x, n, z, row, q, count, table);
      y = at<float>(a.y, n, z, row, q);
      if (a.residual.data) residual = at<const float>(a.residual, n, z, row, q);
      y_step *= p.stride_w, residual_step *= p.stride_w;
    } else {
      const int64_t m = l.pixels * tile / l.tiles;
      count = static_cast<int>(l.pixels * (tile + 1) / l.tiles - m);
      entries = point_flat(p, false, a.x, n, m, count, table);
      if (count < kPixels)  // one microkernel: the pixels that a short tile lacks read zeros (rows are moved from the last, which end highest)
        for (int64_t e = entries - 1; e >= 0; --e)
          for (int i = kPixels - 1; i >= 0; --i) table.x[e * kPixels + i] = i < count ? table.x[e * count + i] : zeros;
      y = at<float>(a.y, n, 0, 0, 0) + m * a.y.pixel;
      if (a.residual.data) residual = at<const float>(a.residual, n, 0, 0, 0) + m * a.residual.pixel;
    }
    const int64_t to = least(l.vecs, (block + 1) * kBlockVecs);
    for (int64_t v = block * kBlockVecs; v < to; ++v) {
      const int64_t k = v * kLanes;
      if (p.k - k >= kLanes) vector<kGroup>(p, a, table, entries, k, count, y, y_step, residual, residual_step, Full{});
      else vector<kGroup>(p, a, table, entries, k, count, y, y_step, residual, residual_step, Part{static_cast<int>(p.k - k)});
    }
  }
}

void run(const ConvProblem& p, const ConvArgs& a, int64_t, int64_t first, int64_t last, void* memory) {
  switch (p.c / p.groups) {
    case 2: return run_group<2>(p, a, first, last, memory);
    // A group that fills a vector was refused: those cases only have to compile.
    case 4: return run_group<(kLanes > 4 ? 4 : 2)>(p, a, first, last, memory);
    case 8: return run_group<(kLanes > 8 ? 8 : 2)>(p, a, first, last, memory);
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
  const double taps = static_cast<double>(p.t * p.r * p.s), outputs = static_cast<double>(p.transposed ? p.d * p.h * p.w : p.z * p.p * p.q);
  return outputs * static_cast<double>(layout_of(p).vecs) * taps * static_cast<double>(p.c / p.groups) * 1.6 / 3000.0;
}

int64_t scratch_bytes(const ConvProblem& p) {
  const Layout l = layout_of(p);
  return l.zeros + l.pointers + l.taps;
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
  const int64_t rows = p.t * p.r * p.s * (p.c / p.groups);
  for (int64_t v = 0; v < layout_of(p).vecs; ++v)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t l = 0; l < kLanes; ++l, ++out) {
        const int64_t k = v * kLanes + l;
        *out = k >= p.k ? 0.f : s ? w[row * p.k + k] * s[k] : w[row * p.k + k];
      }
}

}  // namespace

extern const ConvKernel conv_grouped;
const ConvKernel conv_grouped = {"conv_grouped", refuse, cost, scratch_bytes, tasks, run, packed_bytes, pack_tasks, pack};

}  // namespace CK_ISA
}  // namespace ck
