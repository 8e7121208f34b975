// emulate.h: just enough of CUDA to run the portable kernels on the CPU, for tests on machines without a GPU (CK_EMULATE).
//
// Blocks run one after another, and so do the threads of a block, in the order of threadIdx. Kernels with barriers or shuffles (launch<true>) get a
// fiber for each thread: a fiber runs until it waits, then the next one does. Threads that wait at different places at once (a barrier that not all
// of a warp reach) are an error, as is memory outside of an allocation under a sanitizer; races and the memory model are not seen here.
// "Device memory" is host memory; streams run at once; a capture keeps the launches and plays them again.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static
#define __grid_constant__
#define CK_SHARED(type, name) type* const name = reinterpret_cast<type*>(ck::cuda::emulated().shared.data())

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 gridDim, blockDim, blockIdx, threadIdx;

enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorInvalidValue = 1 };
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
using cudaStream_t = struct ck_emulated_stream*;

namespace ck::cuda {

struct Emulated {
  static constexpr size_t kStack = 128 << 10;
  enum State { kReady, kWarp, kBlock, kDone };
  struct Fiber {
    State state = kReady;
    bool started = false;
    jmp_buf resume;
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStack]};
    dim3 index;
  };
  std::recursive_mutex mutex;
  std::vector<unsigned char> shared;
  std::vector<Fiber> fibers;
  std::function<void()> body;
  jmp_buf scheduler;
  ucontext_t main;
  int current = -1;
  int64_t too_many_items = int64_t{1} << 31;
  int capability = 75, multiprocessors = 4;  // what the device says it is
  int64_t memory_bytes = int64_t{1} << 36;
  double slots[1024];                                     // what shuffles exchange
  std::vector<std::function<void()>>* capture = nullptr;  // launches go here instead of running
  int64_t allocations = 0, allocated = 0;                 // blocks of memory that there are, and that have been since the start
  int64_t waits = 0;                                      // how often the whole device was waited for

  [[noreturn]] static void fail(const char* why) {
    std::fprintf(stderr, "emulated CUDA: %s\n", why);
    std::abort();
  }
  static void entry();
  void wait(State at) {
    if (current < 0) fail("a barrier or shuffle in a kernel launched with launch<false>");
    Fiber& f = fibers[static_cast<size_t>(current)];
    f.state = at;
    if (!_setjmp(f.resume)) _longjmp(scheduler, 1);
  }
  void resume(int i) {
    Fiber& f = fibers[static_cast<size_t>(i)];
    current = i;
    threadIdx = f.index;
    if (_setjmp(scheduler)) return;
    if (f.started) _longjmp(f.resume, 1);
    f.started = true;
    setcontext(&f.context);
  }
  void run_block(unsigned threads) {
    if (fibers.size() < threads) fibers.resize(threads);
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& f = fibers[i];
      f.state = kReady, f.started = false;
      f.index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y);
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.get(), f.context.uc_stack.ss_size = kStack, f.context.uc_link = nullptr;
      makecontext(&f.context, &Emulated::entry, 0);
    }
    for (bool alive = true; alive;) {
      alive = false;
      for (unsigned warp = 0; warp < threads; warp += 32) {
        const unsigned end = warp + 32 < threads ? warp + 32 : threads;
        for (bool again = true; again;) {  // until the warp is at the block's barrier or done
          unsigned at_warp = 0, at_block = 0;
          for (unsigned i = warp; i < end; ++i) {
            if (fibers[i].state == kReady) resume(static_cast<int>(i));
            at_warp += fibers[i].state == kWarp, at_block += fibers[i].state == kBlock;
          }
          if (at_warp && at_block) fail("some threads of a warp wait at a barrier, others in a shuffle");
          again = at_warp > 0;
          if (again)
            for (unsigned i = warp; i < end; ++i)
              if (fibers[i].state == kWarp) fibers[i].state = kReady;
        }
      }
      for (unsigned i = 0; i < threads; ++i)
        if (fibers[i].state == kBlock) fibers[i].state = kReady, alive = true;
    }
    current = -1;
  }
};

inline Emulated& emulated() {
  static Emulated* e = new Emulated;
  return *e;
}

inline void Emulated::entry() {
  Emulated& e = emulated();
  e.body();
  e.fibers[static_cast<size_t>(e.current)].state = kDone;
  _longjmp(e.scheduler, 1);
}

template <bool kBarriers, class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, int64_t shared, cudaStream_t, A&&... args) {
  std::tuple<P...> kept(static_cast<P>(args)...);
  auto play = [kernel, grid, block, shared, kept] {
    Emulated& e = emulated();
    gridDim = grid, blockDim = block;
    e.shared.assign(static_cast<size_t>(shared) + 64, 0xff);  // garbage: floats are NaN
    const unsigned threads = block.x * block.y * block.z;
    if (threads > 1024 || !threads || !grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535)
      Emulated::fail("a grid out of CUDA's limits");
    e.body = [&] { std::apply(kernel, kept); };
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
      for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
          if constexpr (kBarriers) e.run_block(threads);
          else
            for (unsigned i = 0; i < threads; ++i) {
              threadIdx = dim3(i % block.x, i / block.x % block.y, i / block.x / block.y);
              std::apply(kernel, kept);
            }
        }
    e.body = nullptr;
  };
  Emulated& e = emulated();
  const std::lock_guard<std::recursive_mutex> lock(e.mutex);
  if (e.capture) e.capture->push_back(play);
  else play();
  return cudaSuccess;
}

// binary16 and bfloat16 by their bits, rounded to nearest even.
struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};
inline float from_bits(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline uint32_t to_bits(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}
inline float to_float(Bfloat v) { return from_bits(static_cast<uint32_t>(v.bits) << 16); }
inline float to_float(Half v) {
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000) << 16, exponent = v.bits >> 10 & 31, mantissa = v.bits & 1023;
  if (exponent == 31) return from_bits(sign | 0x7f800000 | mantissa << 13);
  if (exponent) return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
  return from_bits(sign | to_bits(static_cast<float>(mantissa) * 0x1p-24f));
}
template <class T>
inline T from_float(float v);
template <>
inline Bfloat from_float<Bfloat>(float v) {
  const uint32_t bits = to_bits(v);
  if (v != v) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline Half from_float<Half>(float v) {
  const uint32_t sign = to_bits(v) >> 16 & 0x8000;
  const float a = std::fabs(v);
  if (v != v) return {0x7fff};
  if (a >= 65520.f) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (a < 0x1p-14f) return {static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(a * 0x1p24f)))};
  const uint32_t bits = to_bits(a);
  return {static_cast<uint16_t>(sign | (((bits + 0xfff + (bits >> 13 & 1)) >> 13) - (112u << 10)))};
}

template <class T>
inline T exchange(T v, int lane_of_source) {
  Emulated& e = emulated();
  const int me = e.current;
  std::memcpy(&e.slots[me], &v, sizeof v);
  e.wait(Emulated::kWarp);
  T got;
  std::memcpy(&got, &e.slots[me / 32 * 32 + (lane_of_source & 31)], sizeof got);
  e.wait(Emulated::kWarp);
  return got;
}

}  // namespace ck::cuda

inline void __syncthreads() { ck::cuda::emulated().wait(ck::cuda::Emulated::kBlock); }
inline void __syncwarp(unsigned = ~0u) { ck::cuda::emulated().wait(ck::cuda::Emulated::kWarp); }
template <class T>
inline T __shfl_xor_sync(unsigned, T v, int mask) {
  return ck::cuda::exchange(v, (ck::cuda::emulated().current & 31) ^ mask);
}

// The runtime, as far as the plan and the rows use it.
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  auto play = [=] { std::memmove(to, from, bytes); };
  ck::cuda::Emulated& e = ck::cuda::emulated();
  const std::lock_guard<std::recursive_mutex> lock(e.mutex);
  if (e.capture) e.capture->push_back(play);
  else play();
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  auto play = [=] { std::memset(to, value, bytes); };
  ck::cuda::Emulated& e = ck::cuda::emulated();
  const std::lock_guard<std::recursive_mutex> lock(e.mutex);
  if (e.capture) e.capture->push_back(play);
  else play();
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t e) { return e == cudaSuccess ? "no error" : "an emulated error"; }
