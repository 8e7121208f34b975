// common.cuh: what every CUDA kernel file shares: element types, the epilogue, division by run-time sizes, launches.
//
// A kernel file is compiled by nvcc, or, when CK_EMULATE is defined, by the C++ compiler with cuda/emulate.h in place of the CUDA headers: the
// portable kernels then run on the CPU, thread by thread, and the tests compare them with the oracle on a machine without a GPU.
// Files that need tensor cores or TMA (CK_TENSOR and CK_SM90 in kernels.def) are left out there.
#pragma once
#if defined(CK_EMULATE)
#include "cuda/emulate.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <cmath>
#include <cstdint>

#include "core/problem.h"
#include "core/tensor.h"

#if !defined(CK_EMULATE)
#define CK_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char ck_shared[]; \
  type* const name = reinterpret_cast<type*>(ck_shared)
#endif
#define CK_DEVICE __host__ __device__ __forceinline__

namespace ck::cuda {

#if !defined(CK_EMULATE)
using Half = __half;
using Bfloat = __nv_bfloat16;
CK_DEVICE float to_float(Half v) { return __half2float(v); }
CK_DEVICE float to_float(Bfloat v) { return __bfloat162float(v); }
template <class T>
CK_DEVICE T from_float(float v);
template <>
CK_DEVICE Half from_float<Half>(float v) {
  return __float2half_rn(v);
}
template <>
CK_DEVICE Bfloat from_float<Bfloat>(float v) {
  return __float2bfloat16_rn(v);
}
#endif
CK_DEVICE float to_float(float v) { return v; }
template <>
CK_DEVICE float from_float<float>(float v) {
  return v;
}

// kCount elements that move as one access of up to 16 bytes.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T v[kCount];
};
template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));  // elements in 16 bytes

template <int kCount, class T>
CK_DEVICE void load(const T* from, float (&to)[kCount]) {
  const Pack<T, kCount> p = *reinterpret_cast<const Pack<T, kCount>*>(from);
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = to_float(p.v[i]);
}
template <int kCount, class T>
CK_DEVICE void store(T* to, const float (&from)[kCount]) {
  Pack<T, kCount> p;
#pragma unroll
  for (int i = 0; i < kCount; ++i) p.v[i] = from_float<T>(from[i]);
  *reinterpret_cast<Pack<T, kCount>*>(to) = p;
}

// The activation with float parameters, as kernels get it. Formulas and special values as in core/activation.h.
struct ActivationF {
  Act kind;
  float a, b;
};
inline ActivationF activation_f(const Activation& act) { return {act.kind, static_cast<float>(act.a), static_cast<float>(act.b)}; }

CK_DEVICE float activate(float v, const ActivationF& act) {
  switch (act.kind) {
    case Act::kNone: return v;
    case Act::kClamp:  // comparisons are false for NaN, so NaN stays
      v = v < act.a ? act.a : v;
      return v > act.b ? act.b : v;
    case Act::kSilu: return v / (1.f + expf(-v));
    case Act::kSigmoid: return 1.f / (1.f + expf(-v));
    case Act::kHardSwish:
    case Act::kHardSigmoid: {
      float gate = v + 3.f;
      gate = gate < 0.f ? 0.f : gate;
      gate = gate > 6.f ? 6.f : gate;
      return act.kind == Act::kHardSwish ? v * gate / 6.f : gate / 6.f;
    }
    case Act::kGelu: return 0.5f * v * (1.f + erff(v * 0.70710678118654752440f));
    case Act::kGeluTanh: return 0.5f * v * (1.f + tanhf(0.79788456080286535588f * (v + 0.044715f * v * v * v)));
    case Act::kTanh: return tanhf(v);
    case Act::kElu: return v > 0.f ? v : act.a * expm1f(v);
    case Act::kLeakyRelu: return v > 0.f ? v : act.a * v;
    case Act::kSoftplus: return v * act.a > act.b ? v : log1pf(expf(v * act.a)) / act.a;
    case Act::kExp: return expf(v);
  }
  return v;
}

// y = act(scale[k] * sum + bias[k] + residual): what a convolution does with its sums. Fill one with epilogue() on the host.
struct Epilogue {
  const float* scale;  // null: 1
  const float* bias;   // null: 0
  View residual;       // data null: none; elements of y's type
  ActivationF act;
};
template <class Args>
Epilogue epilogue(const Activation& act, const Args& a) {
  return {a.scale, a.bias, a.residual, activation_f(act)};
}

// One output: filter k, residual already read (0 if there is none).
CK_DEVICE float finish(const Epilogue& e, float sum, int64_t k, float residual) {
  if (e.scale) sum *= e.scale[k];
  if (e.bias) sum += e.bias[k];
  return activate(sum + residual, e.act);
}
// The same for kCount outputs of one pixel, from filter k on; the activation is looked up once.
template <int kCount>
CK_DEVICE void finish_all(const Epilogue& e, float (&v)[kCount], int64_t k, const float (&residual)[kCount]) {
  if (e.scale)
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] *= e.scale[k + i];
  if (e.bias)
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] += e.bias[k + i];
#pragma unroll
  for (int i = 0; i < kCount; ++i) v[i] += residual[i];
  if (e.act.kind == Act::kNone) return;
  if (e.act.kind == Act::kClamp) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      v[i] = v[i] < e.act.a ? e.act.a : v[i];
      v[i] = v[i] > e.act.b ? e.act.b : v[i];
    }
    return;
  }
#pragma unroll 1
  for (int i = 0; i < kCount; ++i) {  // rare and long: one copy of the code, values picked without indexing
    float one = v[0];
#pragma unroll
    for (int j = 1; j < kCount; ++j) one = j == i ? v[j] : one;
    one = activate(one, e.act);
#pragma unroll
    for (int j = 0; j < kCount; ++j) v[j] = j == i ? one : v[j];
  }
}
// ... with the residual read from e.residual at (n,z,p,q) and y (= &y[n,z,p,q,k]) written. kCount elements must be aligned as one access in both.
template <int kCount, class T>
CK_DEVICE void finish_store(const Epilogue& e, const float (&sum)[kCount], int64_t k, int64_t n, int64_t z, int64_t p, int64_t q, T* y) {
  float r[kCount] = {}, out[kCount];
  if (e.residual.data) load<kCount>(at<const T>(e.residual, n, z, p, q) + k, r);
#pragma unroll
  for (int i = 0; i < kCount; ++i) out[i] = sum[i];
  finish_all<kCount>(e, out, k, r);
  store<kCount>(y, out);
}

// n / d for a d known on the host only. 32 bits: a multiplication (n < 2^31; Granlund and Montgomery 1994); 64 bits: the division.
template <class I>
struct Divider;

template <>
struct Divider<uint32_t> {
  uint32_t d, multiplier, shift;
  Divider() = default;
  explicit Divider(int64_t divisor) : d(static_cast<uint32_t>(divisor)), multiplier(0), shift(0) {
    while (shift < 31 && (uint64_t{1} << shift) < d) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift) - d)) / d + 1);
  }
  CK_DEVICE uint32_t div(uint32_t n) const {
#if defined(__CUDA_ARCH__)
    const uint32_t high = __umulhi(n, multiplier);
#else
    const uint32_t high = static_cast<uint32_t>((static_cast<uint64_t>(n) * multiplier) >> 32);
#endif
    return (high + n) >> shift;
  }
  CK_DEVICE uint32_t divmod(uint32_t n, uint32_t& rest) const {
    const uint32_t q = div(n);
    rest = n - q * d;
    return q;
  }
};

template <>
struct Divider<uint64_t> {
  uint64_t d;
  Divider() = default;
  explicit Divider(int64_t divisor) : d(static_cast<uint64_t>(divisor)) {}
  CK_DEVICE uint64_t div(uint64_t n) const { return n / d; }
  CK_DEVICE uint64_t divmod(uint64_t n, uint64_t& rest) const {
    const uint64_t q = n / d;
    rest = n - q * d;
    return q;
  }
};

// From how many items on the fast divider does not do. The emulation lowers it, so that tests reach the other path.
inline int64_t too_many_items() {
#if defined(CK_EMULATE)
  return emulated().too_many_items;
#else
  return int64_t{1} << 31;
#endif
}

// Calls f(uint32_t{}) if numbers up to `items` fit the fast divider, else f(uint64_t{}).
template <class F>
cudaError_t with_index(int64_t items, F f) {
  return items < too_many_items() ? f(uint32_t{}) : f(uint64_t{});
}

CK_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of `threads` for `items`, one each; kernels loop by the grid where there are more than a grid can hold.
inline unsigned blocks_for(int64_t items, int threads) {
  const int64_t blocks = ceil_div(items, threads);
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < (int64_t{1} << 30) ? blocks : int64_t{1} << 30);
}

#if defined(__CUDACC__)
// kernel<<<grid, block, shared, stream>>>(args...), with more than 48 KB of dynamic shared memory if asked for. kBarriers is for the emulation:
// false promises that the kernel has neither barriers nor shuffles, so that its threads may run one after another.
template <bool kBarriers, class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, int64_t shared, cudaStream_t stream, A&&... args) {
  if (shared > 48 * 1024) {
    const cudaError_t e =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (e != cudaSuccess) return e;
  }
  kernel<<<grid, block, static_cast<size_t>(shared), stream>>>(static_cast<P>(args)...);
  return cudaGetLastError();
}
#endif

}  // namespace ck::cuda
