// norm_back_vector.cpp: gradients of operators over the channels of each pixel, float32.
//
// Computes  the formulas of norm_back_ref.cpp, sums in float32 by lane, then a tree
// Layout    NDHWC, any C; shared (layer norm): of each chunk the sums for dscale and dshift
// Tiling    phase 0  task = chunk of about 64 KB (cpu/chunks.h), pixel by pixel
//           phase 1  layer norm: task = 64 channels, chunks added in double, in order
// Cost      12*DHWC bytes; lrn: a power a channel
// Refuses   scale and shift; LRN that may take a power of a negative number
// Source    as norm_back_ref.cpp
#include "cpu/chunks.h"
#include "simd/math.h"
#include "simd/shuffle.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int64_t kChannels = 64;

CK_INLINE Runs split(const NormProblem& p) { return chunks_of(p.d, p.h, p.w, p.c); }

template <class F>
CK_INLINE void each_vector(int64_t c, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= c; i += kLanes) f(Full{}, i);
  if (i < c) f(Part{static_cast<int>(c - i)}, i);
}

// Lanes behind the last channel do not count.
CK_INLINE vf only(vf v, Full) { return v; }
CK_INLINE vf only(vf v, Part io) {
  float lanes[kLanes] = {};
  store_n(lanes, v, io.n);
  return load(lanes);
}

void layer_norm(const NormProblem& p, const float* dy, const float* x, const float* scale, float* dx, float* dscale, float* dshift) {
  const vf channels = splat(static_cast<float>(p.c));
  vf sum = splat(0.f), squares = splat(0.f);
  each_vector(p.c, [&](auto io, int64_t c) __attribute__((always_inline)) { sum += io.load(x + c); });
  const vf mean = lane_sum(sum) / channels;
  each_vector(p.c, [&](auto io, int64_t c) __attribute__((always_inline)) {
    const vf centred = only(io.load(x + c) - mean, io);
    squares += centred * centred;
  });
  const vf inverse = splat(1.0f) / vsqrt(lane_sum(squares) / channels + splat(static_cast<float>(p.eps)));
  vf total = splat(0.f), product = splat(0.f);
  each_vector(p.c, [&](auto io, int64_t c) __attribute__((always_inline)) {
    const vf g0 = io.load(dy + c), g = scale ? g0 * io.load(scale + c) : g0, hat = (io.load(x + c) - mean) * inverse;
    total += g;
    product += g * hat;
    io.store(dscale + c, io.load(dscale + c) + g0 * hat);
    io.store(dshift + c, io.load(dshift + c) + g0);
  });
  const vf mean_g = lane_sum(total) / channels, mean_p = lane_sum(product) / channels;
  each_vector(p.c, [&](auto io, int64_t c) __attribute__((always_inline)) {
    const vf g0 = io.load(dy + c), g = scale ? g0 * io.load(scale + c) : g0, hat = (io.load(x + c) - mean) * inverse;
    io.store(dx + c, (g - mean_g - hat * mean_p) * inverse);
  });
}

// scratch: squares, then dy x b^(-beta-1), each with zeros around.
void lrn(const NormProblem& p, const float* dy, const float* x, float* dx, float* scratch) {
  const int64_t before = p.size / 2, after = (p.size - 1) / 2, row = p.c + p.size;
  float *squares = scratch + before, *pulls = scratch + row + after, *own = scratch + 2 * row;
  const vf k = splat(static_cast<float>(p.k)), factor = splat(static_cast<float>(p.alpha / static_cast<double>(p.size)));
  const vf power = splat(static_cast<float>(-p.beta)),
           slope = splat(static_cast<float>(-2 * p.alpha * p.beta / static_cast<double>(p.size)));
  each_vector(p.c, [&](auto io, int64_t c) __attribute__((always_inline)) { io.store(squares + c, io.load(x + c) * io.load(x + c)); });
  each_vector(p.c, [&](auto io, int64_t c) __attribute__((always_inline)) {
    vf sum = io.load(scratch + c);
    for (int64_t j = 1; j < p.size; ++j) sum += io.load(scratch + c + j);
    const vf base = k + factor * sum, g = io.load(dy + c) * vpow(base, power);
    io.store(own + c, g);
    io.store(pulls + c, g * io.load(x + c) / base);
  });
  each_vector(p.c, [&](auto io, int64_t c) __attribute__((always_inline)) {
    vf sum = io.load(scratch + row + c);
    for (int64_t j = 1; j < p.size; ++j) sum += io.load(scratch + row + c + j);
    io.store(dx + c, io.load(own + c) + slope * io.load(x + c) * sum);
  });
}

void softmax(const NormProblem& p, const float* dy, const float* y, float* dx) {
  const bool log = p.kind == NormKind::kLogSoftmax;
  vf sum = splat(0.f);
  each_vector(p.c,
              [&](auto io, int64_t c) __attribute__((always_inline)) { sum += log ? io.load(dy + c) : io.load(dy + c) * io.load(y + c); });
  const vf total = lane_sum(sum);
  each_vector(p.c, [&](auto io, int64_t c) __attribute__((always_inline)) {
    const vf g = io.load(dy + c), v = io.load(y + c);
    io.store(dx + c, log ? g - vexp(v) * total : v * (g - total));
  });
}

void run(const NormProblem& p, const NormBackArgs& a, int64_t images, int phase, int64_t first, int64_t last, void* scratch, void* shared) {
  const Runs runs = split(p);
  float *parts = static_cast<float*>(shared), *memory = static_cast<float*>(scratch);
  if (phase == 1) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t from = task * kChannels, to = from + kChannels < p.c ? from + kChannels : p.c;
      for (int which = 0; which < 2; ++which) {
        float* out = static_cast<float*>(which ? a.dshift : a.dscale);
        double sums[kChannels];
        add_chunks(parts + which * p.c, images * runs.per_image, 2 * p.c, from, to, sums);
        if (out)
          for (int64_t c = from; c < to; ++c) out[c] = static_cast<float>(sums[c - from]);
      }
    }
    return;
  }
  if (p.kind == NormKind::kLrn)
    for (int64_t i = 0; i < 2 * (p.c + p.size); ++i) memory[i] = 0.f;
  for (int64_t chunk = first; chunk < last; ++chunk) {
    float *dscale = parts + chunk * 2 * p.c, *dshift = dscale + p.c;
    if (p.kind == NormKind::kLayerNorm)
      for (int64_t c = 0; c < 2 * p.c; ++c) dscale[c] = 0.f;
    runs.each(chunk, chunk + 1, false, [&](int64_t n, int64_t d, int64_t h, int64_t w, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        const float *dy = at<const float>(a.dy, n, d, h, w + i), *saved = at<const float>(a.saved, n, d, h, w + i);
        float* dx = at<float>(a.dx, n, d, h, w + i);
        if (p.kind == NormKind::kLayerNorm) layer_norm(p, dy, saved, static_cast<const float*>(a.scale), dx, dscale, dshift);
        else if (p.kind == NormKind::kLrn) lrn(p, dy, saved, dx, memory);
        else softmax(p, dy, saved, dx);
      }
    });
  }
}

const char* refuse(const NormProblem& p) {
  if (p.kind == NormKind::kScaleShift) return "scale and shift: a product and two sums";
  if (p.kind == NormKind::kLrn && !(p.k > 0 && p.alpha >= 0)) return "the power of a possibly negative number";
  if (p.kind == NormKind::kLrn && p.size < 1) return "an empty window";
  return nullptr;
}
double cost(const NormProblem& p) {
  const double flop = p.kind == NormKind::kLrn ? 60 + 2 * double(p.size) : 40;
  return double(p.d * p.h * p.w * p.c) * (12 / 10e3 + flop / (4e3 * kLanes));
}
int64_t scratch_bytes(const NormProblem& p) { return p.kind == NormKind::kLrn ? 4 * (3 * p.c + 2 * p.size) : 0; }
int64_t shared_bytes(const NormProblem& p, int64_t images) {
  return p.kind == NormKind::kLayerNorm ? images * split(p).per_image * 2 * p.c * 4 : 0;
}
int64_t phases(const NormProblem&, int64_t) { return 2; }
int64_t tasks(const NormProblem& p, int64_t images, int phase) {
  if (p.c == 0) return 0;
  if (phase == 0) return images * split(p).per_image;
  return p.kind == NormKind::kLayerNorm ? (p.c + kChannels - 1) / kChannels : 0;
}

}  // namespace

extern const NormBackKernel norm_back_vector;
const NormBackKernel norm_back_vector = {"norm_back_vector", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run};

}  // namespace CK_ISA
}  // namespace ck
