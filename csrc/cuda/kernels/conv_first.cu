// conv_first.cu: convolutions of 1 to 4 channels on the tensor cores of any device: the image is packed, and conv_mma runs over it.
//
// Computes  y = act(scale * conv(x, w) + bias + residual)
// Layout    x NHWC, packed into the workspace (first_layer.cuh); w K R S*4 (or S*8) padded to 64 bytes; y NPQK
// Tiling    conv_mma's, over a view whose pixels overlap: depth = a row of taps
// Cost      2*NPQ*K*R*depth flop, depth = 4 S rounded up; the packed image is written once and read R times, from L1 and L2
// Refuses   more than 4 channels; dilated rows; groups, volumes, transposed; float products; images that take more than 1 GiB when packed
// Source    ours
// Tried     nothing yet: no device has run this row; its packing and conv_mma have run in tests/simt
#include "cuda/first_layer.cuh"
#include "cuda/mma_rows.cuh"

namespace ck::cuda {
namespace {

FirstLayer layer(const ConvProblem& p, const Context& ctx) { return first_layer(p, ctx.images, element_bytes(ctx.precision), 1, 256); }

const char* refuse(const ConvProblem& p, const Context& ctx) {
  if (const char* reason = refuse_first(p)) return reason;
  if (ctx.precision == Precision::kF32) return "tensor cores have no float products";
  if (ctx.device->capability < 75) return "needs compute capability 7.5";
  if (ctx.device->capability < 80 && ctx.precision != Precision::kF16)
    return "before compute capability 8.0 tensor cores have half precision only";
  const FirstLayer f = layer(p, ctx);
  if (f.packed_bytes > (int64_t{1} << 29)) return "the packed image takes more than half a GiB";
  if (p.p * p.q >= (int64_t{1} << 30) || ctx.images * f.rows >= (int64_t{1} << 31)) return "images of 2^30 pixels";
  return nullptr;
}
MmaChoice choose(const ConvProblem& p, const Context& ctx) { return choose_mma(first_problem(p, layer(p, ctx)), ctx, 16); }
double cost(const ConvProblem& p, const Context& ctx) {
  return choose(p, ctx).us + pack_image_us(layer(p, ctx), p, element_bytes(ctx.precision));
}
int64_t workspace_bytes(const ConvProblem& p, const Context& ctx) {
  const FirstLayer f = layer(p, ctx);
  return ceil_div(f.packed_bytes, 256) * 256 + mma_workspace_bytes(first_problem(p, f), ctx, choose(p, ctx));
}
cudaError_t run(const ConvProblem& p, const ConvArgs& a, const Context& ctx, void* workspace, cudaStream_t stream) {
  if (!ctx.images) return cudaSuccess;
  const FirstLayer f = layer(p, ctx);
  const cudaError_t error = launch_pack_image(f, ctx.precision, a.x, workspace, stream);
  if (error != cudaSuccess) return error;
  ConvArgs b = a;
  b.x = first_view(p, f, workspace, element_bytes(ctx.precision));
  b.weights = static_cast<const char*>(a.weights) + f.filters_at;
  return launch_mma(first_problem(p, f), b, ctx, choose(p, ctx), static_cast<char*>(workspace) + ceil_div(f.packed_bytes, 256) * 256,
                    stream);
}
int64_t packed_bytes(const ConvProblem& p, const Context& ctx) { return first_filter_bytes(p, element_bytes(ctx.precision)); }
cudaError_t pack(const ConvProblem& p, const Context& ctx, const float* weights, void* packed, cudaStream_t stream) {
  return launch_pack_first_filters(p, ctx.precision, weights, packed, stream);
}

}  // namespace

extern const ConvKernel conv_first;
const ConvKernel conv_first = {"conv_first", refuse, cost, workspace_bytes, run, packed_bytes, pack};

}  // namespace ck::cuda
