// chunks.h: sums over pixels that do not depend on the number of threads: an image is cut into chunks of about 64 KB, each makes its own sums
// per channel, and these are added in order. For batch norm and the gradients of vectors.
#pragma once
#include "cpu/runs.h"
#include "simd/vec.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int kBlock = 4;  // vectors of channels whose sums stay in registers

CK_INLINE Runs chunks_of(int64_t d, int64_t h, int64_t w, int64_t c) {
  int64_t pixels = c > 0 ? 16384 / c : 1;
  if (pixels < 16) pixels = 16;
  return {d, h, w, pixels, (d * h * w + pixels - 1) / pixels};
}

CK_INLINE int64_t chunk_pixels(const Runs& r, int64_t chunk) {
  const int64_t at = chunk % r.per_image * r.chunk, all = r.d * r.h * r.w;
  return all - at < r.chunk ? all - at : r.chunk;
}

// f(io, c, vectors) for the channels in blocks of kBlock vectors, single vectors, and the rest.
template <class F>
CK_INLINE void each_channel_block(int64_t c, const F& f) {
  int64_t i = 0;
  for (; i + kBlock * kLanes <= c; i += kBlock * kLanes) f.template run<kBlock>(Full{}, i);
  for (; i + kLanes <= c; i += kLanes) f.template run<1>(Full{}, i);
  if (i < c) f.template run<1>(Part{static_cast<int>(c - i)}, i);
}

// total[i] = sum over the chunks of parts[chunk * stride + i], in double, for i in [first, last), at most 64 of them.
CK_INLINE void add_chunks(const float* parts, int64_t chunks, int64_t stride, int64_t first, int64_t last, double* total) {
  double sums[64] = {};
  for (int64_t k = 0; k < chunks; ++k) {
    const float* part = parts + k * stride + first;
    for (int64_t i = 0; i < last - first; ++i) sums[i] += static_cast<double>(part[i]);
  }
  for (int64_t i = 0; i < last - first; ++i) total[i] = sums[i];
}

}  // namespace
}  // namespace CK_ISA
}  // namespace ck
