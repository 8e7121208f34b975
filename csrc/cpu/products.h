// products.h: the register-blocked product at the heart of the weight gradients: sums over pixels of the outer product of two pixels' channels.
//
//              2 vectors of small[m]
//            +-----------+-----------+
//   big[m][0]| acc[0][0] | acc[0][1] |   one broadcast of big[m][b] feeds two FMAs: 16 loads for 28 FMAs (AVX-512)
//   big[m][1]| acc[1][0] | acc[1][1] |
//            |    ...    |    ...    |
//
// A panel of a single vector leaves room for kStride channels. The sums stay in registers over all pixels given: one chain an output.
#pragma once
#include "cpu/pixels.h"
#include "simd/vec.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int kRows = kTile[2];                                      // channels of a tile
constexpr int64_t kStride = (kRows + kLanes - 1) / kLanes * kLanes;  // floats from one pixel of a packed tile to the next
constexpr int64_t kWidth = 2 * kLanes;                               // of a panel

// What later products will read: a line of the cache with each pixel of this one. None: null.
struct Stream {
  const float* from;
  int64_t step;
};

// acc[i][j] += big[m][i] * small[m][j] over the pixels of some units.
struct Product {
  const float* big;
  const float* small;
  const int64_t* big_at;    // [units]: floats from `big` to the first pixel
  const int64_t* small_at;  // [units]: the same of `small`
  const int64_t* counts;    // [units]: pixels
  int64_t units, big_step, small_step;
  float* sums;
  int64_t sums_step;
  bool fresh;            // sums start at zero
  Stream ahead[2] = {};  // fetched into the second-level cache on the way
};

template <int kC, int kV>
void product(const Product& t) {
  vf acc[kC][kV];
  CK_UNROLL
  for (int i = 0; i < kC; ++i)
    CK_UNROLL
    for (int j = 0; j < kV; ++j) acc[i][j] = splat(0.f);
  Stream first = t.ahead[0], second = t.ahead[1];
  if (!first.from) first = {t.big, 0};  // not null itself: nothing maps that page
  if (!second.from) second = first;
  for (int64_t u = 0; u < t.units; ++u) {
    const float *x = t.big + t.big_at[u], *y = t.small + t.small_at[u];
    for (int64_t m = t.counts[u]; m > 0; --m, x += t.big_step, y += t.small_step) {
      __builtin_prefetch(first.from, 0, 2);
      __builtin_prefetch(second.from, 0, 2);
      first.from += first.step, second.from += second.step;
      vf b[kV];
      CK_UNROLL
      for (int j = 0; j < kV; ++j) b[j] = load(y + j * kLanes);
      CK_UNROLL
      for (int i = 0; i < kC; ++i) {
        const vf a = splat(x[i]);
        CK_UNROLL
        for (int j = 0; j < kV; ++j) acc[i][j] += a * b[j];
      }
    }
  }
  if (t.fresh) {
    CK_UNROLL
    for (int i = 0; i < kC; ++i)
      CK_UNROLL
      for (int j = 0; j < kV; ++j) store(t.sums + i * t.sums_step + j * kLanes, acc[i][j]);
  } else {
    CK_UNROLL
    for (int i = 0; i < kC; ++i)
      CK_UNROLL
      for (int j = 0; j < kV; ++j) {
        float* sum = t.sums + i * t.sums_step + j * kLanes;
        store(sum, load(sum) + acc[i][j]);
      }
  }
}

using ProductFn = void (*)(const Product&);
template <int kV, int... kC>
struct Products {
  static constexpr ProductFn table[] = {nullptr, product<kC, kV>...};
};
CK_INLINE ProductFn product_fn(int channels, int vecs) {
#if defined(__AVX512F__)
  static constexpr const ProductFn* kTables[] = {nullptr, Products<1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16>::table,
                                                 Products<2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14>::table};
#elif defined(__aarch64__)
  static constexpr const ProductFn* kTables[] = {nullptr, Products<1, 1, 2, 3, 4, 5, 6, 7, 8>::table, Products<2, 1, 2, 3, 4, 5, 6, 7, 8>::table};
#else
  static constexpr const ProductFn* kTables[] = {nullptr, Products<1, 1, 2, 3, 4, 5, 6, 7, 8>::table, Products<2, 1, 2, 3, 4, 5, 6>::table};
#endif
  return kTables[vecs][channels];
}

}  // namespace
}  // namespace CK_ISA
}  // namespace ck
