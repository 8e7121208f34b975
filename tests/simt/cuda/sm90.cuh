// sm90.cuh of the emulation: see csrc/cuda/sm90.cuh. A tensor map is the plan's MapSpec itself.
#pragma once
#include "cuda/ptx.cuh"
#include "cuda/sm90_plan.h"

using CUtensorMap = ck::cuda::MapSpec;

namespace simt {

void barrier_init(uint32_t bar, uint32_t count);
void barrier_arrive(uint32_t bar, uint32_t expected_bytes);
void barrier_wait(uint32_t bar, uint32_t parity);
void tma_load(uint32_t dst, const CUtensorMap* m, uint32_t bar, int c0, int c1, int c2, int c3, int dw = 0, int dh = 0);
void tma_store(const CUtensorMap* m, uint32_t src, int c0, int c1, int c2, int c3);
void tma_commit();
void tma_wait_read(int pending);
void bulk_load(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar);
int cluster_rank();
void cluster_arrive();
void cluster_wait();
uint8_t* cluster_shared(uint32_t address, int rank, int bytes);
void wgmma(Type type, int n, float* d, uint64_t a, uint64_t b, int accumulate);
void wgmma_commit();
void wgmma_wait(int pending);

}  // namespace simt

namespace ck::cuda {

inline void barrier_init(uint32_t bar, uint32_t count) { simt::barrier_init(bar, count); }
inline void barrier_arrive(uint32_t bar) { simt::barrier_arrive(bar, 0); }
inline void barrier_arrive_expect(uint32_t bar, uint32_t bytes) { simt::barrier_arrive(bar, bytes); }
inline void barrier_wait(uint32_t bar, uint32_t parity) { simt::barrier_wait(bar, parity); }
inline void fence_barrier_init() {}
inline void fence_async_shared() {}
inline void prefetch_map(const CUtensorMap*) {}
inline void tma_load_im2col(uint32_t dst, const CUtensorMap* m, uint32_t bar, int c, int w, int h, int n, uint16_t dw, uint16_t dh) {
  simt::tma_load(dst, m, bar, c, w, h, n, dw, dh);
}
inline void tma_load_2d(uint32_t dst, const CUtensorMap* m, uint32_t bar, int x, int y) { simt::tma_load(dst, m, bar, x, y, 0, 0); }
inline void tma_load_3d(uint32_t dst, const CUtensorMap* m, uint32_t bar, int x, int y, int z) { simt::tma_load(dst, m, bar, x, y, z, 0); }
inline void tma_load_4d(uint32_t dst, const CUtensorMap* m, uint32_t bar, int x, int y, int z, int w) {
  simt::tma_load(dst, m, bar, x, y, z, w);
}
inline void tma_store_2d(const CUtensorMap* m, uint32_t src, int x, int y) { simt::tma_store(m, src, x, y, 0, 0); }
inline void tma_store_4d(const CUtensorMap* m, uint32_t src, int x, int y, int z, int w) { simt::tma_store(m, src, x, y, z, w); }
inline void bulk_load(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar) { simt::bulk_load(dst, src, bytes, bar); }
inline void tma_store_commit() { simt::tma_commit(); }
template <int kPending>
void tma_store_wait_read() {
  simt::tma_wait_read(kPending);
}
inline void stmatrix_x4(uint32_t address, const uint32_t (&v)[4]) { simt::stmatrix(address, v); }
template <int>
void release_registers() {}
template <int>
void claim_registers() {}
inline int cluster_rank() { return simt::cluster_rank(); }
inline void cluster_arrive() { simt::cluster_arrive(); }
inline void cluster_wait() { simt::cluster_wait(); }
inline float4 load_cluster(uint32_t address, int rank) {
  float4 v;
  std::memcpy(&v, simt::cluster_shared(address, rank, 16), 16);
  return v;
}
inline void wgmma_fence() {}
inline void wgmma_commit() { simt::wgmma_commit(); }
template <int kPending>
void wgmma_wait() {
  simt::wgmma_wait(kPending);
}
template <int kCount>
void settle(float (&)[kCount]) {}
template <class T, int kN>
void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, int accumulate) {
  simt::wgmma(simt::kType<T>, kN, d, a, b, accumulate);
}

}  // namespace ck::cuda
