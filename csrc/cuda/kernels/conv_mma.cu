// conv_mma.cu: convolution on the tensor cores of any device from sm_75 on: half, bfloat16, TF32, 3xTF32; groups; split sums. The kernel: conv_mma.cuh.
//
// Computes  y = act(scale * conv(x, w) + bias + residual); layout, tiling and sums: conv_mma.cuh
// Groups    narrow ones are packed several together, with zeros off the diagonal (filters.cuh), until a tile of 32 filters has work: 8 groups of 4
//           filters read 32 channels and multiply 8 times too much, which tensor cores do in the time that memory needs
// Cost      2*NPQ*K*RSC/G flop (times the groups packed together); x is read R*S times, through L1
// Refuses   float products; volumes; transposed; R + S > 32; one channel a group; what the device has no instruction for (sm_75: all but half)
// Source    see conv_mma.cuh
// Tried     nothing yet: no device has run this kernel. It has run, thread by thread, in tests/simt
#include "cuda/filters.cuh"
#include "cuda/mma_rows.cuh"

namespace ck::cuda {
namespace {

constexpr int64_t kMostPixels = int64_t{1} << 30;  // of one launch: index arithmetic has 32 bits

// The speed of an SM's tensor cores and of memory, relative to an H100's. Rough: they rank this row among the others.
double sm_speed(const Device& d) { return d.capability >= 90 ? 1 : d.capability == 80 ? 0.75 : d.capability > 80 ? 0.4 : 0.3; }
double bytes_per_us(const Device& d) {
  return d.capability >= 90 ? 2.75e6 : d.capability == 80 ? 1.4e6 : d.capability > 80 ? 0.7e6 : 0.28e6;
}

int64_t images_at_once(const ConvProblem& p, int64_t images) {
  const int64_t pixels = p.p * p.q, most = pixels < kMostPixels ? kMostPixels / pixels : 1;
  return images < most ? images : most;
}

int64_t power_of_two_in(int64_t v) { return v & -v; }

// The largest power of two, at most 16, that divides all addresses of a view.
int alignment(const View& v, int element_bytes) {
  const int64_t all = static_cast<int64_t>(reinterpret_cast<uintptr_t>(v.data)) | (v.image | v.row | v.pixel) * element_bytes | 16;
  return static_cast<int>(power_of_two_in(all));
}
int vector_bytes(const ConvProblem& p, int align, int element_bytes) {
  const int64_t step = p.groups > 1 ? p.c / p.groups * mma_merge(p) * element_bytes : 16;  // from one group's channels to the next's
  const int64_t bytes = power_of_two_in(step | align | 16);
  return bytes >= 16 ? 16 : bytes >= 4 ? 4 : 2;
}

}  // namespace

// Depends on filter sizes alone: the packed filters do.
int64_t mma_merge(const ConvProblem& p) {
  const int64_t c = p.c / p.groups, k = p.k / p.groups;
  int64_t merge = 1;
  for (int64_t m = 2; m <= p.groups && m * c <= 32 && m * k <= 32; ++m)
    if (p.groups % m == 0) merge = m;
  return merge;
}

MmaChoice choose_mma(const ConvProblem& p, const Context& ctx, int vector) {
  const int e = element_bytes(ctx.precision);
  const int64_t merge = mma_merge(p), groups = p.groups / merge, c = p.c / p.groups * merge, k = p.k / p.groups * merge;
  const int64_t images = images_at_once(p, ctx.images), launches = images ? ceil_div(ctx.images, images) : 1;
  const double m = double(images) * double(p.p * p.q), sms = ctx.device->multiprocessors;
  const int64_t steps = p.r * p.s * ceil_div(c, 64 / e);
  const double bytes = double(ctx.images) * e * (double(p.h * p.w * p.c) + double(p.p * p.q * p.k) * (p.residual ? 2 : 1));
  const double traffic = bytes / bytes_per_us(*ctx.device);
  MmaChoice best{nullptr, 1, 1e30};
  const MmaVariants all = mma_variants(ctx.precision);
  for (const MmaVariant* v = all.first; v < all.first + all.count; ++v) {
    if (v->vector > vector || (vector == 16 && v->vector < 16) || v->shared_bytes > ctx.device->shared_bytes) continue;
    const double tiles = std::ceil(m / v->tile_m) * double(ceil_div(k, v->tile_n) * groups);
    // A slice has 4 steps at least; its sums travel to memory and back.
    for (int64_t slices = 1; slices <= 32 && (slices == 1 || (slices * 4 <= steps && tiles * double(slices) <= 2 * sms)); slices *= 2) {
      const double partial = slices > 1 ? double(slices) * m * double(groups * ceil_div(k, 8) * 8) * 4 : 0;
      if (partial > 512e6) break;
      // A block alone on its SM hides less of its latency: counted as if half another one ran beside it.
      const double per_sm = tiles * double(slices) / sms, waves = per_sm <= 1 ? 1.5 : std::ceil(per_sm);
      double us = 2.5 + waves * (double(ceil_div(steps, slices)) * v->step + v->tile) / sm_speed(*ctx.device);
      if (slices > 1) us += 2.5 + 2 * partial / (bytes_per_us(*ctx.device) * 2);  // the sums mostly stay in L2
      us = std::fmax(us * double(launches), traffic) + 0.02 * us;
      if (us < best.us) best = {v, static_cast<int>(slices), us};
    }
  }
  if (ctx.device->capability == 90) best.us *= 1.15;  // has not been timed: it must promise more than the rows of sm_90a, which have been
  return best;
}

int64_t mma_workspace_bytes(const ConvProblem& p, const Context& ctx, const MmaChoice& choice) {
  if (choice.slices < 2) return 0;
  const int64_t merge = mma_merge(p);
  return images_at_once(p, ctx.images) * p.p * p.q * (p.groups / merge) * partial_pitch(static_cast<int>(p.k / p.groups * merge)) *
         choice.slices * 4;
}

cudaError_t launch_mma(const ConvProblem& p, const ConvArgs& a, const Context& ctx, const MmaChoice& choice, void* workspace,
                       cudaStream_t stream) {
  if (!ctx.images) return cudaSuccess;
  const MmaVariant& v = *choice.variant;
  const int e = element_bytes(ctx.precision);
  const FilterLayout f = filter_layout(p, mma_merge(p), e);
  const int64_t groups = f.groups / f.merge, depth = 64 / e;
  MmaArgs g{};
  g.w = static_cast<const char*>(a.weights);
  g.x_image = a.x.image * e, g.x_row = a.x.row * e, g.x_pixel = a.x.pixel * e;
  const int64_t across = (p.s - 1) * p.dil_w * g.x_pixel, down = (p.r - 1) * p.dil_h * g.x_row;
  g.next_s = p.dil_w * g.x_pixel, g.next_r = p.dil_h * g.x_row - across, g.next_c = 64 - down - across;
  g.w_next_tap = f.pitch * e, g.w_next_c = 64 - (f.taps - 1) * f.pitch * e, g.w_filter = f.taps * f.pitch * e;
  g.k = static_cast<int>(f.k * f.merge), g.c = static_cast<int>(f.c * f.merge), g.pitch = static_cast<int>(f.pitch),
  g.groups = static_cast<int>(groups);
  g.h = static_cast<int>(p.h), g.width = static_cast<int>(p.w), g.r = static_cast<int>(p.r), g.s = static_cast<int>(p.s);
  g.taps = static_cast<int>(f.taps), g.steps = static_cast<int>(f.taps * ceil_div(g.c, depth));
  g.stride_h = static_cast<int>(p.stride_h), g.stride_w = static_cast<int>(p.stride_w);
  g.pad_h = static_cast<int>(p.pad_h_lo), g.pad_w = static_cast<int>(p.pad_w_lo);
  g.dil_h = static_cast<int>(p.dil_h), g.dil_w = static_cast<int>(p.dil_w);
  g.tiles_n = static_cast<int>(ceil_div(g.k, v.tile_n)), g.slices = choice.slices;
  g.by_q = Divider<uint32_t>(p.q), g.by_p = Divider<uint32_t>(p.p);
  g.by_tile_n = Divider<uint32_t>(g.tiles_n), g.by_group = Divider<uint32_t>(groups);
  g.partial = static_cast<float*>(workspace);
  auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  g.vector = alignment(a.y, e) >= 16 && g.k % 8 == 0 && (!a.residual.data || alignment(a.residual, e) >= 16) && aligned(a.scale) &&
             aligned(a.bias);
  const int64_t at_once = images_at_once(p, ctx.images);
  for (int64_t n = 0; n < ctx.images; n += at_once) {
    const int64_t images = ctx.images - n < at_once ? ctx.images - n : at_once;
    g.m = static_cast<int>(images * p.p * p.q);
    g.x = static_cast<const char*>(a.x.data) + n * g.x_image;
    g.y = a.y, g.y.data = static_cast<char*>(a.y.data) + n * a.y.image * e;
    g.epilogue = epilogue(p.act, a);
    if (p.act.kind == Act::kNone) g.epilogue.act = {Act::kClamp, -INFINITY, INFINITY};
    if (a.residual.data) g.epilogue.residual.data = static_cast<char*>(a.residual.data) + n * a.residual.image * e;
    const dim3 grid(static_cast<unsigned>(ceil_div(g.m, v.tile_m) * g.tiles_n * groups), static_cast<unsigned>(g.slices));
    const cudaError_t error = v.launch(g, grid, stream);
    if (error != cudaSuccess) return error;
    if (g.slices > 1) {
      const int64_t blocks = ceil_div(g.k, 8), items = groups * g.m * blocks;
      const cudaError_t summed = with_element(ctx.precision, [&](auto zero) {
        return launch<false>(sum_slices<decltype(zero)>, dim3(blocks_for(items, 128)), dim3(128), 0, stream, g, Divider<uint64_t>(blocks),
                             Divider<uint64_t>(g.m), items);
      });
      if (summed != cudaSuccess) return summed;
    }
  }
  return cudaSuccess;
}

namespace {

const char* refuse(const ConvProblem& p, const Context& ctx) {
  if (ctx.precision == Precision::kF32) return "tensor cores have no float products";
  if (ctx.device->capability < 75) return "needs compute capability 7.5";
  if (ctx.device->capability < 80 && ctx.precision != Precision::kF16)
    return "before compute capability 8.0 tensor cores have half precision only";
  if (p.transposed) return "transposed";
  if (p.d != 1 || p.t != 1 || p.z != 1) return "volumes";
  if (p.r + p.s > 32) return "filters of R + S > 32: the masks of taps have 32 bits";
  if (p.groups > 1 && p.c == p.groups) return "one channel a group: tensor cores would multiply zeros";
  if (p.p * p.q > kMostPixels || p.h * p.dil_h >= kMostPixels || p.w >= kMostPixels || p.c > (1 << 24) || p.k > (1 << 24))
    return "images of 2^30 pixels";
  if (p.groups / mma_merge(p) * ceil_div(p.k, 32) * ceil_div(p.p * p.q, 64) > (int64_t{1} << 30))
    return "more tiles than a grid has blocks";
  return nullptr;
}
MmaChoice choose(const ConvProblem& p, const Context& ctx) {
  return choose_mma(p, ctx, vector_bytes(p, ctx.x_align, element_bytes(ctx.precision)));
}
double cost(const ConvProblem& p, const Context& ctx) { return choose(p, ctx).us; }
int64_t workspace_bytes(const ConvProblem& p, const Context& ctx) { return mma_workspace_bytes(p, ctx, choose(p, ctx)); }
cudaError_t run(const ConvProblem& p, const ConvArgs& a, const Context& ctx, void* workspace, cudaStream_t stream) {
  return launch_mma(p, a, ctx, choose(p, ctx), workspace, stream);
}
int64_t packed_bytes(const ConvProblem& p, const Context& ctx) {
  const int e = element_bytes(ctx.precision);
  return filter_elements(filter_layout(p, mma_merge(p), e)) * e;
}
cudaError_t pack(const ConvProblem& p, const Context& ctx, const float* weights, void* packed, cudaStream_t stream) {
  return launch_pack_filters(filter_layout(p, mma_merge(p), element_bytes(ctx.precision)), ctx.precision, weights, packed, stream);
}

}  // namespace

extern const ConvKernel conv_mma;
const ConvKernel conv_mma = {"conv_mma", refuse, cost, workspace_bytes, run, packed_bytes, pack};

}  // namespace ck::cuda
