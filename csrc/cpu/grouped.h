// grouped.h: what the kernels of 3x3 convolutions in groups share: the cut of an image into tiles of rows x columns, and the epilogue of a tile.
#pragma once
#include "cpu/pixels.h"
#include "simd/math.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int kWidth = 3;  // of the filter, and its height

// The input window of a tile.
constexpr int window(int outputs, int stride) { return (outputs - 1) * stride + kWidth; }

// Whether a problem is of the kind: 3x3 in a plane, undilated, with stride 1 or 2.
CK_INLINE bool plain_square(const ConvProblem& p) {
  return !p.transposed && p.t == 1 && p.stride_d == 1 && p.pad_d_lo == 0 && p.pad_d_hi == 0 && p.r == kWidth && p.s == kWidth &&
         p.dil_h == 1 && p.dil_w == 1 && p.stride_h == p.stride_w && p.stride_w <= 2;
}

struct Cut {
  int rows, cols;                // of a tile
  int64_t bands, parts, tiles;   // bands of rows, parts of a row; tiles of an image
};
CK_INLINE Cut cut(const ConvProblem& p, int rows, int cols) {
  const int64_t bands = (p.p + rows - 1) / rows, parts = (p.q + cols - 1) / cols;
  return {rows, cols, bands, parts, p.z * bands * parts};
}

// One tile: its first output, and how many of them exist.
struct Place {
  int64_t z, p, q;
  int rows, cols;
};
CK_INLINE Place place(const ConvProblem& p, const Cut& c, int64_t tile) {
  const int64_t part = tile % c.parts, band = tile / c.parts % c.bands;
  const int64_t q = p.q * part / c.parts;
  return {tile / (c.parts * c.bands), band * c.rows, q, static_cast<int>(least(c.rows, p.p - band * c.rows)),
          static_cast<int>(p.q * (part + 1) / c.parts - q)};
}

// Where the outputs of a tile of one vector of filters go, and what is added to them.
struct Out {
  float* y;
  const float *residual, *bias;  // or null
  int64_t y_row, y_pixel, residual_row, residual_pixel;
  int64_t k;  // filters that exist
  int rows, cols;
  const Activation* act;
};
CK_INLINE Out out_of(const ConvProblem& p, const ConvArgs& a, int64_t n, const Place& at_tile, int64_t k, int64_t count) {
  return {at<float>(a.y, n, at_tile.z, at_tile.p, at_tile.q) + k,
          a.residual.data ? at<const float>(a.residual, n, at_tile.z, at_tile.p, at_tile.q) + k : nullptr,
          a.bias ? static_cast<const float*>(a.bias) + k : nullptr,
          a.y.row,
          a.y.pixel,
          a.residual.row,
          a.residual.pixel,
          least(kLanes, count),
          at_tile.rows,
          at_tile.cols,
          &p.act};
}

CK_INLINE vf load_some(const float* p, int64_t n) { return n >= kLanes ? load(p) : load_n(p, static_cast<int>(n)); }
CK_INLINE void store_some(float* p, vf v, int64_t n) {
  if (n >= kLanes) store(p, v);
  else store_n(p, v, static_cast<int>(n));
}

template <int kRows, int kCols>
CK_INLINE void finish(const Out& o, vf (&acc)[kRows][kCols]) {
  if (o.bias) {
    const vf b = load_some(o.bias, o.k);
    CK_UNROLL
    for (int i = 0; i < kRows; ++i)
      CK_UNROLL
      for (int j = 0; j < kCols; ++j) acc[i][j] += b;
  }
  if (o.residual) {
    CK_UNROLL
    for (int i = 0; i < kRows; ++i)
      CK_UNROLL
      for (int j = 0; j < kCols; ++j)
        if (i < o.rows && j < o.cols) acc[i][j] += load_some(o.residual + i * o.residual_row + j * o.residual_pixel, o.k);
  }
  if (o.act->kind == Act::kClamp) {
    const vf lo = splat(o.act->a);
    CK_UNROLL
    for (int i = 0; i < kRows; ++i)
      CK_UNROLL
      for (int j = 0; j < kCols; ++j) acc[i][j] = vmax(acc[i][j], lo);
    if (o.act->b < __builtin_inf()) {  // not ReLU
      const vf hi = splat(o.act->b);
      CK_UNROLL
      for (int i = 0; i < kRows; ++i)
        CK_UNROLL
        for (int j = 0; j < kCols; ++j) acc[i][j] = vmin(acc[i][j], hi);
    }
  }
  CK_UNROLL
  for (int i = 0; i < kRows; ++i) {
    if (i >= o.rows) break;
    float* y = o.y + i * o.y_row;
    CK_UNROLL
    for (int j = 0; j < kCols; ++j, y += o.y_pixel) {
      if (j >= o.cols) break;
      store_some(y, acc[i][j], o.k);
    }
  }
  // The others need more registers than the tile leaves free: a second pass over what was just stored.
  if (o.act->kind != Act::kNone && o.act->kind != Act::kClamp)
    for (int i = 0; i < o.rows; ++i)
      for (int j = 0; j < o.cols; ++j) {
        float* y = o.y + i * o.y_row + j * o.y_pixel;
        activate_span(y, y, o.k, *o.act);
      }
}

// Copies `floats` channels of a window of pixels, first at (h, w), to rows of `pitch` pixels of `apart` floats, with zeros where there is no
// input and behind the channels. On the way the lines `ahead` floats further, of the rows from `fetch_from` on, come to the second-level cache.
CK_INLINE void stage(const ConvProblem& p, const View& x, int64_t n, int64_t z, int64_t h, int64_t w, int64_t channel, int floats, int height,
                     int pitch, int apart, int64_t ahead, int fetch_from, float* to) {
  const int64_t from = least(pitch, most(0, -w)), until = most(from, least(pitch, p.w - w));
  for (int i = 0; i < height; ++i) {
    const bool outside = static_cast<uint64_t>(h + i) >= static_cast<uint64_t>(p.h);
    const int64_t begin = outside ? pitch : from, end = outside ? pitch : until;
    for (int64_t f = 0; f < begin * apart; f += kLanes) store(to + f, splat(0.f));
    to += begin * apart;
    const float* x_w = outside ? nullptr : at<const float>(x, n, z, h + i, w + begin) + channel;
    for (int64_t j = begin; j < end; ++j, x_w += x.pixel, to += apart) {
      if (i >= fetch_from) __builtin_prefetch(x_w + ahead, 0, 2);
      for (int f = 0; f < apart; f += kLanes)
        store(to + f, floats - f >= kLanes ? load(x_w + f) : floats > f ? load_n(x_w + f, floats - f) : splat(0.f));
    }
    for (int64_t f = 0; f < (pitch - end) * apart; f += kLanes) store(to + f, splat(0.f));
    to += (pitch - end) * apart;
  }
}

}  // namespace
}  // namespace CK_ISA
}  // namespace ck
