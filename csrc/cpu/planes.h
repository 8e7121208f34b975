// planes.h: images of few channels as planes, one for each channel, so that a vector holds neighbouring pixels of one channel. For convolutions
// whose filters are too few to fill a vector.
#pragma once
#include "core/kernel.h"
#include "core/machine.h"
#include "cpu/integers.h"
#include "simd/shuffle.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int64_t kMostFilters = 8, kMostChannels = 4;
constexpr int kSums = kMaxTile >= 12 ? 30 : 12;  // vectors that stay in registers beside what they are made of

CK_INLINE int64_t whole_lanes(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

CK_INLINE const char* refuse_planes(const ConvProblem& p) {
  if (p.transposed) return "transposed";
  if (p.groups != 1) return "groups";
  if (p.d != 1 || p.z != 1 || p.t != 1 || p.pad_d_lo || p.pad_d_hi) return "volumes";
  if (p.stride_w != 1) return "a stride along the rows";
  if (p.c > kMostChannels) return "more than 4 channels";
  if (p.k > kMostFilters) return "more than 8 filters";
  return nullptr;
}

// Rows of x that the outputs of a band of `rows` rows read, and the floats of a row: `reach` pixels and the window's columns.
CK_INLINE int64_t rows_read(const ConvProblem& p, int64_t rows) { return (rows - 1) * p.stride_h + (p.r - 1) * p.dil_h + 1; }
CK_INLINE int64_t row_width(const ConvProblem& p, int64_t reach) { return whole_lanes(reach + (p.s - 1) * p.dil_w); }

// Rows [first, first + rows) of the padded image n, plane by plane: [c][row][width]; zeros outside the image.
CK_INLINE void image_planes(const ConvProblem& p, const View& x, int64_t n, int64_t first, int64_t rows, int64_t width, float* out) {
  const int64_t from = least(width, most(0, p.pad_w_lo)), to = most(from, least(width, p.pad_w_lo + p.w));
  for (int64_t c = 0; c < p.c; ++c)
    for (int64_t i = 0; i < rows; ++i, out += width) {
      const int64_t h = first + i - p.pad_h_lo;
      if (static_cast<uint64_t>(h) >= static_cast<uint64_t>(p.h)) {
        for (int64_t j = 0; j < width; j += kLanes) store(out + j, splat(0.f));
        continue;
      }
      for (int64_t j = 0; j < from; ++j) out[j] = 0.f;
      const float* row = at<const float>(x, n, 0, h, from - p.pad_w_lo) + c;
      if (x.pixel == 1) {
        int64_t j = from;
        for (; j + kLanes <= to; j += kLanes) store(out + j, load(row + j - from));
        if (j < to) store_n(out + j, load_n(row + j - from, static_cast<int>(to - j)), static_cast<int>(to - j));
      } else {
        for (int64_t j = from; j < to; ++j) out[j] = row[(j - from) * x.pixel];
      }
      for (int64_t j = to; j < width; ++j) out[j] = 0.f;
    }
}

}  // namespace
}  // namespace CK_ISA
}  // namespace ck
