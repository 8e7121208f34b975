// even_tile.h: gemm.h's register tile for pixels that lie evenly in memory, as all of a 1x1 convolution with stride 1 do; AVX-512.
//
// Computes  what tile() does, for one tap: x[i] = x[0] + i * x_step. The same chain of FMAs for each output, so the same bits
// Tiling    fourteen pointers do not fit the general registers: tile() reloads and moves them every few channels, which costs a tile of 14 x 2 some 70
//           cycles however few its channels are. Three pointers, five pixels apart, and one and three steps reach them all:
//
//             x0, x0 + s, x0 + 2s, x0 + 3s, x0 + 4s | x1, x1 + s, ... | x2, ... x2 + 3s
//
//           The compiler would add them up to fourteen pointers again, so the loads are written as instructions. Cycles a tile (Granite Rapids,
//           November 2026, FMAs alone in brackets): 16 channels 456 -> 384 (224), 24: 589 -> 514 (336), 64: 1225 -> 1150 (896), 256: 4253 -> 4156 (3584)
// Tried     eight channels a turn of the loop, no fetching, 9 x 3: all within 2 % (85 to 87 % of peak at 256 channels)
#pragma once
#include "cpu/gemm.h"

namespace ck {
namespace CK_ISA {
namespace {

#if defined(__AVX512F__)

constexpr int kRun = 5;  // pixels reached from one pointer

// Volatile: loads in the order in which they are used, or their values would need registers that the sums have.
template <int kScale, int kOffset>
CK_INLINE vf splat_at(const float* x, int64_t bytes) {
  vf v;
  if constexpr (kScale == 0) asm volatile("vbroadcastss %c2(%1), %0" : "=v"(v) : "r"(x), "i"(kOffset * 4), "m"(*x));
  else asm volatile("vbroadcastss %c3(%1,%2,%c4), %0" : "=v"(v) : "r"(x), "r"(bytes), "i"(kOffset * 4), "i"(kScale), "m"(*x));
  return v;
}

// Channel c + kOffset of all pixels from kFirst on.
template <int kFirst, int kOffset, int kPixels, int kVecs>
CK_INLINE void multiply_pixels(const float* const (&x)[3], int64_t step, int64_t three, const vf (&b)[kVecs], vf (&acc)[kPixels][kVecs]) {
  if constexpr (kFirst < kPixels) {
    constexpr int kSteps = kFirst % kRun;
    const vf a = splat_at<kSteps == 3 ? 1 : kSteps, kOffset>(x[kFirst / kRun], kSteps == 3 ? three : step);
  CK_UNROLL
    for (int j = 0; j < kVecs; ++j) add_product(acc[kFirst][j], a, b[j]);
    multiply_pixels<kFirst + 1, kOffset>(x, step, three, b, acc);
  }
}

template <int kOffset, int kPixels, int kVecs>
CK_INLINE void multiply_channel(const float* const (&x)[3], int64_t step, int64_t three, const float* w, vf (&acc)[kPixels][kVecs]) {
  vf b[kVecs];
  CK_UNROLL
  for (int j = 0; j < kVecs; ++j) b[j] = load(w + (kOffset * kVecs + j) * kLanes);
  multiply_pixels<0, kOffset>(x, step, three, b, acc);
}

template <int kPixels, int kVecs>
void even_tile(const Tile& t) {
  vf acc[kPixels][kVecs];
  CK_UNROLL
  for (int i = 0; i < kPixels; ++i)
    CK_UNROLL
    for (int j = 0; j < kVecs; ++j) acc[i][j] = splat(0.f);
  constexpr int kStep = kVecs * kLanes, kFetched = kFetch * kQuad / kChunk;
  if (t.ahead) fetch_outputs<kPixels, kVecs>(t);
  const float* first = t.x[0] + t.x_channel;
  const float* x[3] = {first, first + kRun * t.x_step, first + 2 * kRun * t.x_step};
  const int64_t step = t.x_step * static_cast<int64_t>(sizeof(float)), three = 3 * step;
  const float* w = t.w + t.tap[0] * t.c * kStep;
  const float* fetch = t.fetch ? t.fetch : first + t.ahead;
  const int64_t fetch_step = t.fetch_step * kQuad / kChunk;
  int64_t c = t.c;
  for (; c >= kQuad; c -= kQuad, w += kQuad * kStep, fetch += fetch_step) {
    CK_UNROLL
    for (int i = 0; i < kFetched; i += 16) __builtin_prefetch(fetch + i, 0, 2);
    if (t.fetch_all) {
      CK_UNROLL
      for (int i = kFetched; i < kQuad * kStep; i += 16) __builtin_prefetch(fetch + i, 0, 2);
    }
    multiply_channel<0>(x, step, three, w, acc);
    multiply_channel<1>(x, step, three, w, acc);
    multiply_channel<2>(x, step, three, w, acc);
    multiply_channel<3>(x, step, three, w, acc);
    x[0] += kQuad, x[1] += kQuad, x[2] += kQuad;
  }
  for (; c > 0; --c, w += kStep) {
    multiply_channel<0>(x, step, three, w, acc);
    ++x[0], ++x[1], ++x[2];
  }
  finish(t, acc);
}

template <int kVecs, int... kPixels>
struct EvenTiles {
  static constexpr TileFn table[] = {nullptr, even_tile<kPixels, kVecs>...};
};

CK_INLINE TileFn even_tile_fn(int vecs, int pixels) { return tile_of<EvenTiles>(vecs, pixels); }
constexpr bool kEvenTiles = true;

#else

constexpr bool kEvenTiles = false;  // fewer pixels a tile: their pointers fit
CK_INLINE TileFn even_tile_fn(int, int) { return nullptr; }

#endif

}  // namespace
}  // namespace CK_ISA
}  // namespace ck
