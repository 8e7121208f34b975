// activate.cuh: any activation on values in registers, in little code.
#pragma once
#include "cuda/ptx.cuh"

namespace ck::cuda {

// The switch over the kinds is large: a loop that is not unrolled keeps one copy of it, and shared memory, unlike registers, can be indexed by
// a loop. `scratch` = 128 * kCount bytes of the warp's own; the caller orders it against other uses.
template <int kCount>
CK_DEV void activate_in_shared(float (&v)[kCount], uint32_t scratch, const ActivationF& act) {
  const uint32_t mine = scratch + 4 * lane_index();
#pragma unroll
  for (int i = 0; i < kCount; ++i) store_shared(mine + 128 * i, v[i]);
#pragma unroll 1
  for (int i = 0; i < kCount; ++i) store_shared(mine + 128 * i, activate(load_shared(mine + 128 * i), act));
#pragma unroll
  for (int i = 0; i < kCount; ++i) v[i] = load_shared(mine + 128 * i);
}

}  // namespace ck::cuda
