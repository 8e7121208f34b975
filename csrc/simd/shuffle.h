// shuffle.h: what needs lanes to change places: the sum and the maximum of a vector, and squares of kLanes x kLanes floats transposed
// in registers. Both take log2(kLanes) rounds of shuffles.
#pragma once
#include "simd/vec.h"

namespace ck {
namespace CK_ISA {

// GCC takes a vector of indices, clang a list; 0 .. kLanes-1 name the lanes of a, the next kLanes those of b.
#if defined(__clang__)
#define CK_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CK_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, vi{__VA_ARGS__})
#endif

template <int... kJ>
struct Lanes {};
template <int kN, int... kJ>
struct CountLanes : CountLanes<kN - 1, kN - 1, kJ...> {};
template <int... kJ>
struct CountLanes<0, kJ...> {
  using Type = Lanes<kJ...>;
};

// Within each quarter of four lanes: a0 b0 a1 b1 | a2 b2 a3 b3, then pairs: a0 a1 b0 b1 | a2 a3 b2 b3.
template <int kHigh>
struct Zip {
  static constexpr int lane(int j) { return (j & ~3) + 2 * kHigh + (j & 3) / 2 + (j & 1) * kLanes; }
};
template <int kHigh>
struct ZipPairs {
  static constexpr int lane(int j) { return (j & ~3) + 2 * kHigh + (j & 1) + (j & 2) / 2 * kLanes; }
};
// Blocks of kStep lanes: the even ones of a and b, or the odd ones.
template <int kStep, int kHigh>
struct Exchange {
  static constexpr int lane(int j) { return (j & ~kStep) + kHigh * kStep + (j & kStep ? kLanes : 0); }
};

template <class Pick, int... kJ>
CK_INLINE vf shuffle(vf a, vf b, Lanes<kJ...>) {
  return CK_SHUFFLE(a, b, Pick::lane(kJ)...);
}
template <class Pick>
CK_INLINE vf shuffle(vf a, vf b) {
  return shuffle<Pick>(a, b, typename CountLanes<kLanes>::Type());
}

// Lane j meets lane j ^ kStep.
template <int kStep>
struct Flip {
  static constexpr int lane(int j) { return j ^ kStep; }
};
template <int kStep>
CK_INLINE vf flip(vf v) {
  return shuffle<Flip<(kStep < kLanes ? kStep : 0)>>(v, v);
}

// The sum (the maximum) of all lanes, in every lane.
CK_INLINE vf lane_sum(vf v) {
  if (kLanes > 8) v += flip<8>(v);
  if (kLanes > 4) v += flip<4>(v);
  v += flip<2>(v);
  return v + flip<1>(v);
}
CK_INLINE vf lane_max(vf v) {
  if (kLanes > 8) v = vmax(v, flip<8>(v));
  if (kLanes > 4) v = vmax(v, flip<4>(v));
  v = vmax(v, flip<2>(v));
  return vmax(v, flip<1>(v));
}

template <int kStep>
CK_INLINE void exchange(vf* r) {
  CK_UNROLL for (int i = 0; i < kLanes; ++i) {
    if (i & kStep) continue;
    const vf a = r[i], b = r[i + kStep];
    r[i] = shuffle<Exchange<kStep, 0>>(a, b);
    r[i + kStep] = shuffle<Exchange<kStep, 1>>(a, b);
  }
}

CK_INLINE void transpose(vf* r) {
  CK_UNROLL for (int i = 0; i < kLanes; i += 4) {
    const vf a = shuffle<Zip<0>>(r[i], r[i + 1]), b = shuffle<Zip<1>>(r[i], r[i + 1]);
    const vf c = shuffle<Zip<0>>(r[i + 2], r[i + 3]), d = shuffle<Zip<1>>(r[i + 2], r[i + 3]);
    r[i] = shuffle<ZipPairs<0>>(a, c);
    r[i + 1] = shuffle<ZipPairs<1>>(a, c);
    r[i + 2] = shuffle<ZipPairs<0>>(b, d);
    r[i + 3] = shuffle<ZipPairs<1>>(b, d);
  }
  if (kLanes > 4) exchange<(kLanes > 4 ? 4 : 1)>(r);
  if (kLanes > 8) exchange<(kLanes > 8 ? 8 : 1)>(r);
}

}  // namespace CK_ISA
}  // namespace ck
