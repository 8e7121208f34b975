// fma_peak.cpp: the denominator of every "% of peak": independent FMA chains in registers, no memory.
// Enough chains to hide the latency (Zen 4: 4 cycles on two units: 8; Neoverse V1 and Apple: 4 on four: 16), none spilled.
#include "simd/vec.h"

namespace ck {
namespace CK_ISA {

double fma_loop(int64_t iterations);

double fma_loop(int64_t iterations) {
  constexpr int kChains = kTile[2] < 8 ? 12 : 16;  // 16 registers or 32
  vf acc[kChains];
  vf a = splat(0.999f), b = splat(1e-3f);
  CK_UNROLL
  for (int i = 0; i < kChains; ++i) acc[i] = splat(static_cast<float>(i));
  for (int64_t it = 0; it < iterations; ++it) {
    asm volatile("" : "+r"(it));  // keeps the compiler from merging iterations
    CK_UNROLL
    for (int i = 0; i < kChains; ++i) acc[i] = acc[i] * a + b;
  }
  vf sum = acc[0];
  for (int i = 1; i < kChains; ++i) sum += acc[i];
  volatile float keep = sum[0];
  (void)keep;
  return 2.0 * kChains * kLanes * static_cast<double>(iterations);
}

}  // namespace CK_ISA
}  // namespace ck
