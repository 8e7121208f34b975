// conv_sm90_cluster.cu: small convolutions (N = 1, 7x7 maps), compute capability 9.0: half, bfloat16, TF32. Split sums without a workspace.
//
// Computes  y[m,k] = act(scale[k] * sum_{r,s,c} x(m; r,s,c) * w[k,r,s,c] + bias[k] + residual[m,k]),  m = (n,p,q), sums in float
// Layout    x NHWC; w K R S C (packed once); y NPQK
// Tiling    a cluster of 1-16 blocks computes one 64 x kN tile, each block a contiguous slice of the depth:
//
//             block 0  |#####                |  partial tile in shared memory  \   block r adds up, in rank order, its share of
//             block 1  |     #####           |                                  >  the tile's rows from all blocks' memories,
//             block 2  |          #####      |                                 /   applies the epilogue and writes them
//
//           warps 0-3 multiply, warp 4 loads. The order of sums is fixed: the same bits every time
// Cost      2*NPQ*K*RSC flop over all SMs, and about 1.5 us more than conv_sm90_persistent for the exchange
// Refuses   what conv_sm90_persistent does; more tiles than a grid of clusters has
// Source    CUDA C++ Programming Guide, "Distributed Shared Memory"
// Tried     clusters do not tile the device: ask cudaOccupancyMaxActiveClusters (times step up as if fewer than 16 clusters of 8, and fewer than 8
//           of 16, ran at once)
#include "cuda/sm90_conv.cuh"
#include "cuda/sm90_rows.cuh"

namespace ck::cuda {
namespace {

template <class T_, int kN_, int kStages_>
struct Config {
  using T = T_;
  static constexpr int kM = 64, kN = kN_, kRow = 128, kStages = kStages_, kDepth = kRow / static_cast<int>(sizeof(T));
  static constexpr int kABytes = kM * kRow, kStageBytes = kABytes + kN * kRow;
  static constexpr int kPitch = kN + 8;  // floats of a row of the partial tile; + 8 spreads the rows over the banks
  static constexpr int kPartOffset = kStages * kStageBytes;
  static constexpr int kBarrierOffset = kPartOffset + kM * kPitch * 4;
  static constexpr int kShared = kBarrierOffset + 16 * kStages;
  static constexpr int kThreads = 160;
  static_assert(kShared <= kSm90Shared, "too much shared memory");
};

template <class T>
CK_DEV float4 load_four(const void* base, int64_t at) {
  if constexpr (sizeof(T) == 2) {
    const uint2 u = *reinterpret_cast<const uint2*>(static_cast<const T*>(base) + at);
    const float2 a = unpack_pair<T>(u.x), b = unpack_pair<T>(u.y);
    return make_float4(a.x, a.y, b.x, b.y);
  } else {
    return *reinterpret_cast<const float4*>(static_cast<const T*>(base) + at);
  }
}
template <class T>
CK_DEV void store_four(void* base, int64_t at, float4 v) {
  if constexpr (sizeof(T) == 2)
    *reinterpret_cast<uint2*>(static_cast<T*>(base) + at) = make_uint2(pack_pair<T>(v.x, v.y), pack_pair<T>(v.z, v.w));
  else *reinterpret_cast<float4*>(static_cast<T*>(base) + at) = v;
}

template <class C>
__global__ void __launch_bounds__(C::kThreads)
    cluster(const __grid_constant__ CUtensorMap map_x, const __grid_constant__ CUtensorMap map_w, const __grid_constant__ Sm90Args g) {
  using T = typename C::T;
  uint8_t* const memory = dynamic_shared();
  const uint32_t base = shared_address(memory), full = base + C::kBarrierOffset, empty = full + 8 * C::kStages;
  const uint32_t part = base + C::kPartOffset;
  const int warp = warp_index(), lane = lane_index();
  const int rank = cluster_rank(), split = g.split;
  const int tile = static_cast<int>(blockIdx.x) / split;
  const int m0 = tile / g.tiles_n * C::kM, n0 = tile % g.tiles_n * C::kN;
  const int k_begin = static_cast<int>(static_cast<int64_t>(g.k_blocks) * rank / split);
  const int k_end = static_cast<int>(static_cast<int64_t>(g.k_blocks) * (rank + 1) / split);

  if (threadIdx.x == 128) {
    prefetch_map(&map_x), prefetch_map(&map_w);
    for (int i = 0; i < C::kStages; ++i) barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, 4);
    fence_barrier_init();
  }
  __syncthreads();

  if (warp == 4) {
    if (lane == 0) {
      Ring<C::kStages> ring(0);
      const PixelOrigin origin(g, m0);
      DepthCursor depth(g, k_begin);
      for (int kb = k_begin; kb < k_end; ++kb) {
        barrier_wait(empty + 8 * ring.stage, ring.parity ^ 1);
        barrier_arrive_expect(full + 8 * ring.stage, C::kStageBytes);
        const uint32_t a = base + ring.stage * C::kStageBytes;
        load_stage<C::kDepth>(g, &map_x, &map_w, a, a + C::kABytes, full + 8 * ring.stage, depth, origin, m0, n0);
        depth.next(g);
        ring.next();
      }
    }
    __syncwarp();
  } else {
    float acc[1][C::kN / 2];
#pragma unroll
    for (int j = 0; j < C::kN / 2; ++j) acc[0][j] = 0.f;
    Ring<C::kStages> ring(0);
    if (k_end > k_begin)
      mma_loop<T, C::kN, 1, C::kRow, C::kStages>(acc, base, base + C::kABytes, C::kStageBytes, full, empty, ring, k_end - k_begin, [] {});
    float* dst = reinterpret_cast<float*>(memory + C::kPartOffset) + (warp * 16 + lane / 4) * C::kPitch + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < C::kN / 8; ++j) {
      *reinterpret_cast<float2*>(dst + j * 8) = make_float2(acc[0][4 * j], acc[0][4 * j + 1]);
      *reinterpret_cast<float2*>(dst + 8 * C::kPitch + j * 8) = make_float2(acc[0][4 * j + 2], acc[0][4 * j + 3]);
    }
  }
  cluster_arrive();
  cluster_wait();

  const ActivationF act{static_cast<Act>(g.act), g.act_a, g.act_b};
  const int rows = C::kM / split;  // this block's share
  for (int e = threadIdx.x; e < rows * (C::kN / 4); e += C::kThreads) {
    const int row = rank * rows + e / (C::kN / 4), col = e % (C::kN / 4) * 4;
    if (m0 + row >= g.m || n0 + col >= g.k) continue;
    float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
    for (int r0 = 0; r0 < split; r0 += 4) {  // four remote loads in flight
      float4 a[4];
#pragma unroll
      for (int r = 0; r < 4; ++r)
        if (r0 + r < split) a[r] = load_cluster(part + (row * C::kPitch + col) * 4, r0 + r);
#pragma unroll
      for (int r = 0; r < 4; ++r)
        if (r0 + r < split) v.x += a[r].x, v.y += a[r].y, v.z += a[r].z, v.w += a[r].w;
    }
    if (g.scale) {
      const float4 a = __ldg(reinterpret_cast<const float4*>(g.scale + n0 + col));
      v.x *= a.x, v.y *= a.y, v.z *= a.z, v.w *= a.w;
    }
    if (g.bias) {
      const float4 a = __ldg(reinterpret_cast<const float4*>(g.bias + n0 + col));
      v.x += a.x, v.y += a.y, v.z += a.z, v.w += a.w;
    }
    if (g.residual) {
      const float4 a = load_four<T>(g.residual_data, (m0 + row) * g.residual_pixel + n0 + col);
      v.x += a.x, v.y += a.y, v.z += a.z, v.w += a.w;
    }
    if (act.kind == Act::kClamp) {
      v.x = clamp(v.x, act.a, act.b), v.y = clamp(v.y, act.a, act.b), v.z = clamp(v.z, act.a, act.b), v.w = clamp(v.w, act.a, act.b);
    } else {
      v.x = activate(v.x, act), v.y = activate(v.y, act), v.z = activate(v.z, act), v.w = activate(v.w, act);
    }
    store_four<T>(g.y, (m0 + row) * g.y_pixel + n0 + col, v);
  }
  __syncwarp();
  cluster_arrive();  // nobody leaves while a peer may still read its partial tile
  cluster_wait();
}

// clang-format off
template <class T> using Cluster64x64 = Config<T, 64, 8>;
template <class T> using Cluster64x128 = Config<T, 128, 6>;
// clang-format on

template <template <class> class C>
Sm90Variant variant(const char* name, float start, float block, float tile, float split) {
  using H = C<Half>;
  return {name,
          H::kM,
          H::kN,
          H::kRow,
          H::kThreads,
          H::kShared,
          1,
          true,
          start,
          block,
          tile,
          split,
          {reinterpret_cast<const void*>(&cluster<C<Half>>), reinterpret_cast<const void*>(&cluster<C<Bfloat>>),
           reinterpret_cast<const void*>(&cluster<C<float>>)}};
}

const Sm90Variant kVariants[] = {
    variant<Cluster64x64>("64x64", 2.14f, .187f, 2.01f, .023f),
    variant<Cluster64x128>("64x128", 1.65f, .230f, 3.21f, .023f),
};

const char* refuse(const ConvProblem& p, const Context& ctx) {
  if (const char* reason = refuse_sm90(p, ctx, true)) return reason;
  if (div_up(ctx.images * p.p * p.q, 64) * div_up(p.k, 64) * 16 > (int64_t{1} << 30))
    return "too many tiles: there is no use in splitting their sums";
  return choose_cluster(p, ctx).variant ? nullptr : "no cluster of this kernel fits the device";
}
double cost(const ConvProblem& p, const Context& ctx) { return choose_cluster(p, ctx).us; }
int64_t workspace_bytes(const ConvProblem&, const Context&) { return 0; }

cudaError_t run(const ConvProblem& p, const ConvArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  const Sm90Choice best = choose_cluster(p, ctx);
  return launch_cluster(p, a, ctx, *best.variant, best.split, stream);
}

}  // namespace

Sm90Variants cluster_variants() { return {kVariants, sizeof kVariants / sizeof *kVariants}; }

Sm90Choice choose_cluster(const ConvProblem& p, const Context& ctx) {
  Sm90Choice best{nullptr, 1, 1e30};
  for (const Sm90Variant& v : kVariants)
    for (int split = 1; split <= 16; split *= 2) {
      const int clusters = active_clusters(kernel_of(v, ctx), {split, v.threads, v.shared_bytes, split}, *ctx.device);
      if (clusters <= 0) continue;
      const double us = variant_us(v, p, ctx.images, element_bytes(ctx.precision), false, clusters, split);
      if (us < best.us) best = {&v, split, us};
    }
  return best;
}

cudaError_t launch_cluster(const ConvProblem& p, const ConvArgs& a, const Context& ctx, const Sm90Variant& v, int split,
                           cudaStream_t stream) {
  if (!ctx.images) return cudaSuccess;
  if (!is_matrix(a.y, p.p, p.q) || (a.residual.data && !is_matrix(a.residual, p.p, p.q))) return cudaErrorInvalidValue;
  const MapSpec::Type type = map_type(ctx.precision);
  Sm90Args g = sm90_args(p, ctx.images, element_bytes(ctx.precision), v, false);
  set_epilogue(g, p, a);
  g.pointwise = is_pointwise(p) && is_matrix(a.x, p.h, p.w);
  g.split = split;
  g.y = a.y.data, g.y_pixel = a.y.pixel;
  g.residual_data = a.residual.data, g.residual_pixel = a.residual.pixel;
  CUtensorMap x{}, w{};
  const int depth = 128 / element_bytes(ctx.precision);
  CK_TRY(encode(
      g.pointwise ? matrix_map(type, a.x, p.c, g.m, depth, v.tile_m) : im2col_map(type, p, ctx.images, a.x, v.row_bytes, v.tile_m), &x));
  CK_TRY(encode(filter_map(type, a.weights, p.c, g.taps, p.k, v.row_bytes, v.tile_n), &w));
  return launch_sm90(kernel_of(v, ctx), {g.tiles * split, v.threads, v.shared_bytes, split}, *ctx.device, stream, x, w, g);
}

extern const ConvKernel conv_sm90_cluster;
const ConvKernel conv_sm90_cluster = {"conv_sm90_cluster", refuse, cost, workspace_bytes, run, packed_krsc_bytes, pack_krsc};

}  // namespace ck::cuda
