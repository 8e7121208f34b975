// sum_vector.cpp: sums of a tensor or of a product over its pixels, its channels or the batch, float32.
//
// Computes  the formulas of sum_ref.cpp for what networks need
//             pixels    y[c] over d h w (and n): gradients of biases, scales, gates
//             all       one number, over d h w c (and n): losses
//             nothing   y = factor * a * b: a scaled copy
// Layout    a, b NDHWC, any C; shared: sums of each chunk for each channel
// Tiling    phase 0  task = chunk of about 64 KB (cpu/chunks.h); nothing: the result already
//           phase 1  chunks added in double, in order; task = an image (total: the batch) and 64 channels
// Cost      4*DHWC bytes (8 with b)
// Refuses   other dimensions kept
// Source    as sum_ref.cpp
#include "cpu/chunks.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int64_t kChannels = 64;

CK_INLINE Runs split(const SumProblem& p) { return chunks_of(p.d, p.h, p.w, p.c); }
CK_INLINE bool nothing(const SumProblem& p) { return !p.total && p.yd == p.d && p.yh == p.h && p.yw == p.w && p.yc == p.c; }

struct Sum {
  const float *a, *b;
  int64_t a_pixel, b_pixel, count;
  float* out;
  template <int kVectors, class IO>
  CK_INLINE_MEMBER void run(IO io, int64_t at) const {
    vf sum[kVectors] = {};
    const float *x = a + at, *y = b + at;
    if (b) {
      for (int64_t i = 0; i < count; ++i, x += a_pixel, y += b_pixel) CK_UNROLL for (int v = 0; v < kVectors; ++v) sum[v] += io.load(x + v * kLanes) * io.load(y + v * kLanes);
    } else {
      for (int64_t i = 0; i < count; ++i, x += a_pixel) CK_UNROLL for (int v = 0; v < kVectors; ++v) sum[v] += io.load(x + v * kLanes);
    }
    CK_UNROLL for (int v = 0; v < kVectors; ++v) io.store(out + at + v * kLanes, io.load(out + at + v * kLanes) + sum[v]);
  }
};

void run(const SumProblem& p, const SumArgs& args, int64_t images, int phase, int64_t first, int64_t last, void*, void* shared) {
  const Runs runs = split(p);
  float* parts = static_cast<float*>(shared);
  if (phase == 0 && nothing(p)) {
    const vf factor = splat(static_cast<float>(p.factor));
    runs.each(first, last, false, [&](int64_t n, int64_t d, int64_t h, int64_t w, int64_t count) {
      for (int64_t i = 0; i < count; ++i) {
        const float *a = at<const float>(args.a, n, d, h, w + i), *b = p.product ? at<const float>(args.b, n, d, h, w + i) : nullptr;
        float* y = at<float>(args.y, n, d, h, w + i);
        auto step = [&](auto io, int64_t c) __attribute__((always_inline)) {
          const vf v = io.load(a + c) * factor;
          io.store(y + c, b ? v * io.load(b + c) : v);
        };
        int64_t c = 0;
        for (; c + kLanes <= p.c; c += kLanes) step(Full{}, c);
        if (c < p.c) step(Part{static_cast<int>(p.c - c)}, c);
      }
    });
    return;
  }
  if (phase == 0) {
    const bool dense = dense_rows(args.a, p.d, p.h, p.w) && (!p.product || dense_rows(args.b, p.d, p.h, p.w));
    for (int64_t chunk = first; chunk < last; ++chunk) {
      float* out = parts + chunk * p.c;
      for (int64_t c = 0; c < p.c; ++c) out[c] = 0.f;
      runs.each(chunk, chunk + 1, dense, [&](int64_t n, int64_t d, int64_t h, int64_t w, int64_t count) {
        const float* b = p.product ? at<const float>(args.b, n, d, h, w) : nullptr;
        each_channel_block(p.c, Sum{at<const float>(args.a, n, d, h, w), b, args.a.pixel, args.b.pixel, count, out});
      });
    }
    return;
  }
  const int64_t blocks = p.yc == p.c ? (p.c + kChannels - 1) / kChannels : 1, chunks = (p.total ? images : 1) * runs.per_image;
  double terms = static_cast<double>((p.total ? images : 1) * p.d * p.h * p.w * (p.yc == p.c ? 1 : p.c));
  const double factor = p.mean ? p.factor / terms : p.factor;
  for (int64_t task = first; task < last; ++task) {
    const int64_t n = task / blocks, block = task % blocks;
    float* y = at<float>(args.y, n, 0, 0, 0);
    double sums[kChannels], all = 0;
    const int64_t end = p.yc == p.c ? (block + 1) * kChannels : p.c;
    for (int64_t from = block * kChannels; from < (end < p.c ? end : p.c); from += kChannels) {
      const int64_t to = from + kChannels < p.c ? from + kChannels : p.c;
      add_chunks(parts + n * runs.per_image * p.c, chunks, p.c, from, to, sums);
      for (int64_t c = from; c < to; ++c) {
        all += sums[c - from];
        if (p.yc == p.c) y[c] = static_cast<float>(sums[c - from] * factor);
      }
    }
    if (p.yc != p.c) *y = static_cast<float>(all * factor);
  }
}

const char* refuse(const SumProblem& p) {
  if (nothing(p)) return p.mean ? "a mean of one term" : nullptr;
  if (p.yd != 1 || p.yh != 1 || p.yw != 1 || (p.yc != p.c && p.yc != 1)) return "dimensions other than the channels kept";
  return nullptr;
}
double cost(const SumProblem& p) { return double(p.d * p.h * p.w * p.c) * (p.product ? 8 : 4) / 10e3; }
int64_t scratch_bytes(const SumProblem&) { return 0; }
int64_t shared_bytes(const SumProblem& p, int64_t images) { return nothing(p) ? 0 : images * split(p).per_image * p.c * 4; }
int64_t phases(const SumProblem&, int64_t) { return 2; }
int64_t tasks(const SumProblem& p, int64_t images, int phase) {
  if (p.c == 0) return 0;
  if (phase == 0) return images * split(p).per_image;
  if (nothing(p)) return 0;
  return (p.total ? 1 : images) * (p.yc == p.c ? (p.c + kChannels - 1) / kChannels : 1);
}

}  // namespace

extern const SumKernel sum_vector;
const SumKernel sum_vector = {"sum_vector", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run};

}  // namespace CK_ISA
}  // namespace ck
