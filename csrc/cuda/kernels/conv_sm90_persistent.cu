// conv_sm90_persistent.cu: implicit GEMM for compute capability 9.0: half, bfloat16, TF32.
//
// Computes  y[m,k] = act(scale[k] * sum_{r,s,c} x(m; r,s,c) * w[k,r,s,c] + bias[k] + residual[m,k]),  m = (n,p,q), sums in float
// Layout    x NHWC; w K R S C (packed once); y NPQK
// Tiling    a block walks over output tiles; three or four warpgroups:
//
//             warp 0          fills the ring of input stages: tile_m pixels (TMA im2col) and tile_n filters, 128 bytes of channels of one tap
//             warps 1-3       each owns the ring of output panels of one consumer: fetches the residual into a free panel, stores it when written
//             warps 4-15      consumers, 64 x tile_n sums a warpgroup and step: together on one tile, or ping-pong, a tile each in turn, so
//                             that one's way out runs under the other's product
//
//           TMA's im2col mode walks the pixels of a tile across rows and images and fills what lies outside with zeros: padding, stride and
//           dilation cost no instructions
// Cost      2*NPQ*K*RSC flop; x is fetched R*S times, from L2: 4-5 cycles per 128-byte row of a pixel and SM, the limit at K = 64
// Refuses   float and 3xTF32 products; groups, volumes, transposed; channels or filters that are not whole 16 bytes; padding or a reach of 128
//           pixels, strides above 8 (im2col's limits). Activations other than clamps run in three of the shapes
// Source    CUDA 13 driver API, cuTensorMapEncodeIm2col; PTX ISA 9.0, wgmma; the structure follows CUTLASS' warp-specialised kernels
// Tried     (H100, N=64, half)
//           multicast of filters to pairs of blocks: nothing (128x256: 314 us with, 311 without; ping-pong lost 25 %)
//           192x128 with three consumers: 26 -> 22 us on 14x14x256, exactly one wave: more tile shapes pay more than a faster loop
//           taps inside channel blocks or outside: no clear difference
//           wgmma without wait 1 in each turn: serialised by ptxas, ResNet's conv1 120 us instead of 88
#include "cuda/sm90_conv.cuh"
#include "cuda/sm90_rows.cuh"

namespace ck::cuda {
namespace {

// Consumer warpgroups hold kMi x (64 x kN) sums each. Together all work on one tile of kGroups * kMi * 64 rows; in ping-pong mode each of two has a
// tile of kMi * 64 rows.
template <class T_, int kN_, int kMi_, int kRow_, int kStages_, int kPanels_, bool kPingPong_, int kBlocks_ = 1, int kGroups_ = 2,
          bool kAnyAct_ = false>
struct Config {
  using T = T_;
  static constexpr int kN = kN_, kMi = kMi_, kRow = kRow_, kStages = kStages_, kPanels = kPanels_, kBlocks = kBlocks_, kGroups = kGroups_;
  static constexpr bool kPingPong = kPingPong_, kAnyAct = kAnyAct_;
  static constexpr int kM = (kPingPong ? 1 : kGroups) * kMi * 64;
  static constexpr int kDepth = kRow / static_cast<int>(sizeof(T));
  static constexpr int kABytes = kM * kRow, kStageBytes = kABytes + kN * kRow;
  static constexpr int kPanelsAcross = kN / kPanelColumns<T>;
  static constexpr int kPanelsPerTile = kMi * kPanelsAcross;  // per warpgroup
  static constexpr int kPanelOffset = kStages * kStageBytes;
  static constexpr int kBarrierOffset = kPanelOffset + kGroups * kPanels * kPanelBytes;
  static constexpr int kShared = kBarrierOffset + 8 * (2 * kStages + 2 * kGroups * kPanels + 2);
  static constexpr int kThreads = 128 * (1 + kGroups);
  static_assert(kShared <= kSm90Shared, "too much shared memory");
  static_assert(kGroups == 2 || !kPingPong, "two take turns");
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocks)
    persistent(const __grid_constant__ CUtensorMap map_x, const __grid_constant__ CUtensorMap map_w,
               const __grid_constant__ CUtensorMap map_y, const __grid_constant__ CUtensorMap map_residual,
               const __grid_constant__ Sm90Args g) {
  using T = typename C::T;
  const uint32_t base = shared_address(dynamic_shared());
  const uint32_t full = base + C::kBarrierOffset, empty = full + 8 * C::kStages;
  const uint32_t panel_ready = empty + 8 * C::kStages, panel_written = panel_ready + C::kGroups * 8 * C::kPanels;
  const uint32_t turn = panel_written + C::kGroups * 8 * C::kPanels;
  const int warp = warp_index(), lane = lane_index();

  if (threadIdx.x == 0) {
    prefetch_map(&map_x), prefetch_map(&map_w), prefetch_map(&map_y);
    for (int i = 0; i < C::kStages; ++i) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, C::kPingPong ? 4 : 4 * C::kGroups);  // one arrival per consumer warp
    }
    for (int i = 0; i < C::kGroups * C::kPanels; ++i) {
      barrier_init(panel_ready + 8 * i, 1);
      barrier_init(panel_written + 8 * i, 4);
    }
    for (int i = 0; i < 2; ++i) barrier_init(turn + 8 * i, 4);
    fence_barrier_init();
  }
  __syncthreads();

  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  const int my_tiles = (g.tiles - block + blocks - 1) / blocks;
  auto tile_m0 = [&](int i) { return (block + i * blocks) / g.tiles_n * C::kM; };
  auto tile_n0 = [&](int i) { return (block + i * blocks) % g.tiles_n * C::kN; };

  if (warp < 4) {
    if constexpr (C::kBlocks == 1) release_registers<40>();
    if (warp == 0 && lane == 0) {
      // ---- input stages ----
      Ring<C::kStages> ring(0);
      for (int i = 0; i < my_tiles; ++i) {
        const int m0 = tile_m0(i), n0 = tile_n0(i);
        const PixelOrigin origin(g, m0);
        DepthCursor depth(g, 0);
        for (int kb = 0; kb < g.k_blocks; ++kb) {
          barrier_wait(empty + 8 * ring.stage, ring.parity ^ 1);
          barrier_arrive_expect(full + 8 * ring.stage, C::kStageBytes);
          const uint32_t a = base + ring.stage * C::kStageBytes;
          load_stage<C::kDepth>(g, &map_x, &map_w, a, a + C::kABytes, full + 8 * ring.stage, depth, origin, m0, n0);
          depth.next(g);
          ring.next();
        }
      }
    } else if (warp >= 1 && warp <= C::kGroups && lane == 0) {
      // ---- output panels of consumer wg ----
      const int wg = warp - 1;
      const int step = C::kPingPong ? 2 : 1, first = C::kPingPong ? wg : 0;
      const int panels = (my_tiles - first + step - 1) / step * C::kPanelsPerTile;
      const uint32_t ready = panel_ready + wg * 8 * C::kPanels, written = panel_written + wg * 8 * C::kPanels;
      const uint32_t ring_base = base + C::kPanelOffset + wg * C::kPanels * kPanelBytes;
      auto row_of = [&](int j) {
        const int sub = j % C::kPanelsPerTile / C::kPanelsAcross;
        return tile_m0(first + j / C::kPanelsPerTile * step) + ((C::kPingPong ? 0 : wg * C::kMi) + sub) * 64;
      };
      auto col_of = [&](int j) { return tile_n0(first + j / C::kPanelsPerTile * step) + j % C::kPanelsAcross * kPanelColumns<T>; };
      run_output_ring<C::kPanels>(
          panels, ready, written, ring_base, g.residual != 0,
          [&](int j, uint32_t dst, uint32_t bar) { tma_load_2d(dst, &map_residual, bar, col_of(j), row_of(j)); },
          [&](int j, uint32_t src) { tma_store_2d(&map_y, src, col_of(j), row_of(j)); });
    }
  } else {
    if constexpr (C::kBlocks == 1) claim_registers<C::kGroups == 3 ? 152 : 232>();  // 40 for the producers; the sum must fit 65536
    const int wg = warp / 4 - 1;
    const int step = C::kPingPong ? 2 : 1, first = C::kPingPong ? wg : 0;
    const uint32_t shared_a = base + (C::kPingPong ? 0 : wg * C::kMi * 64 * C::kRow), shared_b = base + C::kABytes;
    const uint32_t ready = panel_ready + wg * 8 * C::kPanels, written = panel_written + wg * 8 * C::kPanels;
    const uint32_t ring_base = base + C::kPanelOffset + wg * C::kPanels * kPanelBytes;
    Ring<C::kPanels> out(0);

    for (int i = first; i < my_tiles; i += step) {
      float acc[C::kMi][C::kN / 2];
      Ring<C::kStages> ring(i * g.k_blocks);
      // Ping-pong: the warpgroups take turns. A parity tells only neighbouring phases apart, so a warpgroup may wait for its first stage only
      // once the other has seen all of its own.
      if (C::kPingPong) barrier_wait(turn + 8 * wg, (i / 2 & 1) ^ (wg == 0));
      mma_loop<T, C::kN, C::kMi, C::kRow, C::kStages>(acc, shared_a, shared_b, C::kStageBytes, full, empty, ring, g.k_blocks, [&] {
        if (C::kPingPong && lane == 0) barrier_arrive(turn + 8 * (wg ^ 1));
      });
      write_tile<T, C::kN, C::kMi, C::kAnyAct>(acc, g, tile_n0(i), ring_base, ready, written, out);
    }
  }
}

// clang-format off
//                                                      kN   kMi kRow stages panels ping-pong blocks groups any activation
template <class T> using Coop128x256 = Config<T, 256, 1, 128, 4, 2, false>;
template <class T> using Coop256x128 = Config<T, 128, 2, 128, 4, 2, false>;
template <class T> using Coop192x128 = Config<T, 128, 1, 128, 4, 2, false, 1, 3>;
template <class T> using Coop128x128 = Config<T, 128, 1, 128, 5, 3, false>;
template <class T> using Ping128x128 = Config<T, 128, 2, 128, 5, 3, true>;
template <class T> using Ping64x256 = Config<T, 256, 1, 128, 4, 3, true>;
template <class T> using Coop256x64 = Config<T, 64, 2, 128, 4, 3, false>;
template <class T> using Ping128x64 = Config<T, 64, 2, 128, 7, 3, true>;
template <class T> using Twin128x64 = Config<T, 64, 1, 128, 4, 1, false, 2>;
template <class T> using Coop256x64Row64 = Config<T, 64, 2, 64, 8, 3, false>;
template <class T> using Coop128x128Row64 = Config<T, 128, 1, 64, 8, 3, false>;
template <class T> using Any128x128 = Config<T, 128, 1, 128, 5, 3, false, 1, 2, true>;
template <class T> using Any256x64 = Config<T, 64, 2, 128, 4, 3, false, 1, 2, true>;
template <class T> using Any128x64 = Config<T, 64, 2, 128, 7, 3, true, 1, 2, true>;
// clang-format on

template <template <class> class C>
Sm90Variant variant(const char* name, float start, float block, float tile) {
  using H = C<Half>;
  static_assert(H::kShared == C<float>::kShared, "the table holds for all types");
  return {name,
          H::kM,
          H::kN,
          H::kRow,
          H::kThreads,
          H::kShared,
          H::kBlocks,
          H::kAnyAct,
          start,
          block,
          tile,
          0,
          {reinterpret_cast<const void*>(&persistent<C<Half>>), reinterpret_cast<const void*>(&persistent<C<Bfloat>>),
           reinterpret_cast<const void*>(&persistent<C<float>>)}};
}

const Sm90Variant kVariants[] = {
    variant<Coop128x256>("128x256", 2.02f, .523f, 3.05f),
    variant<Coop256x128>("256x128", 1.50f, .546f, 3.30f),
    variant<Coop128x128>("128x128", 2.06f, .295f, 1.55f),
    variant<Ping128x128>("128x128 ping-pong", 3.09f, .288f, 1.01f),
    variant<Ping64x256>("64x256 ping-pong", 2.77f, .301f, 1.39f),
    variant<Coop256x64>("256x64", 1.80f, .364f, 1.44f),
    variant<Ping128x64>("128x64 ping-pong", 2.40f, .198f, .632f),
    variant<Twin128x64>("128x64 two to an SM", 2.18f, .197f, .636f),
    variant<Coop256x64Row64>("256x64 of 64-byte rows", 1.54f, .231f, 1.53f),
    variant<Coop128x128Row64>("128x128 of 64-byte rows", 1.90f, .204f, 1.44f),
    variant<Coop192x128>("192x128", 4.50f, .398f, 1.85f),
    variant<Any128x128>("128x128, any activation", 2.06f, .295f, 4.f),  // the way out is a guess
    variant<Any256x64>("256x64, any activation", 1.80f, .364f, 4.f),
    variant<Any128x64>("128x64 ping-pong, any activation", 2.40f, .198f, 3.f),
};

const char* refuse(const ConvProblem& p, const Context& ctx) { return refuse_sm90(p, ctx, true); }
double cost(const ConvProblem& p, const Context& ctx) { return choose_persistent(p, ctx).us; }
int64_t workspace_bytes(const ConvProblem&, const Context&) { return 0; }

cudaError_t run(const ConvProblem& p, const ConvArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  return launch_persistent(p, a, ctx, *choose_persistent(p, ctx).variant, stream);
}

}  // namespace

Sm90Variants persistent_variants() { return {kVariants, sizeof kVariants / sizeof *kVariants}; }

Sm90Choice choose_persistent(const ConvProblem& p, const Context& ctx) {
  Sm90Choice best{nullptr, 1, 1e30};
  for (const Sm90Variant& v : kVariants) {
    if (v.any_act == is_clamp(p.act)) continue;
    const double us = variant_us(v, p, ctx.images, element_bytes(ctx.precision), false, ctx.device->multiprocessors, 1);
    if (us < best.us) best = {&v, 1, us};
  }
  return best;
}

cudaError_t launch_persistent(const ConvProblem& p, const ConvArgs& a, const Context& ctx, const Sm90Variant& v, cudaStream_t stream) {
  if (!ctx.images) return cudaSuccess;
  if (!is_matrix(a.y, p.p, p.q) || (a.residual.data && !is_matrix(a.residual, p.p, p.q))) return cudaErrorInvalidValue;
  const int e = element_bytes(ctx.precision);
  const MapSpec::Type type = map_type(ctx.precision);
  Sm90Args g = sm90_args(p, ctx.images, e, v, false);
  set_epilogue(g, p, a);
  g.pointwise = is_pointwise(p) && is_matrix(a.x, p.h, p.w);
  CUtensorMap x{}, w{}, y{}, residual{};
  const int depth = v.row_bytes / e, panel = 128 / e;
  CK_TRY(encode(
      g.pointwise ? matrix_map(type, a.x, p.c, g.m, depth, v.tile_m) : im2col_map(type, p, ctx.images, a.x, v.row_bytes, v.tile_m), &x));
  CK_TRY(encode(filter_map(type, a.weights, p.c, g.taps, p.k, v.row_bytes, v.tile_n), &w));
  CK_TRY(encode(matrix_map(output_type(ctx.precision), a.y, p.k, g.m, panel, 64), &y));
  if (g.residual) CK_TRY(encode(matrix_map(output_type(ctx.precision), a.residual, p.k, g.m, panel, 64), &residual));
  const int64_t slots = int64_t{ctx.device->multiprocessors} * v.blocks_per_sm;
  return launch_sm90(kernel_of(v, ctx), {static_cast<int>(g.tiles < slots ? g.tiles : slots), v.threads, v.shared_bytes, 1}, *ctx.device,
                     stream, x, w, y, residual, g);
}

extern const ConvKernel conv_sm90_persistent;
const ConvKernel conv_sm90_persistent = {"conv_sm90_persistent", refuse, cost, workspace_bytes, run, packed_krsc_bytes, pack_krsc};

}  // namespace ck::cuda
