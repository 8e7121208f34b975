// loss_vector.cpp: softmax cross-entropy of each pixel and the gradient of its logits, float32.
//
// Computes  the formulas of loss_ref.cpp for sparse and dense labels; sums in float32: kLanes partial sums, then a tree
// Layout    x, dx, dense labels NDHWC; sparse labels, weights and loss NDHW1; any C
// Tiling    task = about 16 KB of pixels; registers = one vector of channels; dx holds exp(x - max) between its two passes
// Cost      8*DHWC bytes (dense labels 12); exp and division are some 30 flop a channel
// Refuses   the losses of regression, which are a few values an image
// Source    as loss_ref.cpp
// Why       segmentation: with 21 classes the reference took 7 % of the step of a U-Net (one thread, Granite Rapids, November 2026); for the
//           classifiers of the zoo the loss is below 0.3 % of a step either way
#include "core/kernel.h"
#include "cpu/runs.h"
#include "simd/math.h"
#include "simd/shuffle.h"

namespace ck {
namespace CK_ISA {
namespace {

// The loss of one pixel; dx = (softmax(x) * sum t - t) * factor. A sparse label that is no class (checked before) has t = smoothing / C.
template <bool kDense>
CK_INLINE float cross_entropy(const LossProblem& p, const float* x, const float* label, float factor, float* dx) {
  const float keep = static_cast<float>(1 - p.smoothing), uniform = static_cast<float>(p.smoothing / static_cast<double>(p.c));
  const vf none = splat(-__builtin_inff()), zero = splat(0.f);
  const int64_t whole = p.c - p.c % kLanes;
  const int tail = static_cast<int>(p.c - whole);
  vi used{};  // the lanes of the tail that are channels; the others are read as 0
  for (int i = 0; i < tail; ++i) used[i] = -1;
  auto each = [&](auto step) __attribute__((always_inline)) {
    for (int64_t c = 0; c < whole; c += kLanes) step(Full{}, c, splat_int(-1));
    if (tail) step(Part{tail}, whole, used);
  };

  vf largest = none;
  each([&](auto io, int64_t c, vi channels)
           __attribute__((always_inline)) { largest = vmax(select(channels, io.load(x + c), none), largest); });
  const vf max = lane_max(largest);
  vf sum = zero, spread = zero, targets = zero;  // of exp(x - max), of x - max, of dense targets
  each([&](auto io, int64_t c, vi channels) __attribute__((always_inline)) {
    const vf v = io.load(x + c) - max, e = select(channels, vexp(v), zero);
    io.store(dx + c, e);
    sum += e;
    if (!kDense && uniform != 0) spread += select(channels, v, zero);
    if (kDense) targets += select(channels, io.load(label + c) * splat(keep) + splat(uniform), zero);
  });
  const vf total = lane_sum(sum), log_total = vlog(total);

  if (kDense) {
    const vf share = lane_sum(targets) / total;
    vf loss = zero;
    each([&](auto io, int64_t c, vi channels) __attribute__((always_inline)) {
      const vf t = select(channels, io.load(label + c) * splat(keep) + splat(uniform), zero);
      loss += select(t == zero, zero, t * (log_total - (io.load(x + c) - max)));  // 0 * inf is 0 here
      io.store(dx + c, (io.load(dx + c) * share - t) * splat(factor));
    });
    return lane_sum(loss)[0];
  }
  const int64_t hot = *label >= 0 && *label < static_cast<float>(p.c) ? static_cast<int64_t>(*label) : -1;
  const bool is_class = hot >= 0 && static_cast<float>(hot) == *label;
  const float one = is_class ? keep : 0.f, all = one + static_cast<float>(p.smoothing);
  const vf share = splat(all * factor) / total;
  each([&](auto io, int64_t c, vi) __attribute__((always_inline)) { io.store(dx + c, io.load(dx + c) * share - splat(uniform * factor)); });
  float loss = all * log_total[0] - uniform * lane_sum(spread)[0];
  if (is_class) {
    dx[hot] -= one * factor;
    loss -= one * (x[hot] - max[0]);
  }
  return loss;
}

CK_INLINE Runs split(const LossProblem& p) { return Runs::of(p.d, p.h, p.w, 4 * p.c); }

void run(const LossProblem& p, const LossArgs& args, int64_t images, int, int64_t first, int64_t last, void*, void*) {
  const double pixels = static_cast<double>(images * p.d * p.h * p.w);
  const float scale = static_cast<float>(p.mean ? p.scale / pixels : p.scale);
  split(p).each(first, last, false, [&](int64_t n, int64_t d, int64_t h, int64_t w, int64_t count) {
    for (int64_t i = w; i < w + count; ++i) {
      const float *x = at<const float>(args.x, n, d, h, i), *label = at<const float>(args.label, n, d, h, i);
      float* dx = at<float>(args.dx, n, d, h, i);
      const float weight = p.weighted ? *at<const float>(args.weight, n, d, h, i) : 1.f;
      float loss = 0;
      if (p.kind == LossKind::kDense) loss = cross_entropy<true>(p, x, label, weight * scale, dx);
      else if (*label < 0)
        for (int64_t c = 0; c < p.c; ++c) dx[c] = 0;
      else loss = cross_entropy<false>(p, x, label, weight * scale, dx);
      *at<float>(args.loss, n, d, h, i) = loss * weight;
    }
  });
}

const char* refuse(const LossProblem& p) {
  return p.kind == LossKind::kSparse || p.kind == LossKind::kDense ? nullptr : "a loss of regression";
}
double cost(const LossProblem& p) { return double(p.d * p.h * p.w * p.c) * (8 / 10e3 + 40 / (4e3 * kLanes)); }
int64_t scratch_bytes(const LossProblem&) { return 0; }
int64_t shared_bytes(const LossProblem&, int64_t) { return 0; }
int64_t phases(const LossProblem&, int64_t) { return 1; }
int64_t tasks(const LossProblem& p, int64_t images, int) { return p.c ? images * split(p).per_image : 0; }

}  // namespace

extern const LossKernel loss_vector;
const LossKernel loss_vector = {"loss_vector", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run};

}  // namespace CK_ISA
}  // namespace ck
