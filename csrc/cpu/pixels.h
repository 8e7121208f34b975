// pixels.h: which input pixel each tap of each output pixel reads: the pointer tables of the indirect convolutions.
#pragma once
#include "core/kernel.h"
#include "cpu/integers.h"
#include "simd/vec.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int kTilePixels = kMaxTile;

// The input pixel of output `o` and tap `tap` along one dimension, or -1.
CK_INLINE int64_t source(int64_t o, int64_t tap, int64_t stride, int64_t pad, int64_t dil, int64_t in) {
  const int64_t i = o * stride - pad + tap * dil;
  return static_cast<uint64_t>(i) < static_cast<uint64_t>(in) ? i : -1;
}
CK_INLINE int64_t source_transposed(int64_t o, int64_t tap, int64_t stride, int64_t pad, int64_t dil, int64_t in) {
  const int64_t i = o + pad - tap * dil;
  if (i < 0 || i % stride) return -1;
  return i / stride < in ? i / stride : -1;
}

struct Table {
  const float** x;     // [entries][count]
  int32_t* tap;        // [entries]
  const float* zeros;  // what a padded pixel points at
};

// 1x1 convolutions pixel by pixel through an image without padding or gaps: the pixels of x lie as evenly as those of y.
CK_INLINE bool evenly(const ConvProblem& p, const View& x) {
  const bool same =
      p.z == p.d && p.p == p.h && p.q == p.w && p.stride_d * p.stride_h * p.stride_w == 1 && p.pad_d_lo + p.pad_h_lo + p.pad_w_lo == 0;
  return same && p.t * p.r * p.s == 1 && x.row == p.w * x.pixel && (p.d == 1 || x.depth == p.h * x.row);
}

// Pointers for the outputs [m, m + count) of image n, flat over z p q. Returns the number of entries. With `across`, m runs over the batch and
// every tap has an entry; otherwise taps that are padding for all these pixels are left out (the grouping within an image is fixed, so the bits are too).
CK_INLINE int64_t point_flat(const ConvProblem& p, bool across, const View& x, int64_t n, int64_t m, int count, const Table& table) {
  if (!across && evenly(p, x)) {
    const float* x_m = at<const float>(x, n, 0, 0, 0) + m * x.pixel;
    for (int i = 0; i < count; ++i) table.x[i] = x_m + i * x.pixel;
    table.tap[0] = 0;
    return 1;
  }
  int64_t d0[kTilePixels], h0[kTilePixels], w0[kTilePixels];
  const float* x_n[kTilePixels];
  bool inside = true;
  int64_t q = m % p.q, row = m / p.q % p.p, z = m / (p.q * p.p);
  if (across) n = z / p.z, z %= p.z;
  for (int i = 0; i < count; ++i) {
    d0[i] = z * p.stride_d - p.pad_d_lo, h0[i] = row * p.stride_h - p.pad_h_lo, w0[i] = q * p.stride_w - p.pad_w_lo;
    x_n[i] = at<const float>(x, n, d0[i], h0[i], w0[i]);
    inside &= d0[i] >= 0 && h0[i] >= 0 && w0[i] >= 0 && d0[i] + (p.t - 1) * p.dil_d < p.d && h0[i] + (p.r - 1) * p.dil_h < p.h &&
              w0[i] + (p.s - 1) * p.dil_w < p.w;
    if (++q == p.q) {
      q = 0;
      if (++row == p.p) {
        row = 0;
        if (++z == p.z && across) z = 0, ++n;
      }
    }
  }
  int64_t entries = 0, tap = 0;
  for (int64_t t = 0; t < p.t; ++t)
    for (int64_t r = 0; r < p.r; ++r)
      for (int64_t s = 0; s < p.s; ++s, ++tap) {
        const float** out = table.x + entries * count;
        const int64_t offset = t * p.dil_d * x.depth + r * p.dil_h * x.row + s * p.dil_w * x.pixel;
        bool any = across || inside;
        if (inside) {
          for (int i = 0; i < count; ++i) out[i] = x_n[i] + offset;
        } else {
          for (int i = 0; i < count; ++i) {
            const bool in = static_cast<uint64_t>(d0[i] + t * p.dil_d) < static_cast<uint64_t>(p.d) &&
                            static_cast<uint64_t>(h0[i] + r * p.dil_h) < static_cast<uint64_t>(p.h) &&
                            static_cast<uint64_t>(w0[i] + s * p.dil_w) < static_cast<uint64_t>(p.w);
            out[i] = in ? x_n[i] + offset : table.zeros;
            any |= in;
          }
        }
        table.tap[entries] = static_cast<int32_t>(tap);
        entries += any;
      }
  return entries;
}

}  // namespace
}  // namespace CK_ISA
}  // namespace ck
