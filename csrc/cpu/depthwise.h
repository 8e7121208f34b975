// depthwise.h: what the depthwise convolutions share: the cut into tasks (a block of rows times a block of channel vectors, so that the rows above
// and below are read from the first-level cache), the packed weights [vector of filters][tap][lane], and the activations that are not a clamp.
#pragma once
#include "cpu/pixels.h"
#include "simd/math.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int64_t kBlockRows = 8, kBlockBytes = 24 << 10, kWide = 512;

struct Layout {
  int64_t vecs, blocks, row_blocks;
};
CK_INLINE Layout layout_of(const ConvProblem& p) {
  const int64_t vecs = (p.k + kLanes - 1) / kLanes;
  // The input rows of a block stay in the first-level cache. Where few vectors of many do, they are too short a stretch of each pixel for what brings
  // them from memory (37x37x728, N=8: 4 vectors take twice as long as 32); with stride 2 there is little to read again (147x147x128, N=8: a quarter less).
  const int64_t near = kBlockBytes / (p.r * p.w * kLanes * 4),
                block = near < 16 && (p.k >= kWide || p.stride_h > 1) ? kWide / kLanes : least(16, most(4, near));
  return {vecs, (vecs + block - 1) / block, (p.p + kBlockRows - 1) / kBlockRows};
}

// f(n, z, row, k_first, k_last) for each row of the tasks [first, last), then the activation of the row's outputs.
template <class F>
CK_INLINE void each_row(const ConvProblem& p, const ConvArgs& a, int64_t first, int64_t last, const F& f) {
  const Layout l = layout_of(p);
  for (int64_t task = first; task < last; ++task) {
    const int64_t block = task % l.blocks, rows = task / l.blocks % l.row_blocks, z = task / (l.blocks * l.row_blocks) % p.z,
                  n = task / (l.blocks * l.row_blocks * p.z);
    const int64_t k_first = l.vecs * block / l.blocks * kLanes, k_last = least(p.k, l.vecs * (block + 1) / l.blocks * kLanes);
    for (int64_t row = p.p * rows / l.row_blocks; row < p.p * (rows + 1) / l.row_blocks; ++row) {
      f(n, z, row, k_first, k_last);
      if (p.act.kind == Act::kNone || p.act.kind == Act::kClamp) continue;
      activate_rows(at<float>(a.y, n, z, row, 0) + k_first, a.y.pixel, p.q, k_last - k_first, p.act);
    }
  }
}

int64_t scratch_bytes(const ConvProblem&) { return 0; }
int64_t tasks(const ConvProblem& p, int64_t images) {
  const Layout l = layout_of(p);
  return images * p.z * l.row_blocks * l.blocks;
}
int64_t packed_bytes(const ConvProblem& p) { return layout_of(p).vecs * kLanes * p.t * p.r * p.s * 4; }

int64_t pack_tasks(const ConvProblem&) { return 1; }
void pack(const ConvProblem& p, const void* weights, const void* scale, void* packed, int64_t, int64_t) {
  const float* w = static_cast<const float*>(weights);
  const float* s = static_cast<const float*>(scale);
  float* out = static_cast<float*>(packed);
  for (int64_t v = 0; v < layout_of(p).vecs; ++v)
    for (int64_t tap = 0; tap < p.t * p.r * p.s; ++tap)
      for (int64_t l = 0; l < kLanes; ++l, ++out) {
        const int64_t k = v * kLanes + l;
        *out = k >= p.k ? 0.f : s ? w[tap * p.k + k] * s[k] : w[tap * p.k + k];
      }
}

}  // namespace
}  // namespace CK_ISA
}  // namespace ck
