// conv_sm90_first_view.cu: convolutions of 1 to 4 channels, compute capability 9.0: half, bfloat16, TF32. The packed image, read by the other kernels.
//
// Computes  y = act(scale * conv(x, w) + bias + residual), sums in float
// Layout    x NHWC, packed into the workspace (first_layer.cuh); w K R S*4 (or S*8) padded to 64 bytes, once; y NPQK
// Tiling    conv_sm90_persistent's or conv_sm90_cluster's, over a view of the packed image whose pixels overlap: one output's row of taps is a "pixel"
// Cost      2*NPQ*K*R*depth flop; packing: the image is written once more and read R times, from L2. Wide tiles re-read it least: the limit is the loads
// Refuses   what they do; more than 4 channels; dilated rows; images that take more than half a GiB when packed
// Source    ours
// Tried     (H100, half, packing included) N = 64: alexnet.conv1 92 us with 256x128, resnet50.conv1 120 us (conv_sm90_first: 90), vgg16.conv1_1 309 us
//           (230). N = 1: 10.7, 8.7 and 10.6 us
#include "cuda/first_layer.cuh"
#include "cuda/sm90_rows.cuh"

namespace ck::cuda {
namespace {

struct ViewPlan {
  const char* reason;  // null: it can be done
  FirstLayer layer;
  ConvProblem problem;  // over the view
  Context context;
  Sm90Choice best;
  bool cluster;
};

ViewPlan plan(const ConvProblem& p, const Context& ctx) {
  ViewPlan r{};
  if ((r.reason = refuse_device(ctx)) || (r.reason = refuse_first(p))) return r;
  const int e = element_bytes(ctx.precision);
  r.layer = first_layer(p, ctx.images, e, 1, 256);
  if (r.layer.packed_bytes > (int64_t{1} << 29)) return r.reason = "the packed image takes more than half a GiB", r;
  if (ctx.images * r.layer.rows >= (int64_t{1} << 31)) return r.reason = "sizes of 2^31 or more", r;
  r.problem = first_problem(p, r.layer);
  r.context = ctx;
  r.context.x_align = 16, r.context.x_flat = false;
  if ((r.reason = refuse_sm90(r.problem, r.context, true))) return r;
  r.best = choose_persistent(r.problem, r.context);
  const Sm90Choice split = choose_cluster(r.problem, r.context);
  if (split.variant && split.us < r.best.us) r.best = split, r.cluster = true;
  // The model does not know that overlapping loads are the limit: of many filters and pixels the widest tile re-reads them least.
  const Sm90Variants all = persistent_variants();
  if (p.k > 64 && double(ctx.images) * double(p.h * p.q) > 5e5 && is_clamp(p.act))
    for (const Sm90Variant* v = all.first; v < all.first + all.count; ++v)
      if (v->tile_m == 256 && v->tile_n == 128)
        r.cluster = false, r.best = {v, 1, variant_us(*v, r.problem, ctx.images, e, false, ctx.device->multiprocessors, 1)};
  return r;
}

const char* refuse(const ConvProblem& p, const Context& ctx) { return plan(p, ctx).reason; }
double cost(const ConvProblem& p, const Context& ctx) {
  const ViewPlan r = plan(p, ctx);
  return 1.08 * r.best.us + pack_image_us(r.layer, p, element_bytes(ctx.precision));
}
int64_t workspace_bytes(const ConvProblem& p, const Context& ctx) { return plan(p, ctx).layer.packed_bytes; }

cudaError_t run(const ConvProblem& p, const ConvArgs& a, const Context& ctx, void* workspace, cudaStream_t stream) {
  if (!ctx.images) return cudaSuccess;
  const ViewPlan r = plan(p, ctx);
  CK_TRY(launch_pack_image(r.layer, ctx.precision, a.x, workspace, stream));
  ConvArgs b = a;
  b.x = first_view(p, r.layer, workspace, element_bytes(ctx.precision));
  b.weights = static_cast<const char*>(a.weights) + r.layer.filters_at;
  return r.cluster ? launch_cluster(r.problem, b, r.context, *r.best.variant, r.best.split, stream)
                   : launch_persistent(r.problem, b, r.context, *r.best.variant, stream);
}
int64_t packed_bytes(const ConvProblem& p, const Context& ctx) { return first_filter_bytes(p, element_bytes(ctx.precision)); }
cudaError_t pack(const ConvProblem& p, const Context& ctx, const float* weights, void* packed, cudaStream_t stream) {
  return launch_pack_first_filters(p, ctx.precision, weights, packed, stream);
}

}  // namespace

extern const ConvKernel conv_sm90_first_view;
const ConvKernel conv_sm90_first_view = {"conv_sm90_first_view", refuse, cost, workspace_bytes, run, packed_bytes, pack};

}  // namespace ck::cuda
