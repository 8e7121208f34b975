// emulate.h: enough of CUDA to run the tensor-core kernels on a CPU, every thread a fiber, all blocks of a cluster at once.
//
// This folder comes before csrc in the include path: its cuda/ptx.cuh, cuda/sm90.cuh and cuda/sm90_launch.cuh have the same functions as the product's,
// written in C++, and the kernels' sources are compiled unchanged. What is asynchronous on the device (cp.async, TMA, wgmma) happens here at a
// moment that the test chooses: at once, as late as it is allowed, or at random, and fibers run in a random order. A missing wait, a stage handed
// back too early, a wrong parity then gives a wrong result, or a deadlock, which is an error with a text. Not seen: memory fences, speed.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern dim3 gridDim, blockDim, blockIdx, threadIdx;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorUnknown = 999 };
using cudaStream_t = void*;

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
template <class T>
T __ldg(const T* p) {
  return *p;
}
inline float __uint_as_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline uint32_t __float_as_uint(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

namespace simt {

// Suspends the running fiber until ready(state) holds.
void wait(bool (*ready)(void*), void* state);
template <class F>
void wait_until(F condition) {
  if (!condition()) wait([](void* f) { return (*static_cast<F*>(f))(); }, &condition);
}
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// All 32 lanes of the warp bring an argument; the last to come calls f on all of them.
void collect(const char* what, void* mine, void (*f)(void* const* lanes));

uint8_t* shared(uint32_t address, int bytes);  // of the running block
uint8_t* shared_base();
uint32_t shared_offset(const void* p);

cudaError_t run(dim3 grid, dim3 block, int64_t shared, int cluster, void (*body)(void*), void* state);

}  // namespace simt

inline float __shfl_xor_sync(unsigned, float v, int mask) {
  struct Lane {
    float v;
    int mask;
    float got;
  } mine{v, mask, 0};
  simt::collect("shfl", &mine, [](void* const* lanes) {
    for (int i = 0; i < 32; ++i) {
      Lane& l = *static_cast<Lane*>(lanes[i]);
      l.got = static_cast<Lane*>(lanes[i ^ l.mask])->v;
    }
  });
  return mine.got;
}
inline int __shfl_sync(unsigned, int v, int) { return v; }
inline void __syncwarp() {
  simt::collect("syncwarp", nullptr, [](void* const*) {});
}
void __syncthreads();

namespace ck::cuda {

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};
float to_float(Half v);
inline float to_float(Bfloat v) { return __uint_as_float(uint32_t{v.bits} << 16); }
template <class T>
T from_float(float v);
template <>
Half from_float<Half>(float v);
template <>
inline Bfloat from_float<Bfloat>(float v) {
  const uint32_t u = __float_as_uint(v);
  return v != v ? Bfloat{0x7fff} : Bfloat{static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

// What cuda/common.cuh asks an emulation.
struct Emulated {
  int64_t too_many_items = int64_t{1} << 31;
};
inline const Emulated& emulated() {
  static const Emulated limits;
  return limits;
}

template <class... P>
void run_kernel(void (*kernel)(P...), const std::tuple<P...>& args, dim3 grid, dim3 block, int64_t shared, int cluster,
                cudaError_t* result) {
  struct State {
    void (*kernel)(P...);
    const std::tuple<P...>* args;
  } state{kernel, &args};
  *result = simt::run(
      grid, block, shared, cluster, [](void* s) { std::apply(static_cast<State*>(s)->kernel, *static_cast<State*>(s)->args); }, &state);
}

template <bool kBarriers, class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, int64_t shared, cudaStream_t, A&&... args) {
  cudaError_t result;
  run_kernel(kernel, std::tuple<P...>(static_cast<P>(args)...), grid, block, shared, 1, &result);
  return result;
}

}  // namespace ck::cuda
