// sm90.cuh: what compute capability 9.0 adds: TMA, mbarrier, wgmma, clusters. One function for each instruction, as in ptx.cuh.
//
// All of it has run on an H100 in the form that stands here. What had to be found out there, because the documents leave it open:
//   - im2col's corners and offsets are W first; expect_tx counts the whole box, its part outside the tensor included; a tile may start past the
//     last image (zeros)
//   - with a swizzle, a wgmma descriptor may start at any row, and its groups of 8 rows may lie any number of rows apart, with base_offset 0: the
//     hardware swizzles by address bits, as TMA does when it writes
//   - without swizzle the core matrices of A may overlap (16 bytes apart): an image is its own im2col matrix
//   - a remote mbarrier.arrive with .release.cluster in the main loop cost 28-43 %; no kernel here has one
#pragma once
#include <cuda.h>

#include "cuda/ptx.cuh"

namespace ck::cuda {

// --- mbarrier --------------------------------------------------------------------------------------------------------------------------

CK_DEV void barrier_init(uint32_t bar, uint32_t count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count)); }
CK_DEV void barrier_arrive(uint32_t bar) { asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory"); }
CK_DEV void barrier_arrive_expect(uint32_t bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
// Waits until the phase of the given parity has completed. A fresh barrier counts as having completed phase 1, so that a producer's first wait for
// an empty stage uses parity 1. Parities tell neighbouring phases apart and no others: nobody may wait for a phase two behind the current one.
CK_DEV void barrier_wait(uint32_t bar, uint32_t parity) {
  uint32_t done = 0;
  while (!done)
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(bar), "r"(parity)
        : "memory");
}
CK_DEV void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Orders this thread's accesses to shared memory before those of TMA.
CK_DEV void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --- TMA -------------------------------------------------------------------------------------------------------------------------------

CK_DEV void prefetch_map(const CUtensorMap* m) { asm volatile("prefetch.tensormap [%0];" ::"l"(m) : "memory"); }

// Pixels of x: c = first channel, (w, h, n) = first pixel of the tile in input coordinates, (dw, dh) = offset of the tap.
CK_DEV void tma_load_im2col(uint32_t dst, const CUtensorMap* m, uint32_t bar, int c, int w, int h, int n, uint16_t dw, uint16_t dh) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(dst),
      "l"(m), "r"(bar), "r"(c), "r"(w), "r"(h), "r"(n), "h"(dw), "h"(dh)
      : "memory");
}
CK_DEV void tma_load_2d(uint32_t dst, const CUtensorMap* m, uint32_t bar, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(dst),
               "l"(m), "r"(bar), "r"(x), "r"(y)
               : "memory");
}
CK_DEV void tma_load_3d(uint32_t dst, const CUtensorMap* m, uint32_t bar, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(dst), "l"(m),
      "r"(bar), "r"(x), "r"(y), "r"(z)
      : "memory");
}
CK_DEV void tma_load_4d(uint32_t dst, const CUtensorMap* m, uint32_t bar, int x, int y, int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(dst),
      "l"(m), "r"(bar), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}
CK_DEV void tma_store_2d(const CUtensorMap* m, uint32_t src, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(m), "r"(src), "r"(x), "r"(y)
               : "memory");
}
CK_DEV void tma_store_4d(const CUtensorMap* m, uint32_t src, int x, int y, int z, int w) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(m), "r"(src), "r"(x),
               "r"(y), "r"(z), "r"(w)
               : "memory");
}
// Plain bytes; addresses and count are multiples of 16.
CK_DEV void bulk_load(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst), "l"(src), "r"(bytes),
               "r"(bar)
               : "memory");
}
CK_DEV void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until at most kPending of this thread's committed stores have still to read shared memory.
template <int kPending>
CK_DEV void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Four 8x8 blocks of 16-bit elements, as ldmatrix_x4 reads them.
CK_DEV void stmatrix_x4(uint32_t addr, const uint32_t (&v)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared::cta.b16 [%0], {%1, %2, %3, %4};" ::"r"(addr), "r"(v[0]), "r"(v[1]), "r"(v[2]),
               "r"(v[3])
               : "memory");
}

// --- warpgroups and clusters -----------------------------------------------------------------------------------------------------------

// The registers that a producer does not need go to the consumers; all warps of a warpgroup take part.
template <int kCount>
CK_DEV void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
CK_DEV void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

CK_DEV int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
CK_DEV void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
CK_DEV void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
// Four floats from the shared memory of another block of the cluster, at this block's address `addr`.
CK_DEV float4 load_cluster(uint32_t addr, int rank) {
  float4 v;
  asm volatile(
      "{\n.reg .u32 a;\nmapa.shared::cluster.u32 a, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [a];\n}\n"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(addr), "r"(rank)
      : "memory");
  return v;
}

// --- wgmma -----------------------------------------------------------------------------------------------------------------------------

CK_DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
CK_DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
CK_DEV void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// After a wait: the compiler, which does not know what the wait is for, may read the sums no earlier than here.
template <int kCount>
CK_DEV void settle(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define CK_R32_0 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define CK_R32_1 \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define CK_R32_2 \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define CK_R32_3                                                                                                                         \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%" \
  "123,%124,%125,%126,%127"
#define CK_F8(d, i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define CK_F32(d, i) CK_F8(d, i), CK_F8(d, i + 8), CK_F8(d, i + 16), CK_F8(d, i + 24)
#define CK_WGMMA(SHAPE, TYPE, TRANSPOSE, REGS, A, B, P, ...)                                                                       \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P                                                                               \
               ", 0;\n"                                                                                                            \
               "wgmma.mma_async.sync.aligned." SHAPE ".f32." TYPE "." TYPE " {" REGS "}, " A ", " B ", p, 1, 1" TRANSPOSE ";\n}\n" \
               : __VA_ARGS__                                                                                                       \
               : "l"(a), "l"(b), "r"(accumulate))
#define CK_WGMMA_64(SHAPE, TYPE, TR) CK_WGMMA(SHAPE, TYPE, TR, CK_R32_0, "%32", "%33", "%34", CK_F32(d, 0))
#define CK_WGMMA_128(SHAPE, TYPE, TR) CK_WGMMA(SHAPE, TYPE, TR, CK_R32_0 "," CK_R32_1, "%64", "%65", "%66", CK_F32(d, 0), CK_F32(d, 32))
#define CK_WGMMA_256(SHAPE, TYPE, TR)                                                                                             \
  CK_WGMMA(SHAPE, TYPE, TR, CK_R32_0 "," CK_R32_1 "," CK_R32_2 "," CK_R32_3, "%128", "%129", "%130", CK_F32(d, 0), CK_F32(d, 32), \
           CK_F32(d, 64), CK_F32(d, 96))

// d (64 x kN, float) = a (64 rows x 32 bytes) * b^T (kN rows x 32 bytes), plus d when `accumulate`. T: Half, Bfloat, or float for TF32, which ignores
// the low 13 bits. Lane t of warp w of the warpgroup has d[4j + i]: row 16w + t/4 + 8*(i/2), column 8j + 2*(t%4) + i%2.
template <class T, int kN>
CK_DEV void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, int accumulate) {
  static_assert(kN == 64 || kN == 128 || kN == 256, "");
  if constexpr (std::is_same<T, Half>::value) {
    if constexpr (kN == 64) CK_WGMMA_64("m64n64k16", "f16", ", 0, 0");
    else if constexpr (kN == 128) CK_WGMMA_128("m64n128k16", "f16", ", 0, 0");
    else CK_WGMMA_256("m64n256k16", "f16", ", 0, 0");
  } else if constexpr (std::is_same<T, Bfloat>::value) {
    if constexpr (kN == 64) CK_WGMMA_64("m64n64k16", "bf16", ", 0, 0");
    else if constexpr (kN == 128) CK_WGMMA_128("m64n128k16", "bf16", ", 0, 0");
    else CK_WGMMA_256("m64n256k16", "bf16", ", 0, 0");
  } else {
    if constexpr (kN == 64) CK_WGMMA_64("m64n64k8", "tf32", "");
    else if constexpr (kN == 128) CK_WGMMA_128("m64n128k8", "tf32", "");
    else CK_WGMMA_256("m64n256k8", "tf32", "");
  }
}

}  // namespace ck::cuda
