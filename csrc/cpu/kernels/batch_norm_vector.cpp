// batch_norm_vector.cpp: batch norm with the statistics of the batch, and its gradient, float32.
//
// Computes  the formulas of batch_norm_ref.cpp
// Layout    x, dy, y NDHWC, any C; shared: per chunk two sums for each channel, behind them up to four coefficients for each channel
// Tiling    phase 0  task = chunk of about 64 KB (cpu/chunks.h): forward its mean, then the squares around that mean, read from the cache;
//                    backward sum g and sum g * (x - mean)
//           phase 1  task = 64 channels: chunks are combined in double, in order (Chan et al.); coefficients of the last phase
//           phase 2  task = chunk: y = clamp(x * scale + shift + residual); dx = scale * g + a * (x - mean) + b
// Cost      forward 3, backward 5 passes over memory (12 and 20 bytes an element)
// Refuses   activations other than clamps
// Source    Ioffe and Szegedy 2015, arXiv:1502.03167; Chan, Golub, LeVeque 1979 (combining variances)
#include "cpu/chunks.h"
#include "simd/math.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int64_t kChannels = 64;  // of a task of phase 1

CK_INLINE Runs split(const BatchNormProblem& p) { return chunks_of(p.d, p.h, p.w, p.c); }
CK_INLINE bool dense(const BatchNormProblem& p, const View& v) { return dense_rows(v, p.d, p.h, p.w); }

// Where y = clamp(x * scale + shift) has no slope, dy is zero.
struct Mask {
  bool on;
  vf lo, hi;
  CK_INLINE_MEMBER vf apply(vf dy, vf x, vf scale, vf shift) const {
    if (!on) return dy;
    const vf v = x * scale + shift;
    return select((v <= lo) | (v >= hi), splat(0.f), dy);
  }
};
CK_INLINE Mask mask_of(const Activation& act) {
  const bool top = act.b < __builtin_inf();
  return {act.kind == Act::kClamp, splat(static_cast<float>(act.a)), splat(top ? static_cast<float>(act.b) : __builtin_nanf(""))};
}

// Sums over a run of pixels for one block of channels; out[0] and out[p.c] are added to.
struct Sum {
  const float* x;
  int64_t pixel, count, c;
  float* out;
  template <int kVectors, class IO>
  CK_INLINE_MEMBER void run(IO io, int64_t at) const {
    vf sum[kVectors] = {};
    const float* from = x + at;
    for (int64_t i = 0; i < count; ++i, from += pixel) CK_UNROLL for (int v = 0; v < kVectors; ++v) sum[v] += io.load(from + v * kLanes);
    CK_UNROLL for (int v = 0; v < kVectors; ++v) io.store(out + at + v * kLanes, io.load(out + at + v * kLanes) + sum[v]);
  }
};
struct Squares {
  const float* x;
  int64_t pixel, count, c;
  const float* mean;
  float* out;
  template <int kVectors, class IO>
  CK_INLINE_MEMBER void run(IO io, int64_t at) const {
    vf sum[kVectors] = {}, m[kVectors];
    CK_UNROLL for (int v = 0; v < kVectors; ++v) m[v] = io.load(mean + at + v * kLanes);
    const float* from = x + at;
    for (int64_t i = 0; i < count; ++i, from += pixel)
      CK_UNROLL for (int v = 0; v < kVectors; ++v) {
        const vf centred = io.load(from + v * kLanes) - m[v];
        sum[v] += centred * centred;
      }
    CK_UNROLL for (int v = 0; v < kVectors; ++v) io.store(out + at + v * kLanes, io.load(out + at + v * kLanes) + sum[v]);
  }
};
struct Products {
  const float *x, *dy;
  int64_t x_pixel, dy_pixel, count, c;
  const float *mean, *scale, *shift;
  Mask mask;
  float *sums, *products;
  template <int kVectors, class IO>
  CK_INLINE_MEMBER void run(IO io, int64_t at) const {
    vf sum[kVectors] = {}, product[kVectors] = {}, m[kVectors], s[kVectors], b[kVectors];
    CK_UNROLL for (int v = 0; v < kVectors; ++v) {
      m[v] = io.load(mean + at + v * kLanes);
      s[v] = mask.on ? io.load(scale + at + v * kLanes) : splat(0.f);
      b[v] = mask.on ? io.load(shift + at + v * kLanes) : splat(0.f);
    }
    const float *from = x + at, *grad = dy + at;
    for (int64_t i = 0; i < count; ++i, from += x_pixel, grad += dy_pixel)
      CK_UNROLL for (int v = 0; v < kVectors; ++v) {
        const vf value = io.load(from + v * kLanes), g = mask.apply(io.load(grad + v * kLanes), value, s[v], b[v]);
        sum[v] += g;
        product[v] += g * (value - m[v]);
      }
    CK_UNROLL for (int v = 0; v < kVectors; ++v) {
      io.store(sums + at + v * kLanes, io.load(sums + at + v * kLanes) + sum[v]);
      io.store(products + at + v * kLanes, io.load(products + at + v * kLanes) + product[v]);
    }
  }
};

// The coefficients behind the chunks' sums: scale, shift; backward also a and b.
CK_INLINE float* coefficients(const BatchNormProblem& p, int64_t images, float* shared) {
  return shared + (images * split(p).per_image + (p.backward ? 1 : 0)) * 2 * p.c;
}
// Backward needs scale and shift (of the forward pass) in phase 0 already: each chunk makes its own in its scratch.
CK_INLINE void forward_coefficients(const BatchNormProblem& p, const BatchNormArgs& a, const float* mean, const float* var, int64_t first,
                                    int64_t last, float* scale, float* shift) {
  const float *gamma = static_cast<const float*>(a.gamma), *beta = static_cast<const float*>(a.beta);
  for (int64_t c = first; c < last; ++c) {
    const double s = (gamma ? static_cast<double>(gamma[c]) : 1.0) / __builtin_sqrt(static_cast<double>(var[c]) + p.eps);
    scale[c] = static_cast<float>(s);
    shift[c] = static_cast<float>((beta ? static_cast<double>(beta[c]) : 0.0) - static_cast<double>(mean[c]) * s);
  }
}

void statistics(const BatchNormProblem& p, const BatchNormArgs& a, int64_t first, int64_t last, float* shared, float* scratch) {
  const Runs runs = split(p);
  const Mask mask = mask_of(p.act);
  const bool flat = dense(p, a.x) && (!p.backward || dense(p, a.dy));
  const float *mean = static_cast<const float*>(a.mean), *var = static_cast<const float*>(a.var);
  if (p.backward) forward_coefficients(p, a, mean, var, 0, p.c, scratch, scratch + p.c);
  for (int64_t chunk = first; chunk < last; ++chunk) {
    float *sums = shared + chunk * 2 * p.c, *squares = sums + p.c;
    for (int64_t c = 0; c < 2 * p.c; ++c) sums[c] = 0.f;
    if (p.backward) {
      runs.each(chunk, chunk + 1, flat, [&](int64_t n, int64_t d, int64_t h, int64_t w, int64_t count) {
        each_channel_block(p.c, Products{at<const float>(a.x, n, d, h, w), at<const float>(a.dy, n, d, h, w), a.x.pixel, a.dy.pixel, count, p.c,
                                         mean, scratch, scratch + p.c, mask, sums, squares});
      });
      continue;
    }
    runs.each(chunk, chunk + 1, flat, [&](int64_t n, int64_t d, int64_t h, int64_t w, int64_t count) {
      each_channel_block(p.c, Sum{at<const float>(a.x, n, d, h, w), a.x.pixel, count, p.c, sums});
    });
    const float inverse = 1.0f / static_cast<float>(chunk_pixels(runs, chunk));
    for (int64_t c = 0; c < p.c; ++c) sums[c] *= inverse;
    runs.each(chunk, chunk + 1, flat, [&](int64_t n, int64_t d, int64_t h, int64_t w, int64_t count) {
      each_channel_block(p.c, Squares{at<const float>(a.x, n, d, h, w), a.x.pixel, count, p.c, sums, squares});
    });
  }
}

void combine(const BatchNormProblem& p, const BatchNormArgs& a, int64_t images, int64_t first, int64_t last, float* shared) {
  const Runs runs = split(p);
  const int64_t chunks = images * runs.per_image;
  const double count = static_cast<double>(images * p.d * p.h * p.w);
  float *scale = coefficients(p, images, shared), *shift = scale + p.c, *slope = shift + p.c, *offset = slope + p.c;
  float *mean = static_cast<float*>(a.mean), *var = static_cast<float*>(a.var);
  for (int64_t task = first; task < last; ++task) {
    const int64_t from = task * kChannels, to = from + kChannels < p.c ? from + kChannels : p.c;
    double sum[kChannels], square[kChannels];
    if (p.backward) {
      add_chunks(shared, chunks, 2 * p.c, from, to, sum);
      add_chunks(shared + p.c, chunks, 2 * p.c, from, to, square);
      forward_coefficients(p, a, mean, var, from, to, scale, shift);
      for (int64_t c = from; c < to; ++c) {
        const double inverse = 1 / __builtin_sqrt(static_cast<double>(var[c]) + p.eps), dgamma = square[c - from] * inverse;
        static_cast<float*>(a.dgamma)[c] = static_cast<float>(dgamma);
        static_cast<float*>(a.dbeta)[c] = static_cast<float>(sum[c - from]);
        slope[c] = static_cast<float>(-static_cast<double>(scale[c]) * inverse * dgamma / count);
        offset[c] = static_cast<float>(-static_cast<double>(scale[c]) * sum[c - from] / count);
      }
      continue;
    }
    for (int64_t i = 0; i < to - from; ++i) sum[i] = square[i] = 0;
    for (int64_t k = 0; k < chunks; ++k) {
      const double pixels = static_cast<double>(chunk_pixels(runs, k));
      const float* part = shared + k * 2 * p.c + from;
      for (int64_t i = 0; i < to - from; ++i) sum[i] += pixels * static_cast<double>(part[i]);
    }
    for (int64_t i = 0; i < to - from; ++i) sum[i] /= count;
    for (int64_t k = 0; k < chunks; ++k) {
      const double pixels = static_cast<double>(chunk_pixels(runs, k));
      const float* part = shared + k * 2 * p.c + from;
      for (int64_t i = 0; i < to - from; ++i) {
        const double off = static_cast<double>(part[i]) - sum[i];
        square[i] += static_cast<double>(part[p.c + i]) + pixels * off * off;
      }
    }
    for (int64_t c = from; c < to; ++c) mean[c] = static_cast<float>(sum[c - from]), var[c] = static_cast<float>(square[c - from] / count);
    forward_coefficients(p, a, mean, var, from, to, scale, shift);
  }
}

void apply(const BatchNormProblem& p, const BatchNormArgs& a, int64_t images, int64_t first, int64_t last, float* shared) {
  const float *scale = coefficients(p, images, shared), *shift = scale + p.c, *slope = shift + p.c, *offset = slope + p.c;
  const float* mean = static_cast<const float*>(a.mean);
  const Mask mask = mask_of(p.act);
  const bool clamps = p.act.kind == Act::kClamp;
  const vf lo = splat(clamps ? static_cast<float>(p.act.a) : -__builtin_inff()), hi = splat(clamps ? static_cast<float>(p.act.b) : __builtin_inff());
  const bool flat = dense(p, a.x) && dense(p, a.y) && (!p.backward || dense(p, a.dy)) && (!p.residual || dense(p, a.residual));
  split(p).each(first, last, flat, [&](int64_t n, int64_t d, int64_t h, int64_t w, int64_t count) {
    const float* x = at<const float>(a.x, n, d, h, w);
    const float* other = p.backward ? at<const float>(a.dy, n, d, h, w) : p.residual ? at<const float>(a.residual, n, d, h, w) : nullptr;
    const int64_t other_pixel = p.backward ? a.dy.pixel : a.residual.pixel;
    float* y = at<float>(a.y, n, d, h, w);
    for (int64_t i = 0; i < count; ++i, x += a.x.pixel, other += other_pixel, y += a.y.pixel) {
      auto forward = [&](auto io, int64_t c) __attribute__((always_inline)) {
        vf v = io.load(x + c) * io.load(scale + c) + io.load(shift + c);
        if (p.residual) v += io.load(other + c);
        io.store(y + c, clamp(v, lo, hi));
      };
      auto backward = [&](auto io, int64_t c) __attribute__((always_inline)) {
        const vf v = io.load(x + c), s = io.load(scale + c);
        const vf g = mask.apply(io.load(other + c), v, s, mask.on ? io.load(shift + c) : s);
        io.store(y + c, s * g + (io.load(slope + c) * (v - io.load(mean + c)) + io.load(offset + c)));
      };
      int64_t c = 0;
      if (p.backward) {
        for (; c + kLanes <= p.c; c += kLanes) backward(Full{}, c);
        if (c < p.c) backward(Part{static_cast<int>(p.c - c)}, c);
      } else {
        for (; c + kLanes <= p.c; c += kLanes) forward(Full{}, c);
        if (c < p.c) forward(Part{static_cast<int>(p.c - c)}, c);
      }
    }
  });
}

void run(const BatchNormProblem& p, const BatchNormArgs& a, int64_t images, int phase, int64_t first, int64_t last, void* scratch, void* shared) {
  float* memory = static_cast<float*>(shared);
  if (phase == 0) statistics(p, a, first, last, memory, static_cast<float*>(scratch));
  else if (phase == 1) combine(p, a, images, first, last, memory);
  else apply(p, a, images, first, last, memory);
}

const char* refuse(const BatchNormProblem& p) {
  return p.act.kind == Act::kNone || p.act.kind == Act::kClamp ? nullptr : "activations other than clamps";
}
double cost(const BatchNormProblem& p) { return double(p.d * p.h * p.w * p.c) * (p.backward ? 20 : 12) / 10e3; }
int64_t scratch_bytes(const BatchNormProblem& p) { return 2 * p.c * 4; }
int64_t shared_bytes(const BatchNormProblem& p, int64_t images) { return (images * split(p).per_image + 3) * 2 * p.c * 4; }
int64_t phases(const BatchNormProblem&, int64_t) { return 3; }
int64_t tasks(const BatchNormProblem& p, int64_t images, int phase) {
  if (p.c == 0) return 0;
  return phase == 1 ? (p.c + kChannels - 1) / kChannels : images * split(p).per_image;
}

}  // namespace

extern const BatchNormKernel batch_norm_vector;
const BatchNormKernel batch_norm_vector = {"batch_norm_vector", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run};

}  // namespace CK_ISA
}  // namespace ck
