// vec_avx2.h: AVX2 + FMA (x86-64-v3): 16 registers of 8 floats, maskload/maskstore for tails.
#pragma once
#include <immintrin.h>

#define CK_ISA avx2

namespace ck {
namespace avx2 {

constexpr int kLanes = 8;
constexpr int kRegisters = 16;
constexpr int kTile[5] = {0, 6, 6, 4, 2};
constexpr int kMaxTile = 6;

typedef float vf __attribute__((vector_size(32)));
typedef int32_t vi __attribute__((vector_size(32)));

CK_INLINE __m256i first_lanes(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
CK_INLINE vf load(const float* p) { return _mm256_loadu_ps(p); }
CK_INLINE void store(float* p, vf v) { _mm256_storeu_ps(p, v); }
CK_INLINE vf load_n(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
CK_INLINE void store_n(float* p, vf v, int n) { _mm256_maskstore_ps(p, first_lanes(n), v); }
CK_INLINE vf splat(float v) { return _mm256_set1_ps(v); }
CK_INLINE vf vmax(vf v, vf lo) { return _mm256_max_ps(lo, v); }
CK_INLINE vf vmin(vf v, vf hi) { return _mm256_min_ps(hi, v); }
CK_INLINE vf vsqrt(vf v) { return _mm256_sqrt_ps(v); }
CK_INLINE void add_product(vf& sum, vf a, vf b) { asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b)); }
CK_INLINE void add_product(vf& sum, const float* a, vf b) { add_product(sum, splat(*a), b); }

}  // namespace avx2
}  // namespace ck
