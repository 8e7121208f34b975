// conv_sm90_common.cu: what the sm_90a convolutions refuse in common, and their filters, K R*S C (filters.cuh).
#include "cuda/filters.cuh"
#include "cuda/sm90_rows.cuh"

namespace ck::cuda {
const char* refuse_device(const Context& ctx) {
  if (ctx.device->capability != 90) return "needs compute capability 9.0 exactly (wgmma)";
  if (ctx.precision == Precision::kF32) return "tensor cores have no float products";
  if (ctx.precision == Precision::kF32x3) return "three TF32 products are not written with wgmma; conv_mma has them";
  return nullptr;
}

const char* refuse_sm90(const ConvProblem& p, const Context& ctx, bool im2col) {
  if (const char* reason = refuse_device(ctx)) return reason;
  if (p.transposed) return "transposed";
  if (p.d != 1 || p.t != 1 || p.z != 1) return "volumes";
  if (p.groups != 1) return "groups";
  const int64_t e = element_bytes(ctx.precision);
  if (p.c * e % 16) return "TMA needs channels in whole 16 bytes";
  if (p.k * e % 16) return "TMA needs filters in whole 16 bytes";
  if (ctx.x_align < 16 || ctx.y_align < 16 || (p.residual && ctx.residual_align < 16))
    return "TMA needs addresses and strides in whole 16 bytes";
  if (ctx.images * p.p * p.q > int64_t{0x7FFFFF00} || p.c > 65535 || p.k > (1 << 24)) return "sizes of 2^31 or more";
  if (im2col && !(ctx.y_flat && (ctx.residual_flat || !p.residual)))
    return "the pixels of y or of the residual are not one evenly spaced list";
  if (im2col && !is_pointwise(p)) {
    const View dense{nullptr, p.h * p.w * p.c, p.h * p.w * p.c, p.w * p.c, p.c};
    if (const char* reason = refuse_map(im2col_map(map_type(ctx.precision), p, ctx.images < 1 ? 1 : ctx.images, dense, 128, 256)))
      return reason;
    if ((p.r - 1) * p.dil_h > 255 || (p.s - 1) * p.dil_w > 255) return "the filter's reach must be below 256 pixels (im2col offsets)";
  }
  return nullptr;
}

int64_t packed_krsc_bytes(const ConvProblem& p, const Context& ctx) {
  const int e = element_bytes(ctx.precision);
  return filter_elements(filter_layout(p, 1, e)) * e;
}

cudaError_t pack_krsc(const ConvProblem& p, const Context& ctx, const float* weights, void* packed, cudaStream_t stream) {
  return launch_pack_filters(filter_layout(p, 1, element_bytes(ctx.precision)), ctx.precision, weights, packed, stream);
}

}  // namespace ck::cuda
