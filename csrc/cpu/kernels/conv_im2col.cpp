// conv_im2col.cpp: convolution as a matrix product: the windows of a tile are copied side by side, then one GEMM.
//
// Computes  what conv_direct does, for every problem that is not transposed
// Layout    x NDHWC, w in gemm.h's panels, y NZPQK; scratch: A[pixel][tap][c], one row per pixel of the tile
// Tiling    the tile and the super-panels of conv_direct; the pointer table of a GEMM has one entry, as long as the whole window
// Cost      conv_direct's FLOPs plus one copy of every window, repaid where windows are read by many panels and the channels are so few
//           that the pointer table of conv_direct costs as much (dilated filters over few channels)
// Refuses   transposed, groups
// Source    Chellapilla, Puri, Simard 2006, "High Performance Convolutional Neural Networks for Document Processing"
#include "cpu/gemm.h"
#include "cpu/pixels.h"

namespace ck {
namespace CK_ISA {
namespace {

struct Layout {
  int64_t window, pixels, tiles;  // floats of a window; outputs and tiles of an image
  int64_t zeros, pointers, taps;  // bytes of each part of the scratch
};

CK_INLINE Layout layout_of(const ConvProblem& p) {
  Layout l;
  l.window = taps_of(p) * p.c;
  l.pixels = p.z * p.p * p.q;
  l.tiles = (l.pixels + kTilePixels - 1) / kTilePixels;
  l.zeros = align64(p.c * 4);
  l.pointers = align64(taps_of(p) * kTilePixels * 8);
  l.taps = align64(taps_of(p) * 4);
  return l;
}

void run(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t first, int64_t last, void* memory) {
  const Layout l = layout_of(p);
  const Split split = split_of(p, l2_bytes * 5 / 8);
  char* at_byte = static_cast<char*>(memory);
  float* zeros = reinterpret_cast<float*>(at_byte);
  const Table table{reinterpret_cast<const float**>(at_byte + l.zeros), reinterpret_cast<int32_t*>(at_byte + l.zeros + l.pointers), zeros};
  float* matrix = reinterpret_cast<float*>(at_byte + l.zeros + l.pointers + l.taps);
  for (int64_t c = 0; c < p.c; ++c) zeros[c] = 0.f;
  const int32_t tap = 0;
  const int64_t tiles = images * l.tiles;
  for (int64_t task = first; task < last; ++task) {
    const int64_t super = task / tiles, n = task % tiles / l.tiles, in_image = task % l.tiles;
    const int64_t m = l.pixels * in_image / l.tiles;
    const int count = static_cast<int>(l.pixels * (in_image + 1) / l.tiles - m);
    const int64_t entries = point_flat(p, true, a.x, 0, n * l.pixels + m, count, table);
    const float* x[kTilePixels];
    for (int i = 0; i < count; ++i) {
      float* row = matrix + i * l.window;
      x[i] = row;
      for (int64_t e = 0; e < entries; ++e, row += p.c) {
        const float* from = table.x[e * count + i];
        int64_t c = 0;
        for (; c + kLanes <= p.c; c += kLanes) store(row + c, load(from + c));
        for (; c < p.c; ++c) row[c] = from[c];
      }
    }
    float* y = at<float>(a.y, n, 0, 0, 0) + m * a.y.pixel;
    const float* residual = a.residual.data ? at<const float>(a.residual, n, 0, 0, 0) + m * a.residual.pixel : nullptr;
    for (int64_t i = split.total * super / split.supers; i < split.total * (super + 1) / split.supers; ++i) {
      const int vecs = panel_width(split.panels, i), widest = kTile[vecs];
      const int64_t k = panel_first(split.panels, i) * kLanes;
      const int parts = (count + widest - 1) / widest;
      for (int part = 0; part < parts; ++part) {
        const int from = count * part / parts, to = count * (part + 1) / parts;
        const Tile t{x + from,
                     &tap,
                     1,
                     l.window,
                     static_cast<const float*>(a.weights) + k * l.window,
                     y + from * a.y.pixel + k,
                     residual ? residual + from * a.residual.pixel + k : nullptr,
                     a.y.pixel,
                     a.residual.pixel,
                     a.bias ? static_cast<const float*>(a.bias) + k : nullptr,
                     least(vecs * kLanes, p.k - k),
                     &p.act};
        tile_fn(vecs, to - from)(t);
      }
    }
  }
}

const char* refuse(const ConvProblem& p) {
  if (p.transposed) return "transposed";
  if (p.groups != 1) return "groups";
  return nullptr;
}

double cost(const ConvProblem& p) {
  const double outputs = static_cast<double>(p.z * p.p * p.q), window = static_cast<double>(taps_of(p) * p.c);
  const int64_t vecs = panels_of(p).vecs;
  const double fmas = outputs * window * static_cast<double>(vecs) * (vecs == 1 ? 1.3 : 1.0);
  // A copied vector costs about four cycles, a short one (few channels) as much as a long one.
  const double copies = outputs * static_cast<double>(taps_of(p)) * (static_cast<double>(p.c) / kLanes + 1.0) * 4.0;
  return (fmas / 0.85 + copies) / kVectorsPerMicrosecond + static_cast<double>(gemm_packed_bytes(p)) / kBytesPerMicrosecond;
}

int64_t scratch_bytes(const ConvProblem& p) {
  const Layout l = layout_of(p);
  return l.zeros + l.pointers + l.taps + align64(l.window * kTilePixels * 4);
}
int64_t tasks(const ConvProblem& p, int64_t images) { return split_of(p, l2_bytes * 5 / 8).supers * images * layout_of(p).tiles; }
int64_t packed_bytes(const ConvProblem& p) { return gemm_packed_bytes(p); }
int64_t pack_tasks(const ConvProblem& p) { return gemm_pack_tasks(p); }
void pack(const ConvProblem& p, const void* weights, const void* scale, void* packed, int64_t first, int64_t last) {
  gemm_pack(p, weights, scale, packed, first, last);
}

}  // namespace

extern const ConvKernel conv_im2col;
const ConvKernel conv_im2col = {"conv_im2col", refuse, cost, scratch_bytes, tasks, run, packed_bytes, pack_tasks, pack};

}  // namespace CK_ISA
}  // namespace ck
