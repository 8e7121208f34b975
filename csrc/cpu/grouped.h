// grouped.h: what the kernels of 3x3 convolutions in groups share: the cut of an image into tiles of rows x columns, the epilogue of a tile, the
// copy of its window and the fetching of input. A group has so few channels that a layer does 10 to 70 FMAs for each number it reads: at batch 8,
// or after a wide layer, memory sets the pace, and every line has to be on its way before a tile asks for it.
//
// Tried     asking for the lines of y before a tile: 5 to 10 % slower (Granite Rapids, November 2026)
//           fetching the lines below each pixel as it is read, a burst a tile: 56x56x256 stride 2, N=8, one thread 3.5 ms in place of 3.2, and 6 without
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
  int rows, cols;               // of a tile
  int64_t bands, parts, tiles;  // bands of rows, parts of a row; tiles of an image
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
  const bool clamped = o.act->kind == Act::kClamp;
  const vf lo = splat(o.act->a), hi = splat(o.act->b);
  if (o.k == kLanes && o.rows == kRows && o.cols == kCols) {
    if (o.residual) {
      CK_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const float* residual = o.residual + i * o.residual_row;
        CK_UNROLL
        for (int j = 0; j < kCols; ++j, residual += o.residual_pixel) acc[i][j] += load(residual);
      }
    }
    if (clamped) {
      CK_UNROLL
      for (int i = 0; i < kRows; ++i)
        CK_UNROLL
        for (int j = 0; j < kCols; ++j) acc[i][j] = vmax(acc[i][j], lo);
      if (o.act->b < __builtin_inf()) {  // not ReLU
        CK_UNROLL
        for (int i = 0; i < kRows; ++i)
          CK_UNROLL
          for (int j = 0; j < kCols; ++j) acc[i][j] = vmin(acc[i][j], hi);
      }
    }
    CK_UNROLL
    for (int i = 0; i < kRows; ++i) {
      float* y = o.y + i * o.y_row;
      CK_UNROLL
      for (int j = 0; j < kCols; ++j, y += o.y_pixel) store(y, acc[i][j]);
    }
  } else {
    vf sums[kRows][kCols];
    CK_UNROLL
    for (int i = 0; i < kRows; ++i)
      CK_UNROLL
      for (int j = 0; j < kCols; ++j) sums[i][j] = acc[i][j];
    for (int i = 0; i < o.rows; ++i)
      for (int j = 0; j < o.cols; ++j) {
        vf v = sums[i][j];
        if (o.residual) v += load_some(o.residual + i * o.residual_row + j * o.residual_pixel, o.k);
        if (clamped) v = clamp(v, lo, hi);
        store_some(o.y + i * o.y_row + j * o.y_pixel, v, o.k);
      }
  }
  // The others need more registers than the tile leaves free: a second pass over what was just stored.
  if (o.act->kind != Act::kNone && !clamped)
    for (int i = 0; i < o.rows; ++i)
      for (int j = 0; j < o.cols; ++j) {
        float* y = o.y + i * o.y_row + j * o.y_pixel;
        activate_span(y, y, o.k, *o.act);
      }
}

// A window of pixels, first at (h, w) of image n, copied row by row to rows of `pitch` pixels of kApart floats, with zeros where there is no
// input and behind the channels. Channels beyond kApart go to further layers of the copy.
template <int kApart>
struct Copy {
  const float* x;  // the window's first row and first existing column
  int64_t row, pixel;
  int h, rows_in;    // the next row to copy, and how many the input has
  int begin, end;    // the columns that exist
  int height, pitch, i;
  int64_t floats;    // channels still to copy, of this layer and the next ones
  float* to;
  int64_t skip;      // floats between the layers of the copy

  CK_INLINE_MEMBER void start(const ConvProblem& p, const View& v, int64_t n, int64_t z, int64_t h_first, int64_t w, int64_t channel,
                              int64_t channels, int height_, int pitch_, float* to_, int64_t layer) {
    begin = static_cast<int>(least(pitch_, most(0, -w))), end = static_cast<int>(most(begin, least(pitch_, p.w - w)));
    x = at<const float>(v, n, z, h_first, w + begin) + channel;
    row = v.row, pixel = v.pixel, h = static_cast<int>(h_first), rows_in = static_cast<int>(p.h);
    height = height_, pitch = pitch_, i = 0, floats = channels, to = to_;
    skip = layer - static_cast<int64_t>(height_) * pitch_ * kApart;
  }
  CK_INLINE_MEMBER bool done() const { return floats <= 0; }
  CK_INLINE_MEMBER void zero(int pixels) {
    for (float* last = to + pixels * kApart; to < last; to += kLanes) store(to, splat(0.f));
  }
  // The next row.
  CK_INLINE_MEMBER void step() {
    if (static_cast<uint32_t>(h) >= static_cast<uint32_t>(rows_in)) {
      zero(pitch);
    } else {
      zero(begin);
      const float* from = x;
      if (floats >= kApart)
        for (int j = begin; j < end; ++j, from += pixel, to += kApart)
          CK_UNROLL
          for (int f = 0; f < kApart; f += kLanes) store(to + f, load(from + f));
      else
        for (int j = begin; j < end; ++j, from += pixel, to += kApart)
          for (int f = 0; f < kApart; f += kLanes)
            store(to + f, floats - f >= kLanes ? load(from + f) : floats > f ? load_n(from + f, static_cast<int>(floats - f)) : splat(0.f));
      zero(pitch - end);
    }
    x += row, ++h;
    if (++i == height) {
      x += kApart - height * row, h -= height, i = 0;
      floats -= kApart, to += skip;
    }
  }
};

// Input that the next band of tiles will read first comes to the second-level cache while this one is computed, at an even pace: a burst of requests
// would fill the queue to memory and stop the loads behind it.
struct Fetch {
  const float* at;
  int64_t line, lines, skip;  // of a pixel: the next one, how many, floats from the last one to the next pixel
  int64_t each;               // lines for one of the units of work of a band

  CK_INLINE_MEMBER void some(int64_t count) {
    for (; count > 0; --count) {
      __builtin_prefetch(at, 0, 2);
      at += 16;
      if (++line == lines) line = 0, at += skip;
    }
  }
};
// Channels [channel, channel + channels) belong to this block of `blocks`; the bands of all blocks are walked image by image. The task at_tile does
// `units` of the band's units * c.parts.
CK_INLINE Fetch fetch_next(const ConvProblem& p, const Cut& c, const View& x, int64_t n, int64_t images, int64_t tile, int64_t channel,
                           int64_t channels, int64_t units) {
  Fetch f{nullptr, 0, (channels + 15) / 16, 0, 0};
  int64_t part = tile % c.parts, band = tile / c.parts % c.bands + 1, z = tile / (c.parts * c.bands);
  if (band == c.bands) band = 0, ++z;
  if (z == p.z) z = 0, channel += channels;
  if (channel >= p.c) channel = 0, ++n;
  if (n == images) return f;
  const int64_t step = c.rows * p.stride_h, height = window(c.rows, static_cast<int>(p.stride_h)), h = band * step - p.pad_h_lo;
  const int64_t from = most(0, band ? h + height - step : h), to = least(p.h, h + height);
  if (from >= to) return f;
  f.each = ((to - from) * p.w * f.lines + units * c.parts - 1) / (units * c.parts);
  const int64_t first = part * units * f.each, pixel = first / f.lines;
  f.line = first % f.lines;
  f.skip = x.pixel - f.lines * 16;
  f.at = at<const float>(x, n, z, from, 0) + channel + pixel * x.pixel + f.line * 16;
  return f;
}

}  // namespace
}  // namespace CK_ISA
}  // namespace ck
