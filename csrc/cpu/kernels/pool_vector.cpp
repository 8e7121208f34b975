// pool_vector.cpp: max and average pooling, float32.
//
// Computes  as pool_ref.cpp. Averages: the taps of a row are summed, then the rows (one order for any tiling); NaN wins a maximum
// Layout    x NDHWC, y NZPQC; any C
// Tiling    task = about 16 KB of input: a run of output pixels x a range of channels; registers = 4 vectors of channels
//             direct    per output pixel: all taps of the window
//             columns   where windows overlap much, or C is small: first every column of the window's rows into a scratch row
//                       of w*C floats, which is one contiguous span, then each output pixel from its columns
//             indexed   as direct, with the position of the maximum in integer lanes
// Cost      4*(DHWC + ZPQC) bytes; direct NZPQC*TRS operations, columns NZP*WC*TR + NZPQC*S
// Refuses   indices in more than 2^31 pixels
// Source    as pool_ref.cpp
// Tried     columns for 3x3 stride 1 (28x28x256): 60 us against 77 direct, Zen 4, AVX-512; for 3x3 stride 2 direct wins
#include "core/kernel.h"
#include "core/window.h"
#include "simd/math.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int kBlock = 4;  // vectors

struct Max {
  static CK_INLINE_MEMBER vf start() { return splat(-__builtin_inff()); }
  static CK_INLINE_MEMBER vf add(vf a, vf b) { return maximum(b, a); }
  static CK_INLINE_MEMBER vf finish(vf v, vf) { return v; }
};
struct Avg {
  static CK_INLINE_MEMBER vf start() { return splat(0.0f); }
  static CK_INLINE_MEMBER vf add(vf a, vf b) { return a + b; }
  static CK_INLINE_MEMBER vf finish(vf v, vf divisor) { return v / divisor; }
};

// A window over x: counts and strides in elements.
struct Window {
  const float* x;  // the first tap
  int64_t depths, rows, columns;
  int64_t depth, row, column;
};

CK_INLINE Window window(const View& x, int64_t n, const Taps& depth, const Taps& row, const Taps& column) {
  return {at<float>(x, n, depth.first, row.first, column.first),
          depth.count,
          row.count,
          column.count,
          depth.step * x.depth,
          row.step * x.row,
          column.step * x.pixel};
}

// kVectors vectors of channels of one output pixel; kColumns = 0: any number of columns.
template <class Op, int kColumns, int kVectors, class IO>
CK_INLINE void reduce(const Window& win, int64_t c, vf divisor, float* y, IO io) {
  vf total[kVectors];
  CK_UNROLL for (int v = 0; v < kVectors; ++v) total[v] = Op::start();
  for (int64_t d = 0; d < win.depths; ++d) {
    for (int64_t r = 0; r < win.rows; ++r) {
      const float* x = win.x + d * win.depth + r * win.row + c;
      vf sum[kVectors];
      CK_UNROLL for (int v = 0; v < kVectors; ++v) sum[v] = io.load(x + v * kLanes);
      if (kColumns) {
        CK_UNROLL for (int s = 1; s < kColumns; ++s) {
          x += win.column;
          CK_UNROLL for (int v = 0; v < kVectors; ++v) sum[v] = Op::add(sum[v], io.load(x + v * kLanes));
        }
      } else {
        for (int64_t s = 1; s < win.columns; ++s) {
          x += win.column;
          CK_UNROLL for (int v = 0; v < kVectors; ++v) sum[v] = Op::add(sum[v], io.load(x + v * kLanes));
        }
      }
      CK_UNROLL for (int v = 0; v < kVectors; ++v) total[v] = Op::add(total[v], sum[v]);
    }
  }
  CK_UNROLL for (int v = 0; v < kVectors; ++v) io.store(y + c + v * kLanes, Op::finish(total[v], divisor));
}

template <class Op, int kColumns>
CK_INLINE void pixel(const Window& win, int64_t c, int64_t end, vf divisor, float* y) {
  for (; c + kBlock * kLanes <= end; c += kBlock * kLanes) reduce<Op, kColumns, kBlock>(win, c, divisor, y, Full{});
  for (; c + kLanes <= end; c += kLanes) reduce<Op, kColumns, 1>(win, c, divisor, y, Full{});
  if (c < end) reduce<Op, kColumns, 1>(win, c, divisor, y, Part{static_cast<int>(end - c)});
}

// A run of output pixels (z,i,q..q+count) and channels [c, end).
struct Run {
  int64_t n, z, i, q, count, c, end;
};

template <class Op>
void direct(const PoolProblem& p, const PoolArgs& a, const Run& run) {
  const Taps depth = depth_taps(p, run.z), row = row_taps(p, run.i);
  for (int64_t q = run.q; q < run.q + run.count; ++q) {
    const Taps column = column_taps(p, q);
    float* y = at<float>(a.y, run.n, run.z, run.i, q);
    Window win = window(a.x, run.n, depth, row, column);
    if (win.columns == 0) win.rows = 0;
    const vf divisor = splat(static_cast<float>(pool_divisor(p, depth, row, column)));
    if (win.columns == 2)
      pixel<Op, 2>(win, run.c, run.end, divisor, y);
    else if (win.columns == 3)
      pixel<Op, 3>(win, run.c, run.end, divisor, y);
    else
      pixel<Op, 0>(win, run.c, run.end, divisor, y);
  }
}

// The vertical half of `columns`: kVectors vectors at x + i, over depths and rows, into y + i.
template <class Op, int kVectors, class IO>
CK_INLINE void gather(const Window& win, int64_t i, float* y, IO io) {
  vf sum[kVectors];
  CK_UNROLL for (int v = 0; v < kVectors; ++v) sum[v] = Op::start();
  for (int64_t d = 0; d < win.depths; ++d) {
    for (int64_t r = 0; r < win.rows; ++r) {
      const float* x = win.x + d * win.depth + r * win.row + i;
      CK_UNROLL for (int v = 0; v < kVectors; ++v) sum[v] = Op::add(sum[v], io.load(x + v * kLanes));
    }
  }
  CK_UNROLL for (int v = 0; v < kVectors; ++v) io.store(y + i + v * kLanes, sum[v]);
}

template <class Op>
CK_INLINE void gather_span(const Window& win, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + kBlock * kLanes <= n; i += kBlock * kLanes) gather<Op, kBlock>(win, i, y, Full{});
  for (; i + kLanes <= n; i += kLanes) gather<Op, 1>(win, i, y, Full{});
  if (i < n) gather<Op, 1>(win, i, y, Part{static_cast<int>(n - i)});
}

template <class Op>
void columns(const PoolProblem& p, const PoolArgs& a, const Run& run, float* scratch) {
  const Taps depth = depth_taps(p, run.z), row = row_taps(p, run.i);
  const int64_t start = run.q * p.stride_w - p.pad_w_lo, stop = start + (run.count - 1) * p.stride_w + (p.s - 1) * p.dil_w + 1;
  const int64_t first = start > 0 ? start : 0, wanted = (stop < p.w ? stop : p.w) - first;
  Window win = window(a.x, run.n, depth, row, Taps{first, 0, 0, 0});
  if (a.x.pixel == p.c) {
    gather_span<Op>(win, wanted * p.c, scratch);
  } else {
    for (int64_t w = 0; w < wanted; ++w, win.x += a.x.pixel) gather_span<Op>(win, p.c, scratch + w * p.c);
  }
  for (int64_t q = run.q; q < run.q + run.count; ++q) {
    const Taps column = column_taps(p, q);
    const vf divisor = splat(static_cast<float>(pool_divisor(p, depth, row, column)));
    const Window line = {scratch + (column.first - first) * p.c, 1, column.count > 0, column.count, 0, 0, column.step * p.c};
    pixel<Op, 0>(line, 0, p.c, divisor, at<float>(a.y, run.n, run.z, run.i, q));
  }
}

template <class IO>
CK_INLINE void indexed(const PoolProblem& p, const Window& win, const Taps* taps, int64_t c, int lanes, float* y, int64_t* index, IO io) {
  const Taps &depth = taps[0], &row = taps[1], &column = taps[2];
  vf best = splat(-__builtin_inff());
  vi where = splat_int(static_cast<int32_t>((depth.first * p.h + row.first) * p.w + column.first));
  for (int64_t d = 0; d < win.depths; ++d)
    for (int64_t r = 0; r < win.rows; ++r)
      for (int64_t s = 0; s < win.columns; ++s) {
        const vf v = io.load(win.x + d * win.depth + r * win.row + s * win.column + c);
        const int64_t position = ((depth.first + d * depth.step) * p.h + row.first + r * row.step) * p.w + column.first + s * column.step;
        const vi better = (v > best) | (v != v);
        best = select(better, v, best);
        where = better ? splat_int(static_cast<int32_t>(position)) : where;
      }
  io.store(y + c, best);
  for (int i = 0; i < lanes; ++i) index[c + i] = where[i];
}

void with_indices(const PoolProblem& p, const PoolArgs& a, const Run& run) {
  Taps taps[3] = {depth_taps(p, run.z), row_taps(p, run.i), {}};
  for (int64_t q = run.q; q < run.q + run.count; ++q) {
    taps[2] = column_taps(p, q);
    const Window win = window(a.x, run.n, taps[0], taps[1], taps[2]);
    float* y = at<float>(a.y, run.n, run.z, run.i, q);
    int64_t* index = at<int64_t>(a.index, run.n, run.z, run.i, q);
    int64_t c = run.c;
    for (; c + kLanes <= run.end; c += kLanes) indexed(p, win, taps, c, kLanes, y, index, Full{});
    if (c < run.end) indexed(p, win, taps, c, static_cast<int>(run.end - c), y, index, Part{static_cast<int>(run.end - c)});
  }
}

// How the work is cut, from the problem alone.
struct Split {
  bool columns;
  int64_t channels, channel_tasks;  // per task; tasks along the channels
  int64_t pixels, pixel_tasks;      // output pixels per task, within an image
};

Split split(const PoolProblem& p) {
  const double lanes_used = p.c < kLanes ? double(p.c) / kLanes : 1;
  const double loads_direct = double(p.t * p.r * p.s) + 1;
  const double loads_columns = double(p.w) / double(p.q) * double(p.t * p.r + 1) * lanes_used + double(p.s) + 1;
  const bool columns = !p.adaptive && !p.indices && p.t * p.r > 1 && loads_columns < loads_direct;
  const int64_t all = p.z * p.p * p.q;
  // Few outputs from a large image: an eighth of the channels per task, in runs of whole cache lines.
  const int64_t eighth = (p.c / 8 + 63) / 64 * 64;
  const int64_t channels = all < 8 && p.c > 64 && p.d * p.h * p.w * p.c > 16384 && !columns ? eighth : p.c;
  const int64_t bytes = 4 * channels * (1 + p.d * p.h * p.w / all);
  int64_t pixels = bytes > 0 && bytes < 16384 ? 16384 / bytes : 1;
  if (columns && pixels < 8 * p.s) pixels = 8 * p.s;   // neighbouring tasks repeat s columns
  if (pixels < p.q && 2 * pixels > p.q) pixels = p.q;  // whole rows
  if (pixels > p.q) pixels = pixels / p.q * p.q;
  return {columns, channels, channels ? (p.c + channels - 1) / channels : 0, pixels, (all + pixels - 1) / pixels};
}

template <class Op>
void loop(const PoolProblem& p, const PoolArgs& a, int64_t first, int64_t last, float* scratch) {
  const Split cut = split(p);
  for (int64_t task = first; task < last; ++task) {
    const int64_t c = task % cut.channel_tasks * cut.channels, chunk = task / cut.channel_tasks % cut.pixel_tasks;
    Run run = {task / (cut.channel_tasks * cut.pixel_tasks), 0, 0, 0, 0, c, c + cut.channels < p.c ? c + cut.channels : p.c};
    const int64_t all = p.z * p.p * p.q, end = (chunk + 1) * cut.pixels < all ? (chunk + 1) * cut.pixels : all;
    for (int64_t i = chunk * cut.pixels; i < end; i += run.count) {
      const int64_t row = i / p.q;
      run.z = row / p.p, run.i = row % p.p, run.q = i - row * p.q;
      run.count = p.q - run.q < end - i ? p.q - run.q : end - i;
      if (p.indices)
        with_indices(p, a, run);
      else if (cut.columns)
        columns<Op>(p, a, run, scratch);
      else
        direct<Op>(p, a, run);
    }
  }
}

const char* refuse(const PoolProblem& p) { return p.indices && p.d * p.h * p.w > INT32_MAX ? "indices beyond 32 bits" : nullptr; }
double cost(const PoolProblem& p) {
  const double window = p.adaptive ? double(p.d * p.h * p.w) / double(p.z * p.p * p.q) : double(p.t * p.r * p.s);
  const double in = double(p.d * p.h * p.w * p.c), out = double(p.z * p.p * p.q * p.c);
  return 4 * (in + out) / 10e3 + out * window / (2e3 * kLanes);
}
int64_t scratch_bytes(const PoolProblem& p) { return split(p).columns ? 4 * p.w * p.c : 0; }
int64_t tasks(const PoolProblem& p, int64_t images) {
  const Split cut = split(p);
  return images * cut.channel_tasks * cut.pixel_tasks;
}

void run(const PoolProblem& p, const PoolArgs& a, int64_t, int64_t first, int64_t last, void* scratch) {
  if (p.kind == PoolKind::kMax)
    loop<Max>(p, a, first, last, static_cast<float*>(scratch));
  else
    loop<Avg>(p, a, first, last, static_cast<float*>(scratch));
}

}  // namespace

extern const PoolKernel pool_vector;
const PoolKernel pool_vector = {"pool_vector", refuse, cost, scratch_bytes, tasks, run};

}  // namespace CK_ISA
}  // namespace ck
