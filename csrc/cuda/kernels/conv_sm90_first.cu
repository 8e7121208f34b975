// conv_sm90_first.cu: convolutions of 1 to 4 channels, compute capability 9.0: half, bfloat16, TF32. The packed image is its own im2col matrix.
//
// Computes  y[n,p,q,k] = act(scale[k] * sum_{r,s,c} x[n, p*sh-ph+r, q*sw-pw+s, c] * w[k,r,s,c] + bias[k]), sums in float
// Layout    x NHWC, packed into the workspace (first_layer.cuh); w K R S*4 (or S*8) padded to 64 bytes, once; y NPQK
// Tiling    the rows of the packed image that 8 output rows need are contiguous: a band, brought in by one bulk copy. A block of 8x8 outputs is a tile:
//
//             band   row 0   |u0 u1 u2 u3 u4 ...|    u = 16 bytes; output q starts at unit q
//                    row 1   |                  |    A, 8 neighbouring outputs, 16 bytes of depth = 8 units side by side: a core matrix
//                    ...                             the next 16 bytes of depth = the same one unit on: core matrices overlap
//
//           With unswizzled descriptors (leading offset 16 bytes, stride offset one output row) wgmma thus builds im2col by itself. Where outputs are two
//           or four units apart (AlexNet, stride 4) a packed row has every second (fourth) unit in a plane of its own; then the leading offset is the
//           distance of the planes
//
//           64 filters stay in shared memory; more are a second dimension of the grid. Where there are fewer bands than SMs, several blocks share a
//           band, each with a part of its 8x8 blocks. Warp 0 loads, warps 1 and 2 own the output panels, warps 4-11 multiply, one 8x8 block each in turn
// Cost      2*NPQ*K*R*depth flop, depth = 4 S (8 S) rounded up to 64 bytes; the packed image is written and read once: about 25 us of 90-230 for N = 64
// Refuses   more than 4 channels; a residual; dilation; outputs that are not 16, 32 or 64 bytes apart when packed; bands that do not fit into shared memory
// Source    ours; overlapping core matrices were found to work on the device (sm90.cuh). Planes are the ordinary meaning of the leading offset
//           (PTX ISA, "Leading dimension byte offset"), but have run in tests/simt alone; so have parts of bands and more than 64 filters
// Tried     (H100, N = 64, half) im2col over an overlapping view: alexnet.conv1 92-110 us, resnet50.conv1 120 us instead of 90; boxes that overhang the
//           depth: vgg16.conv1_1 508 us, padded filter rows 309 us, this kernel 230 us
#include "cuda/first_layer.cuh"
#include "cuda/sm90_conv.cuh"
#include "cuda/sm90_rows.cuh"

namespace ck::cuda {
namespace {

struct FirstArgs {
  const uint8_t* x;        // packed image
  int units;               // of work: bands x parts
  int parts, part_blocks;  // blocks of work that share a band; 8x8 blocks in each
  int bands_per_image;     // 8 output rows each
  int blocks;              // 8x8 output blocks in a band
  int64_t image_bytes;
  int row_bytes;                          // of the packed image
  int band_step, band_bytes, band_pitch;  // bytes from one band to the next, loaded for each, and of a stage in shared memory
  int group;                              // bytes from one output row to the next
  int leading, second,
      chunk_step;  // bytes between the two halves of 32 bytes of depth, from those 32 to the next, and from 64 to the next 64
  int r, chunks;   // tap rows, and pieces of 64 bytes in each
  int stages, stages_offset;
};

template <class T_, bool kAnyAct_>
struct Config {
  using T = T_;
  static constexpr bool kAnyAct = kAnyAct_;
  static constexpr int kN = 64, kPanels = 3, kMaxStages = 2, kThreads = 384, kFilterTile = kN * 64;
  static constexpr int kPanelsAcross = kN / kPanelColumns<T>;
  static constexpr int kPanelOffset = 1024, kFilterOffset = kPanelOffset + 2 * kPanels * kPanelBytes;  // then filters, then bands
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    first(const __grid_constant__ CUtensorMap map_w, const __grid_constant__ CUtensorMap map_y, const __grid_constant__ Sm90Args g,
          const __grid_constant__ FirstArgs f) {
  using T = typename C::T;
  const uint32_t base = shared_address(dynamic_shared()), filters = base + C::kFilterOffset;
  const uint32_t full = base, empty = full + 8 * C::kMaxStages, filters_full = empty + 8 * C::kMaxStages;
  const uint32_t panel_ready = filters_full + 8, panel_written = panel_ready + 16 * C::kPanels;
  const int warp = warp_index(), lane = lane_index();

  if (threadIdx.x == 0) {
    prefetch_map(&map_w), prefetch_map(&map_y);
    for (int i = 0; i < C::kMaxStages; ++i) barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, 8);
    for (int i = 0; i < 2 * C::kPanels; ++i) barrier_init(panel_ready + 8 * i, 1), barrier_init(panel_written + 8 * i, 4);
    barrier_init(filters_full, 1);
    fence_barrier_init();
  }
  __syncthreads();

  // blockIdx.x = (tile of 64 filters, which of the blocks that walk over the units)
  const int tiles_n = g.tiles_n, n0 = static_cast<int>(blockIdx.x) % tiles_n * C::kN;
  const int walker = static_cast<int>(blockIdx.x) / tiles_n, walkers = static_cast<int>(gridDim.x) / tiles_n;
  struct Unit {
    int n, row, begin, end;  // image, band in it, 8x8 blocks
  };
  auto unit_at = [&](int u) {
    const int band = u / f.parts, part = u - band * f.parts, n = band / f.bands_per_image;
    const int begin = part * f.part_blocks, end = begin + f.part_blocks;
    return Unit{n, band - n * f.bands_per_image, begin, end < f.blocks ? end : f.blocks};
  };
  // A ring whose number of stages is known at run time.
  int stage = 0;
  uint32_t parity = 0;
  auto next_stage = [&] {
    if (++stage == f.stages) stage = 0, parity ^= 1;
  };

  if (warp < 4) {
    if (warp == 0 && lane == 0) {
      barrier_arrive_expect(filters_full, f.r * f.chunks * C::kFilterTile);
      for (int t = 0; t < f.r * f.chunks; ++t)
        tma_load_3d(filters + t * C::kFilterTile, &map_w, filters_full, t % f.chunks * (64 / static_cast<int>(sizeof(T))), t / f.chunks,
                    n0);
      for (int u = walker; u < f.units; u += walkers) {
        const Unit unit = unit_at(u);
        barrier_wait(empty + 8 * stage, parity ^ 1);
        barrier_arrive_expect(full + 8 * stage, f.band_bytes);
        bulk_load(base + f.stages_offset + stage * f.band_pitch,
                  f.x + unit.n * f.image_bytes + static_cast<int64_t>(unit.row) * f.band_step, f.band_bytes, full + 8 * stage);
        next_stage();
      }
    } else if ((warp == 1 || warp == 2) && lane == 0) {
      const int wg = warp - 1;
      int panels = 0;
      for (int u = walker; u < f.units; u += walkers) {
        const Unit unit = unit_at(u);
        panels += (unit.end - unit.begin - wg + 1) / 2 * C::kPanelsAcross;
      }
      // Panels are stored in the order in which the consumer writes them: (unit, 8x8 block, columns).
      int u = walker, across = 0;
      Unit unit = unit_at(u < f.units ? u : 0);
      int block = unit.begin + wg;
      run_output_ring<C::kPanels>(
          panels, panel_ready + wg * 8 * C::kPanels, panel_written + wg * 8 * C::kPanels,
          base + C::kPanelOffset + wg * C::kPanels * kPanelBytes, false, [](int, uint32_t, uint32_t) {},
          [&](int, uint32_t src) {
            while (block >= unit.end) {
              u += walkers;
              unit = unit_at(u);
              block = unit.begin + wg;
            }
            tma_store_4d(&map_y, src, n0 + across * kPanelColumns<T>, block * 8, unit.row * 8, unit.n);
            if (++across == C::kPanelsAcross) across = 0, block += 2;
          });
    }
  } else {
    const int wg = warp / 4 - 1;
    Ring<C::kPanels> out(0);
    barrier_wait(filters_full, 0);
    const uint64_t second = static_cast<uint64_t>(f.second >> 4);
    for (int u = walker; u < f.units; u += walkers) {
      const Unit unit = unit_at(u);
      barrier_wait(full + 8 * stage, parity);
      const uint32_t band = base + f.stages_offset + stage * f.band_pitch;
      for (int block = unit.begin + wg; block < unit.end; block += 2) {
        float acc[1][C::kN / 2];
        uint32_t row = band + block * 128;
        for (int t = 0, c = 0; t < f.r * f.chunks; ++t) {
          const uint64_t a = plain_descriptor(row + c * f.chunk_step, f.leading, f.group);
          const uint64_t b = swizzled_descriptor<64>(filters + t * C::kFilterTile);
          wgmma_fence();
          wgmma<T, C::kN>(acc[0], a, b, t);
          wgmma<T, C::kN>(acc[0], a + second, b + 2, 1);
          wgmma_commit();
          wgmma_wait<1>();  // not for the data: without it ptxas serialises the loop
          if (++c == f.chunks) c = 0, row += f.row_bytes;
        }
        wgmma_wait<0>();
        settle(acc[0]);
        if (lane == 0 && block + 2 >= unit.end) barrier_arrive(empty + 8 * stage);
        write_tile<T, C::kN, 1, C::kAnyAct>(acc, g, n0, base + C::kPanelOffset + wg * C::kPanels * kPanelBytes,
                                            panel_ready + wg * 8 * C::kPanels, panel_written + wg * 8 * C::kPanels, out);
      }
      if (lane == 0 && unit.begin + wg >= unit.end)
        barrier_arrive(empty + 8 * stage);  // a warpgroup without a block hands the stage back, too
      next_stage();
    }
  }
}

// What is worked out for a launch; `reason` says why there is none.
struct FirstPlan {
  const char* reason;
  FirstLayer layer;
  FirstArgs args;
  int tiles_n, walkers, shared_bytes;
  double us;
};

FirstPlan plan(const ConvProblem& p, const Context& ctx) {
  FirstPlan r{};
  if ((r.reason = refuse_device(ctx)) || (r.reason = refuse_first(p))) return r;
  const int e = element_bytes(ctx.precision);
  if (p.k * e % 16) return r.reason = "TMA needs filters in whole 16 bytes", r;
  if (ctx.y_align < 16) return r.reason = "TMA needs addresses and strides of y in whole 16 bytes", r;
  if (p.residual) return r.reason = "a residual", r;
  if (p.dil_h != 1) return r.reason = "dilation", r;
  const int64_t images = ctx.images < 1 ? 1 : ctx.images;
  if (images * p.p * p.q > int64_t{0x7FFFFF00}) return r.reason = "sizes of 2^31 or more", r;
  FirstLayer& f = r.layer = first_layer(p, images, e, 1, 0);
  const int64_t apart = p.stride_w * f.channels * e;  // bytes between neighbouring outputs
  if (apart != 16 && apart != 32 && apart != 64) return r.reason = "strides whose outputs are not 16, 32 or 64 bytes apart when packed", r;
  const int64_t planes = apart / 16;
  FirstArgs& g = r.args;
  f = first_layer(p, images, e, planes, 0);
  const int64_t blocks = div_up(p.q, 8), plane_bytes = f.row_bytes / planes;
  // The last 8x8 block and the last filter row read past a plane's end, and so past the band's.
  const int64_t reach = (8 * blocks - 1 + div_up(f.depth * e / 16, planes)) * 16, over = reach > plane_bytes ? reach - plane_bytes : 0;
  const int64_t band_rows = 7 * p.stride_h + p.r, bands = div_up(p.p, 8);
  f = first_layer(p, images, e, planes, over + (band_rows + 8 * p.stride_h) * f.row_bytes);
  if (f.packed_bytes > (int64_t{1} << 29)) return r.reason = "the packed image takes more than half a GiB", r;
  g.r = static_cast<int>(p.r), g.chunks = static_cast<int>(f.depth * e / 64);
  g.band_bytes = static_cast<int>(band_rows * f.row_bytes + over), g.band_pitch = static_cast<int>(round_up(g.band_bytes, 128));
  using C = Config<Half, false>;
  static_assert(C::kFilterOffset == Config<float, true>::kFilterOffset, "");
  const int64_t fixed = C::kFilterOffset + int64_t{g.r} * g.chunks * C::kFilterTile;
  if (fixed + g.band_pitch > kSm90Shared) return r.reason = "filters and a band do not fit into shared memory", r;
  g.stages = fixed + 2 * g.band_pitch <= kSm90Shared ? 2 : 1;
  g.stages_offset = static_cast<int>(fixed);
  r.shared_bytes = static_cast<int>(fixed + g.stages * g.band_pitch);
  g.bands_per_image = static_cast<int>(bands), g.blocks = static_cast<int>(blocks);
  g.image_bytes = f.rows * f.row_bytes, g.row_bytes = static_cast<int>(f.row_bytes);
  g.band_step = static_cast<int>(8 * p.stride_h * f.row_bytes), g.group = static_cast<int>(p.stride_h * f.row_bytes);
  // 16 bytes of depth are a unit: unit t of an output is at place t / planes of plane t % planes.
  g.leading = static_cast<int>(planes == 1 ? 16 : plane_bytes);
  g.second = static_cast<int>(planes == 1 ? 32 : planes == 2 ? 16 : 2 * plane_bytes), g.chunk_step = static_cast<int>(64 / planes);
  if (g.group >= 1 << 18 || g.leading >= 1 << 18) return r.reason = "rows too long for a descriptor", r;
  r.tiles_n = static_cast<int>(div_up(p.k, C::kN));
  // Few bands: several blocks of threads share one, with at least two 8x8 blocks each.
  const int64_t all = images * bands, walkers = ctx.device->multiprocessors / r.tiles_n > 0 ? ctx.device->multiprocessors / r.tiles_n : 1;
  int64_t parts = all >= walkers ? 1 : walkers / all;
  if (parts > div_up(blocks, 2)) parts = div_up(blocks, 2);
  g.part_blocks = static_cast<int>(div_up(blocks, parts));
  g.parts = static_cast<int>(div_up(blocks, g.part_blocks));
  g.units = static_cast<int>(all * g.parts);
  r.walkers = static_cast<int>(g.units < walkers ? g.units : walkers);
  // Microseconds of two tiles at a time: 0.08 for 64 bytes of depth, 0.75 for the way out (fitted to resnet50.conv1 and vgg16.conv1_1, N = 64, half, H100:
  // 90 and 230 us with the packing); a single stage waits for its band. Planes, parts and more than 64 filters have not been timed: they must
  // promise more than what has been (conv_sm90_first_view).
  const double unit = div_up(g.part_blocks, 2) * (g.r * g.chunks * 0.08 + 0.75 * e / 2) + (g.stages == 1 ? 2.0 : 0.2);
  const double waves = std::ceil(double(g.units) / r.walkers), untimed = planes > 1 || g.parts > 1 || r.tiles_n > 1 ? 1.25 : 1;
  r.us = pack_image_us(f, p, e) + untimed * std::fmax(3 + waves * unit, double(images) * double(p.p * p.q * p.k) * e / 2.75e6);
  return r;
}

const char* refuse(const ConvProblem& p, const Context& ctx) { return plan(p, ctx).reason; }
double cost(const ConvProblem& p, const Context& ctx) { return plan(p, ctx).us; }
int64_t workspace_bytes(const ConvProblem& p, const Context& ctx) { return plan(p, ctx).layer.packed_bytes; }

cudaError_t run(const ConvProblem& p, const ConvArgs& a, const Context& ctx, void* workspace, cudaStream_t stream) {
  if (!ctx.images) return cudaSuccess;
  const int e = element_bytes(ctx.precision);
  FirstPlan r = plan(p, ctx);
  CK_TRY(launch_pack_image(r.layer, ctx.precision, a.x, workspace, stream));
  r.args.x = static_cast<const uint8_t*>(workspace);
  Sm90Args g{};
  g.k = static_cast<int>(p.k), g.tiles_n = r.tiles_n;
  set_epilogue(g, p, a);
  CUtensorMap w{}, y{};
  CK_TRY(encode(
      filter_map(map_type(ctx.precision), static_cast<const char*>(a.weights) + r.layer.filters_at, r.layer.depth, p.r, p.k, 64, 64), &w));
  CK_TRY(encode(image_map(output_type(ctx.precision), a.y, p.k, p.q, p.p, ctx.images, 128 / e, 8, 8), &y));
  const bool any = !is_clamp(p.act);
  const void* kernel = nullptr;
  with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    kernel = any ? reinterpret_cast<const void*>(&first<Config<T, true>>) : reinterpret_cast<const void*>(&first<Config<T, false>>);
    return cudaSuccess;
  });
  return launch_sm90(kernel, {r.walkers * r.tiles_n, Config<Half, false>::kThreads, r.shared_bytes, 1}, *ctx.device, stream, w, y, g,
                     r.args);
}
int64_t packed_bytes(const ConvProblem& p, const Context& ctx) { return first_filter_bytes(p, element_bytes(ctx.precision)); }
cudaError_t pack(const ConvProblem& p, const Context& ctx, const float* weights, void* packed, cudaStream_t stream) {
  return launch_pack_first_filters(p, ctx.precision, weights, packed, stream);
}

}  // namespace

extern const ConvKernel conv_sm90_first;
const ConvKernel conv_sm90_first = {"conv_sm90_first", refuse, cost, workspace_bytes, run, packed_bytes, pack};

}  // namespace ck::cuda
