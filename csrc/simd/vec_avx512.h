// vec_avx512.h: AVX-512 F/VL/DQ/BW (x86-64-v4): 32 registers of 16 floats, masks for tails.
#pragma once
#include <immintrin.h>

// Objects with more than AVX-512 (kernels.def: CK_KERNEL_ON) are namespaces of their own.
#if defined(__AMX_BF16__)
#define CK_ISA amx
#elif defined(__AVX512BF16__)
#define CK_ISA avx512bf16
#else
#define CK_ISA avx512
#endif

namespace ck {
namespace CK_ISA {

constexpr int kLanes = 16;
constexpr int kRegisters = 32;
constexpr int kTile[5] = {0, 14, 14, 9, 6};
constexpr int kMaxTile = 14;

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));

CK_INLINE vf load(const float* p) { return _mm512_loadu_ps(p); }
CK_INLINE void store(float* p, vf v) { _mm512_storeu_ps(p, v); }
CK_INLINE vf load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p); }
CK_INLINE void store_n(float* p, vf v, int n) { _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v); }
CK_INLINE vf splat(float v) { return _mm512_set1_ps(v); }
CK_INLINE vf vmax(vf v, vf lo) { return _mm512_max_ps(lo, v); }  // the second operand wins when either is NaN
CK_INLINE vf vmin(vf v, vf hi) { return _mm512_min_ps(hi, v); }
CK_INLINE vf vsqrt(vf v) { return _mm512_sqrt_ps(v); }
CK_INLINE void add_product(vf& sum, vf a, vf b) { asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }
CK_INLINE void add_product(vf& sum, const float* a, vf b) { asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*a)); }

}  // namespace CK_ISA
}  // namespace ck
