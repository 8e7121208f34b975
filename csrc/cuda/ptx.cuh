// ptx.cuh: the machine instructions that the tensor-core kernels share, one function each. What only compute capability 9.0 has is in sm90.cuh.
//
// Kernels reach the machine through these functions and CUDA's own built-ins alone; tests/simt has the same functions written in C++, so
// that the tests run the kernels, unchanged, on a CPU.
//
// The fragments of one matrix instruction (PTX ISA, "Matrix Fragments for mma"), for lane t of the warp:
//   A 16 rows x 32 bytes    a[i]: row t/4 + 8*(i%2), bytes 16*(i/2) + 4*(t%4) ...     what ldmatrix_x4 reads from four 8-row x 16-byte blocks
//   B 32 bytes x 8 columns  b[i]: column t/4, bytes 16*i + 4*(t%4) ...
//   D 16 rows x 8 columns   d[i]: row t/4 + 8*(i/2), column 2*(t%4) + i%2
// In bytes this is the same for 16-bit elements (depth 16) and TF32 (depth 8), which is why one kernel serves both.
#pragma once
#include <type_traits>

#include "cuda/common.cuh"

#define CK_DEV __device__ __forceinline__

namespace ck::cuda {

CK_DEV uint8_t* dynamic_shared() {
  extern __shared__ __align__(1024) uint8_t shared_memory[];
  return shared_memory;
}
CK_DEV uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
CK_DEV int lane_index() { return static_cast<int>(threadIdx.x % 32); }
// The shuffle shows the compiler that a warp agrees on it.
CK_DEV int warp_index() { return __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32), 0); }

// Whether the next functions exist: sm_75 has to pass global loads through registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define CK_ASYNC_COPY 0
#else
#define CK_ASYNC_COPY 1
#endif

// Sixteen bytes of shared memory, of which `bytes` come from global memory and the rest are zero; with 0, `src` is not read.
// The first form passes through L1, for data that the same SM reads again.
CK_DEV void copy_async_reused(uint32_t dst, const void* src, int bytes) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
#endif
}
CK_DEV void copy_async(uint32_t dst, const void* src, int bytes) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
#endif
}
// Four bytes, in the same way.
CK_DEV void copy_async_word(uint32_t dst, const void* src, int bytes) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
#endif
}
CK_DEV void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kPending>
CK_DEV void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

CK_DEV void store_shared(uint32_t dst, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(dst), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
CK_DEV void store_shared(uint32_t dst, float2 v) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(dst), "f"(v.x), "f"(v.y) : "memory");
}
CK_DEV void store_shared(uint32_t dst, float v) { asm volatile("st.shared.f32 [%0], %1;" ::"r"(dst), "f"(v) : "memory"); }
CK_DEV float load_shared(uint32_t src) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(src) : "memory");
  return v;
}
CK_DEV float2 load_shared2(uint32_t src) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(src) : "memory");
  return v;
}

// Four 8x8 blocks of 16-bit elements; lane 8*i + j gives the address of row j of block i.
CK_DEV void ldmatrix_x4(uint32_t addr, uint32_t (&v)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "r"(addr)
               : "memory");
}

// float -> the nearest TF32 (ties away from zero), as a float.
CK_DEV uint32_t to_tf32(uint32_t v) {
#if __CUDA_ARCH__ >= 800
  uint32_t out;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(out) : "f"(__uint_as_float(v)));
  return out;
#else
  return v;
#endif
}

// d += a * b, in float. T: Half, Bfloat, or float for operands in TF32.
template <class T>
CK_DEV void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same<T, Half>::value)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else if constexpr (std::is_same<T, Bfloat>::value)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else  // sm_75: half the depth at a time, 16-bit floats only
  static_assert(std::is_same<T, Half>::value || !std::is_same<T, void>::value, "");
  if constexpr (std::is_same<T, Half>::value)
#pragma unroll
    for (int i = 0; i < 2; ++i)
      asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                   : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                   : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(b[i]));
#endif
}

// min(max(v, lo), hi); NaN stays NaN.
CK_DEV float clamp(float v, float lo, float hi) {
#if __CUDA_ARCH__ >= 800
  float w;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(w) : "f"(v), "f"(lo));
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(v) : "f"(w), "f"(hi));
  return v;
#else
  v = v < lo ? lo : v;
  return v > hi ? hi : v;
#endif
}

// Two floats as a pair of 16-bit ones, the first in the low half, and back.
template <class T>
CK_DEV uint32_t pack_pair(float lo, float hi) {
  if constexpr (std::is_same<T, Half>::value) {
    const __half2 v = __floats2half2_rn(lo, hi);
    return *reinterpret_cast<const uint32_t*>(&v);
  } else {
    const __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    return *reinterpret_cast<const uint32_t*>(&v);
  }
}
template <class T>
CK_DEV float2 unpack_pair(uint32_t u) {
  if constexpr (std::is_same<T, Half>::value) return __half22float2(*reinterpret_cast<const __half2*>(&u));
  else return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&u));
}

}  // namespace ck::cuda
