// filters.cuh: the layout of the tensor-core kernels' filters: G K/G T*R*S C/G, the channels padded to whole 16 bytes with zeros.
//
// Several groups may be packed as one ("merge"): merged filters see the channels of all of their groups, zeros where they are not their own.
//
//     merge = 2, 2 groups of 2 channels and 2 filters:      c0 c1 c2 c3
//                                                       k0   a  b  0  0
//                                                       k1   c  d  0  0
//                                                       k2   0  0  e  f
//                                                       k3   0  0  g  h
#pragma once
#include "cuda/kernel.cuh"

namespace ck::cuda {

// The nearest value with 10 bits of mantissa, ties away from zero (cvt.rna.tf32): hardware that is given a float cuts off.
CK_DEVICE float round_tf32(float v) {
  union {
    float f;
    uint32_t u;
  } bits = {v};
  if ((bits.u & 0x7f800000u) != 0x7f800000u) bits.u = (bits.u + 0x1000u) & ~0x1fffu;
  return bits.f;
}

struct FilterLayout {
  int64_t taps, c, k, merge;  // c: channels of a group, k: filters of a group, before merging; merge: groups packed as one
  int64_t groups;             // before merging; a multiple of merge
  int64_t pitch;              // elements from one tap to the next
};
inline FilterLayout filter_layout(const ConvProblem& p, int64_t merge, int element_bytes) {
  const int64_t c = p.c / p.groups, chunk = 16 / element_bytes;
  return {p.t * p.r * p.s, c, p.k / p.groups, merge, p.groups, ceil_div(c * merge, chunk) * chunk};
}
inline int64_t filter_elements(const FilterLayout& f) { return f.groups * f.k * f.taps * f.pitch; }

template <class T>
__global__ void pack_filters(const float* weights, T* packed, FilterLayout f, int tf32, int64_t items) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < items; i += step) {
    const int64_t c_merged = i % f.pitch, tap = i / f.pitch % f.taps, k = i / f.pitch / f.taps;
    const int64_t c = c_merged - k / f.k % f.merge * f.c;  // relative to the filter's own group
    float v = c >= 0 && c < f.c ? weights[(tap * f.c + c) * f.groups * f.k + k] : 0.f;
    if (tf32) v = round_tf32(v);
    packed[i] = from_float<T>(v);
  }
}

inline cudaError_t launch_pack_filters(const FilterLayout& f, Precision precision, const float* weights, void* packed,
                                       cudaStream_t stream) {
  const int64_t items = filter_elements(f);
  if (!items) return cudaSuccess;
  return with_element(precision, [&](auto zero) {
    using T = decltype(zero);
    return launch<false>(pack_filters<T>, dim3(blocks_for(items, 256)), dim3(256), 0, stream, weights, static_cast<T*>(packed), f,
                         precision == Precision::kTF32 ? 1 : 0, items);
  });
}

}  // namespace ck::cuda
