// chain.h: the register tile of a long product that is computed chunk by chunk of channels: its sums go on from where the last chunk left them.
//
// Computes  sums[i][k] += sum_c x[i][c] * w[c][k]   for pixels i that lie evenly in memory and a panel of vecs * kLanes filters k
// Tiling    gemm.h's. The sums are loaded first and stored last: out of order, both overlap with the tiles before and after, so that 32 channels
//           run at 82 % of peak and 128 at 88 where even_tile(), which adds sums at its end, has 77 and 86 (12 x 2, Granite Rapids, November 2026)
#pragma once
#include "cpu/even_tile.h"
#include "cpu/gemm.h"

namespace ck {
namespace CK_ISA {
namespace {

struct Chain {
  const float* x;
  int64_t x_step;
  const float* w;  // [c][vecs * kLanes]
  int64_t c;
  float* sums;  // [pixels][vecs * kLanes]
  bool fresh;   // sums start at zero
  // Two lines are fetched into the second-level cache every kQuad channels.
  const float* fetch;
  int64_t fetch_step;
};

#if defined(__AVX512F__)

// Three pointers and two steps reach all pixels (even_tile.h).
template <int kPixels, int kVecs>
struct Pixels {
  const float* x[3];
  int64_t step, three;
  CK_INLINE_MEMBER Pixels(const float* first, int64_t x_step)
      : x{first, first + kRun * x_step, first + 2 * kRun * x_step}, step(x_step * static_cast<int64_t>(sizeof(float))), three(3 * step) {}
  template <int kChannels>
  CK_INLINE_MEMBER void multiply(const float* w, vf (&acc)[kPixels][kVecs]) {
    multiply_channel<0>(x, step, three, w, acc);
    if constexpr (kChannels == kQuad) {
      multiply_channel<1>(x, step, three, w, acc);
      multiply_channel<2>(x, step, three, w, acc);
      multiply_channel<3>(x, step, three, w, acc);
    }
    x[0] += kChannels, x[1] += kChannels, x[2] += kChannels;
  }
};

#else

template <int kPixels, int kVecs>
struct Pixels {
  const float* x[kPixels];
  CK_INLINE_MEMBER Pixels(const float* first, int64_t x_step) {
    CK_UNROLL
    for (int i = 0; i < kPixels; ++i) x[i] = first + i * x_step;
  }
  template <int kChannels>
  CK_INLINE_MEMBER void multiply(const float* w, vf (&acc)[kPixels][kVecs]) {
    if constexpr (kChannels == kQuad) {
      multiply_chunk<kPixels, kVecs, kQuad>(x, w, acc);
    } else {
      vf b[kVecs];
      CK_UNROLL
      for (int j = 0; j < kVecs; ++j) b[j] = load(w + j * kLanes);
      CK_UNROLL
      for (int i = 0; i < kPixels; ++i)
        CK_UNROLL
        for (int j = 0; j < kVecs; ++j) add_product(acc[i][j], x[i], b[j]);
    }
    CK_UNROLL
    for (int i = 0; i < kPixels; ++i) x[i] += kChannels;
  }
};

#endif

template <int kPixels, int kVecs>
CK_INLINE void start(vf (&acc)[kPixels][kVecs]) {
  CK_UNROLL
  for (int i = 0; i < kPixels; ++i)
    CK_UNROLL
    for (int j = 0; j < kVecs; ++j) acc[i][j] = splat(0.f);
}
template <int kPixels, int kVecs>
CK_INLINE void resume(vf (&acc)[kPixels][kVecs], const float* sums) {
  CK_UNROLL
  for (int i = 0; i < kPixels; ++i)
    CK_UNROLL
    for (int j = 0; j < kVecs; ++j) acc[i][j] = load(sums + (i * kVecs + j) * kLanes);
}

template <int kPixels, int kVecs>
void chain(const Chain& t) {
  constexpr int kStep = kVecs * kLanes;
  vf acc[kPixels][kVecs];
  if (t.fresh) start(acc);
  else resume(acc, t.sums);
  Pixels<kPixels, kVecs> pixels(t.x, t.x_step);
  const float *w = t.w, *fetch = t.fetch;
  int64_t c = t.c;
  for (; c >= kQuad; c -= kQuad, w += kQuad * kStep, fetch += t.fetch_step) {
    __builtin_prefetch(fetch, 0, 2);
    __builtin_prefetch(fetch + 16, 0, 2);
    pixels.template multiply<kQuad>(w, acc);
  }
  for (; c > 0; --c, w += kStep) pixels.template multiply<1>(w, acc);
  CK_UNROLL
  for (int i = 0; i < kPixels; ++i)
    CK_UNROLL
    for (int j = 0; j < kVecs; ++j) store(t.sums + i * kStep + j * kLanes, acc[i][j]);
}

using ChainFn = void (*)(const Chain&);

template <int kVecs, int... kPixels>
struct Chains {
  static constexpr ChainFn table[] = {nullptr, chain<kPixels, kVecs>...};
};

CK_INLINE ChainFn chain_fn(int vecs, int pixels) { return tile_of<Chains>(vecs, pixels); }

}  // namespace
}  // namespace CK_ISA
}  // namespace ck
