// pool_bf16.cpp: max and average pooling of tensors stored as bfloat16, computed in float32.
//
// Computes  as pool_vector.cpp; only the result is rounded, where it is stored as bfloat16 (a maximum of such values is one)
// Layout    x, y: bfloat16 or float32, NDHWC; any C
// Tiling    task = about 16 KB of input: a run of output pixels x a range of channels; registers = kBlock times 32 channels (bf16_lanes.h), all taps of a
//           window at once
// Cost      half of float32's bytes; NZPQC*TRS operations, one conversion for each 16 values read
// Refuses   float32 plans; indices
// Source    as pool_ref.cpp
#include "core/kernel.h"
#include "core/window.h"
#include "cpu/bf16_lanes.h"
#include "simd/math.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int kBlock = 2;

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

template <class X>
struct Window {
  const X* x;  // the first tap
  Taps depth, row, column;
  int64_t depth_step, row_step, column_step;  // elements
};

// kCount times 32 channels from c on of one output pixel: the taps of a row are summed, then the rows.
template <class Op, int kCount, class X, class Y, class IO>
CK_INLINE void reduce(const Window<X>& win, int64_t c, vf divisor, Y* y, IO io) {
  Halves total[kCount];
  CK_UNROLL
  for (int v = 0; v < kCount; ++v) total[v] = {Op::start(), Op::start()};
  const int64_t rows = win.column.count ? win.row.count : 0;
  for (int64_t d = 0; d < win.depth.count; ++d)
    for (int64_t r = 0; r < rows; ++r) {
      const X* x = win.x + d * win.depth_step + r * win.row_step + c;
      Halves sum[kCount];
      CK_UNROLL
      for (int v = 0; v < kCount; ++v) sum[v] = io.load(x + v * kPair);
      for (int64_t s = 1; s < win.column.count; ++s) {
        x += win.column_step;
        CK_UNROLL
        for (int v = 0; v < kCount; ++v) {
          const Halves more = io.load(x + v * kPair);
          sum[v] = {Op::add(sum[v].even, more.even), Op::add(sum[v].odd, more.odd)};
        }
      }
      CK_UNROLL
      for (int v = 0; v < kCount; ++v) total[v] = {Op::add(total[v].even, sum[v].even), Op::add(total[v].odd, sum[v].odd)};
    }
  CK_UNROLL
  for (int v = 0; v < kCount; ++v) io.store(y + c + v * kPair, Halves{Op::finish(total[v].even, divisor), Op::finish(total[v].odd, divisor)});
}

// How the work is cut, from the problem alone.
struct Split {
  int64_t channels, channel_tasks;  // of a task; tasks along the channels
  int64_t pixels, pixel_tasks;      // output pixels of a task, within an image
};
CK_INLINE Split split(const PoolProblem& p) {
  const int64_t all = p.z * p.p * p.q;
  // Few outputs from a large image: an eighth of the channels a task, in runs of whole cache lines.
  const int64_t eighth = (p.c / 8 + kPair - 1) / kPair * kPair;
  const int64_t channels = all < 8 && p.c > kPair && p.d * p.h * p.w * p.c > 16384 ? eighth : p.c;
  const int64_t bytes = 2 * channels * (1 + p.d * p.h * p.w / (all > 0 ? all : 1));
  const int64_t pixels = bytes > 0 && bytes < 16384 ? 16384 / bytes : 1;
  return {channels, channels ? (p.c + channels - 1) / channels : 0, pixels, (all + pixels - 1) / pixels};
}

template <class Op, class X, class Y>
void loop(const PoolProblem& p, const PoolArgs& a, int64_t first, int64_t last) {
  const Split cut = split(p);
  for (int64_t task = first; task < last; ++task) {
    const int64_t from = task % cut.channel_tasks * cut.channels, to = from + cut.channels < p.c ? from + cut.channels : p.c;
    const int64_t chunk = task / cut.channel_tasks % cut.pixel_tasks, n = task / (cut.channel_tasks * cut.pixel_tasks);
    const int64_t all = p.z * p.p * p.q, end = (chunk + 1) * cut.pixels < all ? (chunk + 1) * cut.pixels : all;
    for (int64_t i = chunk * cut.pixels; i < end; ++i) {
      const int64_t z = i / (p.p * p.q), prow = i / p.q % p.p, q = i % p.q;
      const Taps depth = depth_taps(p, z), row = row_taps(p, prow), column = column_taps(p, q);
      const Window<X> win{at<const X>(a.x, n, depth.first, row.first, column.first), depth, row, column, depth.step * a.x.depth, row.step * a.x.row,
                          column.step * a.x.pixel};
      const vf divisor = splat(static_cast<float>(pool_divisor(p, depth, row, column)));
      Y* y = at<Y>(a.y, n, z, prow, q);
      int64_t c = from;
      for (; c + kBlock * kPair <= to; c += kBlock * kPair) reduce<Op, kBlock>(win, c, divisor, y, Full32{});
      for (; c + kPair <= to; c += kPair) reduce<Op, 1>(win, c, divisor, y, Full32{});
      if (c < to) reduce<Op, 1>(win, c, divisor, y, Part32{to - c});
    }
  }
}

template <class Op>
CK_INLINE void typed(const PoolProblem& p, const PoolArgs& a, int64_t first, int64_t last) {
  if (p.x_bf16) {
    if (p.y_bf16) loop<Op, bf16, bf16>(p, a, first, last);
    else loop<Op, bf16, float>(p, a, first, last);
  } else {
    if (p.y_bf16) loop<Op, float, bf16>(p, a, first, last);
    else loop<Op, float, float>(p, a, first, last);
  }
}
void run(const PoolProblem& p, const PoolArgs& a, int64_t, int64_t first, int64_t last, void*) {
  if (p.kind == PoolKind::kMax) typed<Max>(p, a, first, last);
  else typed<Avg>(p, a, first, last);
}

const char* refuse(const PoolProblem& p) {
  if (p.bf16 == Bf16::kOff) return "float32: bfloat16 is not asked for";
  if (p.indices) return "indices: stays float32";
  return nullptr;
}
double cost(const PoolProblem& p) {
  const double window = p.adaptive ? double(p.d * p.h * p.w) / double(p.z * p.p * p.q) : double(p.t * p.r * p.s);
  const double in = double(p.d * p.h * p.w * p.c), out = double(p.z * p.p * p.q * p.c);
  return 2 * (in + out) / 10e3 + out * window / (3e3 * kLanes);
}
int64_t scratch_bytes(const PoolProblem&) { return 0; }
int64_t tasks(const PoolProblem& p, int64_t images) {
  const Split cut = split(p);
  return images * cut.channel_tasks * cut.pixel_tasks;
}

}  // namespace

extern const PoolKernel pool_bf16;
const PoolKernel pool_bf16 = {"pool_bf16", refuse, cost, scratch_bytes, tasks, run, nullptr, nullptr, nullptr, true};

}  // namespace CK_ISA
}  // namespace ck
