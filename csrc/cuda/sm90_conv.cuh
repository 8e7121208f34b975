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
#include "cuda/activate.cuh"
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
CK_DEV void load_stage(const Sm90Args& g, const CUtensorMap* map_x, const CUtensorMap* map_w, uint32_t shared_a, uint32_t shared_b,
                       uint32_t full, const DepthCursor& d, const PixelOrigin& o, int m0, int n0) {
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
#pragma unroll
  for (int mi = 0; mi < kMi; ++mi) settle(acc[mi]);
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

// A consumer warpgroup's side: sums -> scale, bias, residual, activation -> panels.
// kAnyAct false: a clamp (which also stands for no activation), inline; true: any activation, through the warp's 16 rows of the panel as scratch.
template <class T, int kN, int kMi, bool kAnyAct, int kPanels>
CK_DEV void write_tile(const float (&acc)[kMi][kN / 2], const Sm90Args& g, int n0, uint32_t ring_base, uint32_t ready, uint32_t written,
                       Ring<kPanels>& out) {
  constexpr bool kHalf = sizeof(T) == 2;
  constexpr int kColumns = kPanelColumns<T>, kBlocks = kColumns / 8;  // of a panel; blocks of 8 columns
  // Blocks whose scale and bias are read at once: all of a panel, ahead of the wait for it, or, for the registers, half of it.
  constexpr int kAhead = kMi * kN >= 256 ? kBlocks / 2 : kBlocks;
  static_assert(!kAnyAct || kAhead == kBlocks, "");
  const int lane = lane_index();
  const int warp_row = threadIdx.x / 32 % 4 * 16;
  // 16 bits: this lane's row for stmatrix and ldmatrix, which move four 8x8 blocks: rows {0-7, 8-15} x two chunks of 8 columns
  const int row = warp_row + lane % 16, chunk = lane / 16;
  // float: this lane's own pairs are in rows t/4 and t/4 + 8
  const int pair_row = warp_row + lane / 4;
  const int first_col = n0 + lane % 4 * 2;  // of this lane's pair in a block of 8 columns
#pragma unroll
  for (int mi = 0; mi < kMi; ++mi)
#pragma unroll
    for (int panel = 0; panel < kN / kColumns; ++panel) {
      float2 scale[kAhead], bias[kAhead];
      auto read_factors = [&](int first) {
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          const int col = first_col + panel * kColumns + (first + j) * 8;
          scale[j] = g.scale && col < g.k ? __ldg(reinterpret_cast<const float2*>(g.scale + col)) : make_float2(1.f, 1.f);
          bias[j] = g.bias && col < g.k ? __ldg(reinterpret_cast<const float2*>(g.bias + col)) : make_float2(0.f, 0.f);
        }
      };
      read_factors(0);
      barrier_wait(ready + 8 * out.stage, out.parity);
      const uint32_t base = ring_base + out.stage * kPanelBytes, row_address = base + row * 128;
      // Where 16-bit blocks j and j + 1 are, and where a lane's pair of block j, rows t/4 + 8*h, is; swizzled.
      auto blocks_at = [&](int j) { return row_address + (((chunk + j) ^ (row & 7)) << 4); };
      auto pair_at = [&](int j, int h) {
        const int r = pair_row + 8 * h;
        return base + r * 128 + (((2 * j + lane % 4 / 2) ^ (r & 7)) << 4) + (lane & 1) * 8;
      };
      auto sum = [&](int j, int h) {  // before the residual
        const float* d = &acc[mi][panel * (kColumns / 2) + j * 4 + h * 2];
        const float2 a = scale[j % kAhead], b = bias[j % kAhead];
        return make_float2(fmaf(d[0], a.x, b.x), fmaf(d[1], a.y, b.y));
      };
      if constexpr (!kAnyAct) {
#pragma unroll
        for (int j = 0; j < kBlocks; j += 2) {
          if (j && j % kAhead == 0) read_factors(j);
          uint32_t packed[4];
          if (kHalf && g.residual) ldmatrix_x4(blocks_at(j), packed);
#pragma unroll
          for (int i = 0; i < 4; ++i) {  // i & 1: rows 0-7 or 8-15; i >> 1: which 8 columns
            float2 v = sum(j + (i >> 1), i & 1);
            if (g.residual) {
              float2 r;
              if constexpr (kHalf) r = unpack_pair<T>(packed[i]);
              else r = load_shared2(pair_at(j + (i >> 1), i & 1));
              v.x += r.x, v.y += r.y;
            }
            v.x = clamp(v.x, g.act_a, g.act_b), v.y = clamp(v.y, g.act_a, g.act_b);
            if constexpr (kHalf) packed[i] = pack_pair<T>(v.x, v.y);
            else store_shared(pair_at(j + (i >> 1), i & 1), v);
          }
          if constexpr (kHalf) stmatrix_x4(blocks_at(j), packed);
        }
      } else {
        // The panel will be scratch: all lanes take their residuals out first, and bring the results in last.
        float2 pair[kBlocks][2];
#pragma unroll
        for (int j = 0; j < kBlocks; j += 2) {
          uint32_t packed[4];
          if (kHalf && g.residual) ldmatrix_x4(blocks_at(j), packed);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float2& v = pair[j + (i >> 1)][i & 1];
            v = sum(j + (i >> 1), i & 1);
            if (g.residual) {
              float2 r;
              if constexpr (kHalf) r = unpack_pair<T>(packed[i]);
              else r = load_shared2(pair_at(j + (i >> 1), i & 1));
              v.x += r.x, v.y += r.y;
            }
          }
        }
        __syncwarp();
        const ActivationF act{static_cast<Act>(g.act), g.act_a, g.act_b};
#pragma unroll
        for (int j = 0; j < kBlocks; j += 4) {
          float v[16];
#pragma unroll
          for (int i = 0; i < 16; ++i) v[i] = i % 2 ? pair[j + i / 4][i / 2 % 2].y : pair[j + i / 4][i / 2 % 2].x;
          activate_in_shared(v, base + warp_row * 128, act);
#pragma unroll
          for (int i = 0; i < 16; i += 2) pair[j + i / 4][i / 2 % 2] = make_float2(v[i], v[i + 1]);
        }
        __syncwarp();
#pragma unroll
        for (int j = 0; j < kBlocks; j += 2) {
          uint32_t packed[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float2 v = pair[j + (i >> 1)][i & 1];
            if constexpr (kHalf) packed[i] = pack_pair<T>(v.x, v.y);
            else store_shared(pair_at(j + (i >> 1), i & 1), v);
          }
          if constexpr (kHalf) stmatrix_x4(blocks_at(j), packed);
        }
      }
      fence_async_shared();  // make the panel visible to TMA ...
      __syncwarp();          // ... by every lane, before one of them says so
      if (lane == 0) barrier_arrive(written + 8 * out.stage);
      out.next();
    }
}

}  // namespace ck::cuda
