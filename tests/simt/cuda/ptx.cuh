// ptx.cuh of the emulation: see csrc/cuda/ptx.cuh.
#pragma once
#include <type_traits>

#include "cuda/common.cuh"

#define CK_DEV inline
#if !defined(CK_ASYNC_COPY)
#define CK_ASYNC_COPY 1
#endif

namespace simt {

void copy_later(uint32_t dst, const void* src, int bytes, int filled);  // cp.async: `bytes` from src, zeros up to `filled`
void copy_commit();
void copy_wait(int pending);
void ldmatrix(uint32_t address, uint32_t* v);
void stmatrix(uint32_t address, const uint32_t* v);
enum Type { kHalf, kBfloat, kTf32 };
void mma(Type type, float* d, const uint32_t* a, const uint32_t* b);
template <class T>
constexpr Type kType = std::is_same<T, ck::cuda::Half>::value     ? kHalf
                       : std::is_same<T, ck::cuda::Bfloat>::value ? kBfloat
                                                                  : kTf32;

}  // namespace simt

namespace ck::cuda {

inline uint8_t* dynamic_shared() { return simt::shared_base(); }
inline uint32_t shared_address(const void* p) { return simt::shared_offset(p); }
inline int lane_index() { return static_cast<int>(threadIdx.x % 32); }
inline int warp_index() { return static_cast<int>(threadIdx.x / 32); }

inline void copy_async_reused(uint32_t dst, const void* src, int bytes) { simt::copy_later(dst, src, bytes, 16); }
inline void copy_async(uint32_t dst, const void* src, int bytes) { simt::copy_later(dst, src, bytes, 16); }
inline void copy_async_word(uint32_t dst, const void* src, int bytes) { simt::copy_later(dst, src, bytes, 4); }
inline void copy_async_commit() { simt::copy_commit(); }
template <int kPending>
void copy_async_wait() {
  simt::copy_wait(kPending);
}

template <class V>
void store_shared(uint32_t dst, V v) {
  if (dst % sizeof v) simt::fail("a store to shared memory at %u is not aligned to %zu bytes", dst, sizeof v);
  std::memcpy(simt::shared(dst, sizeof v), &v, sizeof v);
}
template <class V>
V load_shared_as(uint32_t src) {
  V v;
  if (src % sizeof v) simt::fail("a load from shared memory at %u is not aligned to %zu bytes", src, sizeof v);
  std::memcpy(&v, simt::shared(src, sizeof v), sizeof v);
  return v;
}
inline float load_shared(uint32_t src) { return load_shared_as<float>(src); }
inline float2 load_shared2(uint32_t src) { return load_shared_as<float2>(src); }
inline void ldmatrix_x4(uint32_t address, uint32_t (&v)[4]) { simt::ldmatrix(address, v); }

inline uint32_t to_tf32(uint32_t v) { return (v & 0x7f800000) == 0x7f800000 ? v : (v + 0x1000) & ~uint32_t{0x1fff}; }
template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  simt::mma(simt::kType<T>, d, a, b);
}

inline float clamp(float v, float lo, float hi) {
  v = v < lo ? lo : v;
  return v > hi ? hi : v;
}
template <class T>
uint32_t pack_pair(float lo, float hi) {
  return uint32_t{from_float<T>(lo).bits} | uint32_t{from_float<T>(hi).bits} << 16;
}
template <class T>
float2 unpack_pair(uint32_t u) {
  return {to_float(T{static_cast<uint16_t>(u)}), to_float(T{static_cast<uint16_t>(u >> 16)})};
}

}  // namespace ck::cuda
