// conv_sm90_halo.cu: convolution of stride 1 with few filters, compute capability 9.0: half, bfloat16, TF32.
//
// Computes  y[n,p,q,k] = act(scale[k] * sum_{r,s,c} x[n, p-ph+r*dh, q-pw+s*dw, c] * w[k,r,s,c] + bias[k] + residual), sums in float
// Layout    x NHWC; w K R S C (packed once); y NPQK
// Tiling    a tile is 2*kMi blocks of 8x8 output pixels. A block's input patch with its halo is loaded once for 128 bytes of channels, and every tap
//           reads the same patch through a shifted wgmma descriptor: a group of 8 rows of A is 8 neighbouring pixels, and the distance between
//           groups is one row of the patch
//
//             patch (3x3)  . . . . . . . . . .      tap (r,s) starts at patch + (r*dh*patch_w + s*dw) * 128 bytes
//                          . x x x x x x x x .      rows of A:  0-7 = the first row of x, 8-15 = the second ... (patch_w * 128 bytes on)
//                          . x x x x x x x x .
//
//           warp 0 loads patches, warp 3 filters (each its own ring), warps 1 and 2 own the output panels, warps 4-11 multiply
// Cost      2*NPQ*K*RSC flop; x once instead of R*S times, times (1 + 2/8)^2 for the halo of 3x3
// Refuses   what conv_sm90_persistent does, and: strides; 1x1; patches that do not fit twice into shared memory; activations other than clamps
// Source    ours; that descriptors may start and step anywhere was found out on the device (sm90.cuh)
// Tried     ResNet's 56x56x64, N=64, half, H100: 42 us by im2col, 32 us by halo
#include "cuda/sm90_conv.cuh"
#include "cuda/sm90_rows.cuh"

namespace ck::cuda {
namespace {

template <class T_, int kN_, int kMi_, int kFilterStages_, int kPanels_>
struct Config {
  using T = T_;
  static constexpr int kN = kN_, kMi = kMi_, kFilterStages = kFilterStages_, kPanels = kPanels_, kPatchStages = 2;
  static constexpr int kPatches = 2 * kMi, kFilterBytes = kN * 128, kThreads = 384, kDepth = 128 / static_cast<int>(sizeof(T));
  static constexpr int kPanelsAcross = kN / kPanelColumns<T>, kPanelsPerTile = kMi * kPanelsAcross;
  // barriers | filters | output panels | patches (their size is known at run time)
  static constexpr int kFilterOffset = 1024, kPanelOffset = kFilterOffset + kFilterStages * kFilterBytes;
  static constexpr int kPatchOffset = kPanelOffset + 2 * kPanels * kPanelBytes;
};

struct PixelBlock {
  int q, p, n;  // first output pixel and image
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    halo(const __grid_constant__ CUtensorMap map_x, const __grid_constant__ CUtensorMap map_w, const __grid_constant__ CUtensorMap map_y,
         const __grid_constant__ CUtensorMap map_residual, const __grid_constant__ Sm90Args g) {
  using T = typename C::T;
  const uint32_t base = shared_address(dynamic_shared());
  const uint32_t a_full = base, a_empty = a_full + 8 * C::kPatchStages, b_full = a_empty + 8 * C::kPatchStages;
  const uint32_t b_empty = b_full + 8 * C::kFilterStages, panel_ready = b_empty + 8 * C::kFilterStages;
  const uint32_t panel_written = panel_ready + 16 * C::kPanels;
  const int warp = warp_index(), lane = lane_index();

  if (threadIdx.x == 0) {
    prefetch_map(&map_x), prefetch_map(&map_w), prefetch_map(&map_y);
    for (int i = 0; i < C::kPatchStages; ++i) barrier_init(a_full + 8 * i, 1), barrier_init(a_empty + 8 * i, 8);
    for (int i = 0; i < C::kFilterStages; ++i) barrier_init(b_full + 8 * i, 1), barrier_init(b_empty + 8 * i, 8);
    for (int i = 0; i < 2 * C::kPanels; ++i) barrier_init(panel_ready + 8 * i, 1), barrier_init(panel_written + 8 * i, 4);
    fence_barrier_init();
  }
  __syncthreads();

  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  const int my_tiles = (g.tiles - block + blocks - 1) / blocks;
  const int c_blocks = g.k_blocks / g.taps;
  auto tile_patch = [&](int i) { return (block + i * blocks) / g.tiles_n * C::kPatches; };
  auto tile_n0 = [&](int i) { return (block + i * blocks) % g.tiles_n * C::kN; };
  auto pixels_at = [&](int b) {
    const int row = b / g.blocks_w, n = row / g.blocks_h;
    return PixelBlock{(b - row * g.blocks_w) * 8, (row - n * g.blocks_h) * 8, n};
  };

  if (warp < 4) {
    release_registers<40>();
    if (warp == 0 && lane == 0) {
      // ---- patches ----
      Ring<C::kPatchStages> ring(0);
      for (int i = 0; i < my_tiles; ++i)
        for (int cb = 0; cb < c_blocks; ++cb) {
          barrier_wait(a_empty + 8 * ring.stage, ring.parity ^ 1);
          barrier_arrive_expect(a_full + 8 * ring.stage, C::kPatches * g.patch_bytes);
          for (int b = 0; b < C::kPatches; ++b) {
            const PixelBlock at = pixels_at(tile_patch(i) + b);
            tma_load_4d(base + C::kPatchOffset + (ring.stage * C::kPatches + b) * g.patch_pitch, &map_x, a_full + 8 * ring.stage,
                        cb * C::kDepth, at.q - g.pad_w, at.p - g.pad_h, at.n);
          }
          ring.next();
        }
    } else if (warp == 3 && lane == 0) {
      // ---- filters ----
      Ring<C::kFilterStages> ring(0);
      for (int i = 0; i < my_tiles; ++i)
        for (int cb = 0; cb < c_blocks; ++cb)
          for (int tap = 0; tap < g.taps; ++tap) {
            barrier_wait(b_empty + 8 * ring.stage, ring.parity ^ 1);
            barrier_arrive_expect(b_full + 8 * ring.stage, C::kFilterBytes);
            tma_load_3d(base + C::kFilterOffset + ring.stage * C::kFilterBytes, &map_w, b_full + 8 * ring.stage, cb * C::kDepth, tap,
                        tile_n0(i));
            ring.next();
          }
    } else if ((warp == 1 || warp == 2) && lane == 0) {
      // ---- output panels of consumer wg ----
      const int wg = warp - 1;
      auto pixels_of = [&](int j) {
        return pixels_at(tile_patch(j / C::kPanelsPerTile) + wg * C::kMi + j % C::kPanelsPerTile / C::kPanelsAcross);
      };
      auto col_of = [&](int j) { return tile_n0(j / C::kPanelsPerTile) + j % C::kPanelsAcross * kPanelColumns<T>; };
      run_output_ring<C::kPanels>(
          my_tiles * C::kPanelsPerTile, panel_ready + wg * 8 * C::kPanels, panel_written + wg * 8 * C::kPanels,
          base + C::kPanelOffset + wg * C::kPanels * kPanelBytes, g.residual != 0,
          [&](int j, uint32_t dst, uint32_t bar) {
            const PixelBlock b = pixels_of(j);
            tma_load_4d(dst, &map_residual, bar, col_of(j), b.q, b.p, b.n);
          },
          [&](int j, uint32_t src) {
            const PixelBlock b = pixels_of(j);
            tma_store_4d(&map_y, src, col_of(j), b.q, b.p, b.n);
          });
    }
  } else {
    claim_registers<232>();
    const int wg = warp / 4 - 1;
    const bool elected = lane == 0;
    Ring<C::kPatchStages> ring_a(0);
    Ring<C::kFilterStages> ring_b(0);
    Ring<C::kPanels> out(0);
    for (int i = 0; i < my_tiles; ++i) {
      float acc[C::kMi][C::kN / 2];
      uint32_t previous_a = 0, previous_b = 0;
      for (int cb = 0; cb < c_blocks; ++cb) {
        barrier_wait(a_full + 8 * ring_a.stage, ring_a.parity);
        const uint32_t patch = base + C::kPatchOffset + (ring_a.stage * C::kPatches + wg * C::kMi) * g.patch_pitch;
        int r = 0, s = 0;
        for (int tap = 0; tap < g.taps; ++tap) {
          barrier_wait(b_full + 8 * ring_b.stage, ring_b.parity);
          const uint64_t a = swizzled_descriptor<128>(patch + (r * g.dil_h * g.patch_w + s * g.dil_w) * 128, g.patch_w * 128);
          const uint64_t b = swizzled_descriptor<128>(base + C::kFilterOffset + ring_b.stage * C::kFilterBytes);
          wgmma_fence();
#pragma unroll
          for (int kk = 0; kk < 4; ++kk)
#pragma unroll
            for (int mi = 0; mi < C::kMi; ++mi) wgmma<T, C::kN>(acc[mi], a + kk * 2 + mi * (g.patch_pitch >> 4), b + kk * 2, cb + tap + kk);
          wgmma_commit();
          wgmma_wait<1>();
          if (elected && previous_b) barrier_arrive(previous_b);
          if (elected && previous_a && tap == 0) barrier_arrive(previous_a);
          previous_b = b_empty + 8 * ring_b.stage;
          ring_b.next();
          if (++s == g.s) s = 0, ++r;
        }
        previous_a = a_empty + 8 * ring_a.stage;
        ring_a.next();
      }
      wgmma_wait<0>();
#pragma unroll
      for (int mi = 0; mi < C::kMi; ++mi) settle(acc[mi]);
      if (elected) barrier_arrive(previous_b), barrier_arrive(previous_a);
      write_tile<T, C::kN, C::kMi, false>(acc, g, tile_n0(i), base + C::kPanelOffset + wg * C::kPanels * kPanelBytes,
                                          panel_ready + wg * 8 * C::kPanels, panel_written + wg * 8 * C::kPanels, out);
    }
  }
}

// clang-format off
//                                                    kN   kMi filter stages, panels
template <class T> using Halo256x64 = Config<T, 64, 2, 4, 2>;
template <class T> using Halo256x128 = Config<T, 128, 2, 3, 2>;
template <class T> using Halo128x128 = Config<T, 128, 1, 4, 3>;
// clang-format on

template <template <class> class C>
Sm90Variant variant(const char* name, float start, float block, float tile) {
  using H = C<Half>;
  return {name,
          H::kPatches * 64,
          H::kN,
          128,
          H::kThreads,
          H::kPatchOffset,
          1,
          false,
          start,
          block,
          tile,
          0,
          {reinterpret_cast<const void*>(&halo<C<Half>>), reinterpret_cast<const void*>(&halo<C<Bfloat>>),
           reinterpret_cast<const void*>(&halo<C<float>>)}};
}

const Sm90Variant kVariants[] = {
    variant<Halo256x64>("256x64", 2.52f, .306f, 1.52f),
    variant<Halo256x128>("256x128", 2.39f, .587f, 2.38f),
    variant<Halo128x128>("128x128", 2.61f, .298f, 1.54f),
};

const char* refuse(const ConvProblem& p, const Context& ctx) {
  if (const char* reason = refuse_sm90(p, ctx, false)) return reason;
  if (p.stride_h != 1 || p.stride_w != 1) return "strides";
  if (p.r * p.s == 1) return "1x1: there is no halo";
  if (!is_clamp(p.act)) return "activations other than a clamp";
  if ((p.r - 1) * p.dil_h > 248 || (p.s - 1) * p.dil_w > 248 || !choose_halo(p, ctx).variant)
    return "the patches do not fit into shared memory";
  return nullptr;
}
double cost(const ConvProblem& p, const Context& ctx) { return choose_halo(p, ctx).us; }
int64_t workspace_bytes(const ConvProblem&, const Context&) { return 0; }

cudaError_t run(const ConvProblem& p, const ConvArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  return launch_halo(p, a, ctx, *choose_halo(p, ctx).variant, stream);
}

}  // namespace

Sm90Variants halo_variants() { return {kVariants, sizeof kVariants / sizeof *kVariants}; }

Sm90Choice choose_halo(const ConvProblem& p, const Context& ctx) {
  Sm90Choice best{nullptr, 1, 1e30};
  for (const Sm90Variant& v : kVariants) {
    if (halo_shared(v, p) > kSm90Shared) continue;
    const double us = variant_us(v, p, ctx.images, element_bytes(ctx.precision), true, ctx.device->multiprocessors, 1);
    if (us < best.us) best = {&v, 1, us};
  }
  return best;
}

cudaError_t launch_halo(const ConvProblem& p, const ConvArgs& a, const Context& ctx, const Sm90Variant& v, cudaStream_t stream) {
  if (!ctx.images) return cudaSuccess;
  const MapSpec::Type type = map_type(ctx.precision);
  const int depth = 128 / element_bytes(ctx.precision), n = static_cast<int>(ctx.images);
  Sm90Args g = sm90_args(p, ctx.images, element_bytes(ctx.precision), v, true);
  set_epilogue(g, p, a);
  CUtensorMap x{}, w{}, y{}, residual{};
  CK_TRY(encode(image_map(type, a.x, p.c, p.w, p.h, n, depth, g.patch_w, g.patch_bytes / 128 / g.patch_w), &x));
  CK_TRY(encode(filter_map(type, a.weights, p.c, g.taps, p.k, 128, v.tile_n), &w));
  CK_TRY(encode(image_map(output_type(ctx.precision), a.y, p.k, p.q, p.p, n, depth, 8, 8), &y));
  if (g.residual) CK_TRY(encode(image_map(output_type(ctx.precision), a.residual, p.k, p.q, p.p, n, depth, 8, 8), &residual));
  const int slots = ctx.device->multiprocessors;
  return launch_sm90(kernel_of(v, ctx), {g.tiles < slots ? g.tiles : slots, v.threads, static_cast<int>(halo_shared(v, p)), 1}, *ctx.device,
                     stream, x, w, y, residual, g);
}

extern const ConvKernel conv_sm90_halo;
const ConvKernel conv_sm90_halo = {"conv_sm90_halo", refuse, cost, workspace_bytes, run, packed_krsc_bytes, pack_krsc};

}  // namespace ck::cuda
