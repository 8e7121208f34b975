// swapped.h: packs the weights of a gradient's convolution (its channels are the layer's filters and the other way round) straight from the
// layer's own: gemm.h's panels, by squares of kLanes x kLanes that are transposed in registers. Swapping all weights first and packing them then
// reads and writes them twice: a fifth of the time of a 1x1 convolution to a 7x7 map.
#pragma once
#include "cpu/gemm.h"
#include "simd/shuffle.h"

namespace ck {
namespace CK_ISA {
namespace {

// Of the layer T R S K/G C to [group][panel][tap][c][nv * kLanes] of the problem, the taps in reverse order if `flip`.
CK_INLINE void gemm_pack_swapped(const ConvProblem& p, const void* weights, bool flip, void* packed, int64_t first, int64_t last) {
  const Panels panels = panels_of(p);
  const int64_t taps = taps_of(p), group_c = p.c / p.groups, rows = taps * group_c;
  for (int64_t task = first; task < last; ++task) {
    const int64_t g = task / panels.count, i = task % panels.count;
    const int64_t k_first = panel_first(panels, i) * kLanes, width = panel_width(panels, i) * kLanes;
    float* out = static_cast<float*>(packed) + (g * panels.vecs * kLanes + k_first) * rows;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const float* w = static_cast<const float*>(weights) + (flip ? taps - 1 - tap : tap) * panels.group_k * p.c + g * group_c;
      for (int64_t c = 0; c < group_c; c += kLanes) {
        const int64_t count = group_c - c < kLanes ? group_c - c : kLanes;
        for (int64_t j = 0; j < width; j += kLanes) {
          vf square[kLanes];
  CK_UNROLL
          for (int l = 0; l < kLanes; ++l) {
            const int64_t k = k_first + j + l;
            square[l] = k < panels.group_k ? load_some(w + k * p.c + c, count) : splat(0.f);
          }
          transpose(square);
          float* to = out + (tap * group_c + c) * width + j;
          CK_UNROLL
          for (int l = 0; l < kLanes; ++l)
            if (l < count) store(to + l * width, square[l]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace CK_ISA
}  // namespace ck
