// sm90_conv.cuh: what the sm_90a convolutions share: the walk over the depth, rings of stages, the product, the way out.
//
// All are warp-specialised: TMA producers, wgmma consumers, mbarrier rings between them. Results are the same bits every time.
//
//            full ->                     ready / written
//     TMA  ==stages==>  consumer wgs  ====panels====>  TMA          one elected thread serves each ring
//            <- empty                    (residual comes back in the same panels)
//
// T is Half, Bfloat, or float for TF32: a row of a tile is 128 (or 64) bytes, a matrix instruction takes 32 bytes of depth, whatever the type.
#pragma once
#include "cuda/sm90.cuh"
#include "cuda/sm90_plan.h"

namespace ck::cuda {

// --- descriptors of operands in shared memory ------------------------------------------------------------------------------------------
// Bits (PTX ISA, "Matrix Descriptor Format"; lengths in units of 16 bytes): address [0,14), leading offset [16,30), stride offset [32,46), layout [62,64).

// A K-major tile whose rows are one swizzle span long (kRow = 128 or 64 bytes), `group` bytes from one group of 8 rows to the next.
// A step of 32 bytes along the depth adds 2.
template <int kRow>
CK_DEVICE uint64_t swizzled_descriptor(uint32_t address, uint32_t group = 8 * kRow) {
  static_assert(kRow == 128 || kRow == 64, "");
  return uint64_t((address & 0x3FFFF) >> 4) | uint64_t(1) << 16 | uint64_t(group >> 4) << 32 | uint64_t(kRow == 128 ? 1 : 2) << 62;
}
// Without a swizzle: core matrices of 8 rows x 16 bytes (rows 16 bytes apart), `step` bytes from one to the next along the depth, `group` along M.
CK_DEVICE uint64_t plain_descriptor(uint32_t address, uint32_t step, uint32_t group) {
  return uint64_t((address & 0x3FFFF) >> 4) | uint64_t(step >> 4) << 16 | uint64_t(group >> 4) << 32;
}

// --- the walk --------------------------------------------------------------------------------------------------------------------------

// First input pixel of a tile: where TMA starts its walk.
struct PixelOrigin {
  int w, h, n;
  CK_DEV PixelOrigin(const Sm90Args& g, int m) {
    const int row = m / g.q;
    n = row / g.p;
    w = (m - row * g.q) * g.stride_w - g.pad_w;
    h = (row - n * g.p) * g.stride_h - g.pad_h;
  }
};

// The depth: all taps of one block of channels, then the next block (neighbouring taps hit the same lines of L2).
struct DepthCursor {
  int c_block, tap, r, s;
  CK_DEV DepthCursor(const Sm90Args& g, int k_block) {
    c_block = k_block / g.taps;
    tap = k_block - c_block * g.taps;
    r = tap / g.s;
    s = tap - r * g.s;
  }
  CK_DEV void next(const Sm90Args& g) {
    ++tap;
    if (++s == g.s) s = 0, ++r;
    if (tap == g.taps) tap = r = 0, ++c_block;
  }
};

// One stage: kDepth channels of one tap, of the tile's pixels and of its filters.
template <int kDepth>
CK_DEV void load_stage(const Sm90Args& g, const CUtensorMap* map_x, const CUtensorMap* map_w, uint32_t shared_a, uint32_t shared_b, uint32_t full,
                       const DepthCursor& d, const PixelOrigin& o, int m0, int n0) {
  if (g.pointwise) tma_load_2d(shared_a, map_x, full, d.c_block * kDepth, m0);
  else
    tma_load_im2col(shared_a, map_x, full, d.c_block * kDepth, o.w, o.h, o.n, static_cast<uint16_t>(d.s * g.dil_w),
                    static_cast<uint16_t>(d.r * g.dil_h));
  tma_load_3d(shared_b, map_w, full, d.c_block * kDepth, d.tap, n0);
}

// A ring of stages: index and the parity of its current phase, after `step` steps.
template <int kStages>
struct Ring {
  int stage;
  uint32_t parity;
  CK_DEV explicit Ring(int step) : stage(step % kStages), parity((step / kStages) & 1) {}
  CK_DEV void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// --- the product -----------------------------------------------------------------------------------------------------------------------

// One warpgroup's product over `k_blocks` stages; returns with every stage it used handed back. `all_issued` is called when the last wgmma is on
// its way. Each turn is fence, wgmma, commit, wait 1: without that order ptxas serialises the instructions (C7515, C7520).
template <class T, int kN, int kMi, int kRow, int kStages, class F>
CK_DEV void mma_loop(float (&acc)[kMi][kN / 2], uint32_t shared_a, uint32_t shared_b, int stage_bytes, uint32_t full, uint32_t empty,
                     Ring<kStages>& ring, int k_blocks, F all_issued) {
  const bool elected = threadIdx.x % 32 == 0;
  uint32_t previous = 0;
  for (int kb = 0; kb < k_blocks; ++kb) {
    barrier_wait(full + 8 * ring.stage, ring.parity);
    const uint64_t a = swizzled_descriptor<kRow>(shared_a + ring.stage * stage_bytes);
    const uint64_t b = swizzled_descriptor<kRow>(shared_b + ring.stage * stage_bytes);
    wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < kRow / 32; ++kk)
#pragma unroll
      for (int mi = 0; mi < kMi; ++mi) wgmma<T, kN>(acc[mi], a + kk * 2 + mi * (64 * kRow / 16), b + kk * 2, kb + kk);
    wgmma_commit();
    wgmma_wait<1>();  // the block before this one is done: its stage may be refilled
    if (kb > 0 && elected) barrier_arrive(previous);
    previous = empty + 8 * ring.stage;
    ring.next();
  }
  all_issued();
  wgmma_wait<0>();
  if (elected) barrier_arrive(previous);
}

// --- the way out: panels of 64 rows x 128 bytes of y pass through a ring in shared memory, one ring for each consumer warpgroup -----------------

constexpr int kPanelBytes = 64 * 128;  // swizzled
template <class T>
constexpr int kPanelColumns = 128 / static_cast<int>(sizeof(T));

// The thread that owns a ring hands free panels to the consumer (`ready`), with the residual loaded into them if there is one, and stores what the
// consumer has `written`. Residuals are thus fetched kPanels ahead, under the main loop, and consumers need no barrier among themselves.
template <int kPanels, class Load, class Store>
CK_DEV void run_output_ring(int panels, uint32_t ready, uint32_t written, uint32_t ring_base, bool residual, Load load, Store store) {
  auto hand_out = [&](int j) {
    const int slot = j % kPanels;
    if (residual) {
      barrier_arrive_expect(ready + 8 * slot, kPanelBytes);
      load(j, ring_base + slot * kPanelBytes, ready + 8 * slot);
    } else {
      barrier_arrive(ready + 8 * slot);
    }
  };
  for (int j = 0; j < kPanels && j < panels; ++j) hand_out(j);
  constexpr int kLag = kPanels > 1 ? 1 : 0;  // stores left in flight while the panel before them is handed out
  for (int j = 0; j < panels; ++j) {
    barrier_wait(written + 8 * (j % kPanels), (j / kPanels) & 1);
    store(j, ring_base + j % kPanels * kPanelBytes);
    tma_store_commit();
    const int refill = j - kLag + kPanels;
    if (j >= kLag && refill < panels) {
      tma_store_wait_read<kLag>();
      hand_out(refill);
    }
  }
  tma_store_wait_read<0>();  // shared memory must outlive the last store's reads
}

// 16 values of each lane through any activation. The switch over its kinds is large: a loop that is not unrolled keeps one copy of it, and shared
// memory, unlike registers, can be indexed by a loop. `scratch` = 2 KB of the warp's own.
CK_DEV void activate_in_shared(float (&v)[16], uint32_t scratch, const ActivationF& act) {
  const uint32_t mine = scratch + 4 * lane_index();
#pragma unroll
  for (int i = 0; i < 16; ++i) store_shared(mine + 128 * i, v[i]);
#pragma unroll 1
  for (int i = 0; i < 16; ++i) store_shared(mine + 128 * i, activate(load_shared(mine + 128 * i), act));
#pragma unroll
  for (int i = 0; i < 16; ++i) v[i] = load_shared(mine + 128 * i);
}

// A consumer warpgroup's side: sums -> scale, bias, residual, activation -> panels.
// kAnyAct false: a clamp (which also stands for no activation), inline; true: any activation, through the warp's 16 rows of the panel as scratch.
template <class T, int kN, int kMi, bool kAnyAct, int kPanels>
CK_DEV void write_tile(const float (&acc)[kMi][kN / 2], const Sm90Args& g, int n0, uint32_t ring_base, uint32_t ready, uint32_t written,
                       Ring<kPanels>& out) {
  constexpr bool kHalf = sizeof(T) == 2;
  constexpr int kBlocks = kPanelColumns<T> / 8;  // of 8 columns, in a panel
  constexpr int kPart = kAnyAct ? 4 : 2;         // blocks at a time
  const int lane = lane_index();
  const int warp_row = threadIdx.x / 32 % 4 * 16;
  // 16 bits: this lane's row for stmatrix and ldmatrix, four 8x8 blocks = rows {0-7, 8-15} x two chunks of 8 columns
  const int row = warp_row + lane % 16, chunk = lane / 16;
  // float: this lane's rows are t/4 and t/4 + 8, its pair of columns half a chunk
  const int pair_row = warp_row + lane / 4;
  const int first_col = n0 + lane % 4 * 2;  // of this lane's pair in a block of 8 columns
  const ActivationF act{static_cast<Act>(g.act), g.act_a, g.act_b};
#pragma unroll
  for (int mi = 0; mi < kMi; ++mi)
#pragma unroll
    for (int panel = 0; panel < kN / kPanelColumns<T>; ++panel) {
      float2 scale[kBlocks], bias[kBlocks];
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
        const int col = first_col + panel * kPanelColumns<T> + j * 8;
        scale[j] = g.scale && col < g.k ? __ldg(reinterpret_cast<const float2*>(g.scale + col)) : make_float2(1.f, 1.f);
        bias[j] = g.bias && col < g.k ? __ldg(reinterpret_cast<const float2*>(g.bias + col)) : make_float2(0.f, 0.f);
      }
      barrier_wait(ready + 8 * out.stage, out.parity);
      const uint32_t base = ring_base + out.stage * kPanelBytes;
      auto half_address = [&](int j) { return base + row * 128 + (((chunk + j) ^ (row & 7)) << 4); };
      auto float_address = [&](int j, int h) {
        const int r = pair_row + 8 * h, c = 2 * j + lane % 4 / 2;
        return base + r * 128 + ((c ^ (r & 7)) << 4) + (lane & 1) * 8;
      };
      const float* sums = &acc[mi][panel * (kPanelColumns<T> / 2)];  // [block][row half][2]

      uint32_t packed[kHalf ? kBlocks / 2 : 1][4];  // 16 bits: the residual, then the result, of two blocks each; index h & 1: row half
      float2 pairs[kHalf ? 1 : kBlocks][2];         // float: the same, [block][row half]
      if constexpr (kAnyAct) {                      // the panel will be scratch: all lanes take their residual out first
        if (g.residual) {
          if constexpr (kHalf) {
#pragma unroll
            for (int j = 0; j < kBlocks; j += 2) ldmatrix_x4(half_address(j), packed[j / 2]);
          } else {
#pragma unroll
            for (int j = 0; j < kBlocks; ++j)
#pragma unroll
              for (int h = 0; h < 2; ++h) pairs[j][h] = load_shared2(float_address(j, h));
          }
        }
        __syncwarp();
      }
#pragma unroll
      for (int part = 0; part < kBlocks; part += kPart) {
        float v[4 * kPart];
#pragma unroll
        for (int j = part; j < part + kPart; ++j) {
          if constexpr (!kAnyAct && kHalf) {
            if (g.residual && j % 2 == 0) ldmatrix_x4(half_address(j), packed[j / 2]);
          }
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            float lo = fmaf(sums[4 * j + 2 * h], scale[j].x, bias[j].x), hi = fmaf(sums[4 * j + 2 * h + 1], scale[j].y, bias[j].y);
            if (g.residual) {
              float2 r;
              if constexpr (kHalf) r = unpack_pair<T>(packed[j / 2][j % 2 * 2 + h]);
              else r = kAnyAct ? pairs[j][h] : load_shared2(float_address(j, h));
              lo += r.x, hi += r.y;
            }
            v[(j - part) * 4 + 2 * h] = lo, v[(j - part) * 4 + 2 * h + 1] = hi;
          }
        }
        if constexpr (kAnyAct) {
          activate_in_shared(v, base + warp_row * 128, act);
        } else {
#pragma unroll
          for (int i = 0; i < 4 * kPart; ++i) v[i] = clamp(v[i], act.a, act.b);
        }
#pragma unroll
        for (int j = part; j < part + kPart; ++j)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float lo = v[(j - part) * 4 + 2 * h], hi = v[(j - part) * 4 + 2 * h + 1];
            if constexpr (kHalf) packed[j / 2][j % 2 * 2 + h] = pack_pair<T>(lo, hi);
            else pairs[j][h] = make_float2(lo, hi);
            if constexpr (!kAnyAct) {
              if constexpr (kHalf) {
                if (j % 2 && h) stmatrix_x4(half_address(j - 1), packed[j / 2]);
              } else {
                store_shared(float_address(j, h), pairs[j][h]);
              }
            }
          }
      }
      if constexpr (kAnyAct) {
        __syncwarp();  // nobody's scratch is needed any more
        if constexpr (kHalf) {
#pragma unroll
          for (int j = 0; j < kBlocks; j += 2) stmatrix_x4(half_address(j), packed[j / 2]);
        } else {
#pragma unroll
          for (int j = 0; j < kBlocks; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h) store_shared(float_address(j, h), pairs[j][h]);
        }
      }
      fence_async_shared();  // make the panel visible to TMA ...
      __syncwarp();          // ... by every lane, before one of them says so
      if (lane == 0) barrier_arrive(written + 8 * out.stage);
      out.next();
    }
}

}  // namespace ck::cuda
