// norm_vector.cpp: operators over the channels of each pixel, float32.
//
// Computes  the formulas of norm_ref.cpp, sums in float32: kLanes (layer norm: 4 * kLanes) partial sums, then a tree
// Layout    x and y NDHWC, scale and shift C; any C
// Tiling    task = about 16 KB of pixels; registers = one vector of channels, layer norm 4
// Cost      8*DHWC bytes; exp, log and divisions are some 20 flop each
// Refuses   LRN that may take a power of a negative number
// Source    as norm_ref.cpp
#include "core/kernel.h"
#include "cpu/runs.h"
#include "simd/math.h"
#include "simd/shuffle.h"

namespace ck {
namespace CK_ISA {
namespace {

CK_INLINE int rest(int64_t n) { return static_cast<int>(n); }

// y = clamp(x * scale + shift) for n floats, scale and shift repeating every `period` floats, a multiple of kLanes or at least n.
CK_INLINE void scale_shift_span(const float* x, const float* scale, const float* shift, float* y, int64_t n, int64_t period, vf lo, vf hi) {
  for (int64_t start = 0; start < n; start += period) {
    const int64_t end = start + period < n ? start + period : n;
    int64_t i = start;
    for (; i + kLanes <= end; i += kLanes) store(y + i, clamp(load(x + i) * load(scale + i - start) + load(shift + i - start), lo, hi));
    if (i < end) {
      const Part io{rest(end - i)};
      io.store(y + i, clamp(io.load(x + i) * io.load(scale + i - start) + io.load(shift + i - start), lo, hi));
    }
  }
}

// Channels that do not fill vectors: scale and shift are repeated until they do, and a row of pixels is one span.
bool repeats(const NormProblem& p) { return p.kind == NormKind::kScaleShift && p.c < 4 * kLanes && p.c % kLanes; }

void scale_shift(const NormProblem& p, const NormArgs& a, const Runs& runs, int64_t first, int64_t last, float* scratch) {
  const float* scale = static_cast<const float*>(a.scale);
  const float* shift = static_cast<const float*>(a.shift);
  int64_t period = p.c;
  const bool whole = a.x.pixel == p.c && a.y.pixel == p.c;
  if (whole && repeats(p)) {
    period = p.c * kLanes;
    for (int64_t i = 0; i < period; ++i) scratch[i] = scale[i % p.c], scratch[period + i] = shift[i % p.c];
    scale = scratch, shift = scratch + period;
  }
  const bool clamps = p.act.kind == Act::kClamp;
  const vf lo = splat(clamps ? static_cast<float>(p.act.a) : -__builtin_inff()),
           hi = splat(clamps ? static_cast<float>(p.act.b) : __builtin_inff());
  const bool later = !clamps && p.act.kind != Act::kNone;
  const bool dense = dense_rows(a.x, p.d, p.h, p.w) && dense_rows(a.y, p.d, p.h, p.w);
  runs.each(first, last, dense, [&](int64_t n, int64_t d, int64_t h, int64_t w, int64_t count) {
    const float* x = at<float>(a.x, n, d, h, w);
    float* y = at<float>(a.y, n, d, h, w);
    const int64_t spans = whole ? 1 : count, length = whole ? count * p.c : p.c;
    for (int64_t i = 0; i < spans; ++i, x += a.x.pixel, y += a.y.pixel) {
      scale_shift_span(x, scale, shift, y, length, period, lo, hi);
      if (later) activate_span(y, y, length, p.act);
    }
  });
}

void layer_norm(const NormProblem& p, const float* x, const float* scale, const float* shift, float* y) {
  vf sum[4] = {}, squares[4] = {};
  const int64_t blocked = p.c - p.c % (4 * kLanes);
  int64_t c = 0;
  for (; c < blocked; c += 4 * kLanes) CK_UNROLL for (int v = 0; v < 4; ++v) sum[v] += load(x + c + v * kLanes);
  for (; c + kLanes <= p.c; c += kLanes) sum[0] += load(x + c);
  if (c < p.c) sum[1] += load_n(x + c, rest(p.c - c));
  const vf channels = splat(static_cast<float>(p.c));
  const vf mean = lane_sum((sum[0] + sum[1]) + (sum[2] + sum[3])) / channels;
  for (c = 0; c < blocked; c += 4 * kLanes) {
    CK_UNROLL for (int v = 0; v < 4; ++v) {
      const vf centred = load(x + c + v * kLanes) - mean;
      squares[v] += centred * centred;
    }
  }
  for (; c + kLanes <= p.c; c += kLanes) squares[0] += (load(x + c) - mean) * (load(x + c) - mean);
  if (c < p.c) {  // the mean is taken from the real lanes only
    float tail[kLanes] = {};
    store_n(tail, load_n(x + c, rest(p.c - c)) - mean, rest(p.c - c));
    squares[1] += load(tail) * load(tail);
  }
  const vf variance = lane_sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / channels;
  const vf inverse = splat(1.0f) / vsqrt(variance + splat(static_cast<float>(p.eps)));
  auto normalise = [&](auto io, int64_t i) __attribute__((always_inline)) {
    vf v = (io.load(x + i) - mean) * inverse;
    if (scale) v *= io.load(scale + i);
    if (shift) v += io.load(shift + i);
    io.store(y + i, v);
  };
  for (c = 0; c + kLanes <= p.c; c += kLanes) normalise(Full{}, c);
  if (c < p.c) normalise(Part{rest(p.c - c)}, c);
}

// scratch: the squares, with zeros before the first and behind the last channel.
void lrn(const NormProblem& p, const float* x, float* y, float* scratch) {
  float* squares = scratch + p.size / 2;
  int64_t c = 0;
  for (; c + kLanes <= p.c; c += kLanes) store(squares + c, load(x + c) * load(x + c));
  if (c < p.c) {
    const vf v = load_n(x + c, rest(p.c - c));
    store_n(squares + c, v * v, rest(p.c - c));
  }
  const vf k = splat(static_cast<float>(p.k)), factor = splat(static_cast<float>(p.alpha / static_cast<double>(p.size)));
  const vf power = splat(static_cast<float>(-p.beta));
  auto normalise = [&](auto io, int64_t i) __attribute__((always_inline)) {
    vf sum = io.load(scratch + i);
    for (int64_t j = 1; j < p.size; ++j) sum += io.load(scratch + i + j);
    io.store(y + i, io.load(x + i) * vpow(k + factor * sum, power));
  };
  for (c = 0; c + kLanes <= p.c; c += kLanes) normalise(Full{}, c);
  if (c < p.c) normalise(Part{rest(p.c - c)}, c);
}

void softmax(const NormProblem& p, const float* x, float* y) {
  const vf lowest = splat(-__builtin_inff());
  const bool log = p.kind == NormKind::kLogSoftmax;
  const int64_t whole = p.c - p.c % kLanes;
  const int tail = rest(p.c - whole);
  float last[kLanes];  // the channels that do not fill a vector, the free lanes -inf: exp is 0 there
  store(last, lowest);
  if (tail) store_n(last, load_n(x + whole, tail), tail);
  vf largest = load(last);
  for (int64_t c = 0; c < whole; c += kLanes) largest = vmax(load(x + c), largest);
  const vf max = lane_max(largest);
  vf sum = vexp(load(last) - max);
  if (tail && !log) store_n(y + whole, sum, tail);
  for (int64_t c = 0; c < whole; c += kLanes) {
    const vf e = vexp(load(x + c) - max);
    if (!log) store(y + c, e);
    sum += e;
  }
  const vf total = lane_sum(sum);
  const vf log_total = log ? vlog(total) : total;
  auto scale = [&](auto io, int64_t c) __attribute__((always_inline)) {
    io.store(y + c, log ? io.load(x + c) - max - log_total : io.load(y + c) / total);
  };
  for (int64_t c = 0; c < whole; c += kLanes) scale(Full{}, c);
  if (tail) scale(Part{tail}, whole);
}

const char* refuse(const NormProblem& p) {
  if (p.kind == NormKind::kLrn && !(p.k >= 0 && p.alpha >= 0)) return "the power of a possibly negative number";
  if (p.kind == NormKind::kLrn && p.size < 1) return "an empty window";
  return nullptr;
}
double cost(const NormProblem& p) {
  const double flop = p.kind == NormKind::kLrn ? 50 + double(p.size) : p.kind == NormKind::kScaleShift ? 2 : 30;
  return double(p.d * p.h * p.w * p.c) * (8 / 10e3 + flop / (4e3 * kLanes));
}
int64_t scratch_bytes(const NormProblem& p) {
  if (p.kind == NormKind::kLrn) return 4 * (p.c + p.size);
  return repeats(p) ? 4 * 2 * p.c * kLanes : 0;
}
Runs split(const NormProblem& p) { return Runs::of(p.d, p.h, p.w, 4 * p.c); }
int64_t tasks(const NormProblem& p, int64_t images) { return p.c ? images * split(p).per_image : 0; }

void run(const NormProblem& p, const NormArgs& a, int64_t, int64_t first, int64_t last, void* scratch) {
  const Runs runs = split(p);
  float* memory = static_cast<float*>(scratch);
  if (p.kind == NormKind::kScaleShift) return scale_shift(p, a, runs, first, last, memory);
  if (p.kind == NormKind::kLrn)
    for (int64_t i = 0; i < p.c + p.size; ++i) memory[i] = 0;
  runs.each(first, last, false, [&](int64_t n, int64_t d, int64_t h, int64_t w, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const float* x = at<float>(a.x, n, d, h, w + i);
      float* y = at<float>(a.y, n, d, h, w + i);
      if (p.kind == NormKind::kLayerNorm)
        layer_norm(p, x, static_cast<const float*>(a.scale), static_cast<const float*>(a.shift), y);
      else if (p.kind == NormKind::kLrn)
        lrn(p, x, y, memory);
      else
        softmax(p, x, y);
    }
  });
}

}  // namespace

extern const NormKernel norm_vector;
const NormKernel norm_vector = {"norm_vector", refuse, cost, scratch_bytes, tasks, run};

}  // namespace CK_ISA
}  // namespace ck
