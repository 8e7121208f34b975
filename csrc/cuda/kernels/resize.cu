// resize.cu: nearest, linear and cubic resizing of one to three dimensions.
//
// Computes  y[n,z,p,q,c] = sum over the taps of (z,p,q) of weight * x[n,d,h,w,c]   (core/window.h)
// Layout    x NDHWC, y NZPQC
// Tiling    resize_vector: a thread = 16 bytes of channels of an output pixel; resize_any: a thread = an element
// Cost      bandwidth; the coordinates of a pixel are worked out once for each vector
// Refuses   resize_vector: channels or strides that are no multiple of 16 bytes
// Source    torch.nn.functional.interpolate; Keys 1981 for the cubic kernel (a = -0.75)
#include "core/window.h"
#include "cuda/kernel.cuh"

namespace ck::cuda {
namespace {

// A tap without indexing by a variable, which would put the taps into memory.
CK_DEVICE int64_t index_of(const Mix<float>& m, int i) {
  return i == 0 ? m.index[0] : i == 1 ? m.index[1] : i == 2 ? m.index[2] : m.index[3];
}
CK_DEVICE float weight_of(const Mix<float>& m, int i) {
  return i == 0 ? m.weight[0] : i == 1 ? m.weight[1] : i == 2 ? m.weight[2] : m.weight[3];
}

template <class T, int kCount, class I>
__global__ void resize(ResizeProblem p, View x, View y, Divider<I> by_c, Divider<I> by_q, Divider<I> by_p, Divider<I> by_z, I items) {
  const I step = static_cast<I>(gridDim.x) * blockDim.x;
  const int taps_d = resize_count(p.kind, p.d), taps_h = resize_count(p.kind, p.h), taps_w = resize_count(p.kind, p.w);
  for (I item = static_cast<I>(blockIdx.x) * blockDim.x + threadIdx.x; item < items; item += step) {
    I vector, q, i, z;
    const I pixel = by_c.divmod(item, vector);
    const I line = by_q.divmod(pixel, q);
    const I slice = by_p.divmod(line, i);
    const I n = by_z.divmod(slice, z);
    const int64_t c = static_cast<int64_t>(vector) * kCount;
    const Mix<float> depth = resize_mix<float>(p.kind, z, p.d, p.z, p.scale_d, p.align_corners);
    const Mix<float> row = resize_mix<float>(p.kind, i, p.h, p.p, p.scale_h, p.align_corners);
    const Mix<float> column = resize_mix<float>(p.kind, q, p.w, p.q, p.scale_w, p.align_corners);
    float sum[kCount] = {};
    if (taps_d * taps_h * taps_w == 1) {  // a copy: a sum that starts at 0 would turn -0 into 0
      load<kCount>(at<const T>(x, n, depth.index[0], row.index[0], column.index[0]) + c, sum);
    } else {
      for (int t = 0; t < taps_d; ++t)
        for (int r = 0; r < taps_h; ++r)
          for (int s = 0; s < taps_w; ++s) {
            float v[kCount];
            load<kCount>(at<const T>(x, n, index_of(depth, t), index_of(row, r), index_of(column, s)) + c, v);
            const float weight = weight_of(depth, t) * weight_of(row, r) * weight_of(column, s);
#pragma unroll
            for (int k = 0; k < kCount; ++k) sum[k] += weight * v[k];
          }
    }
    store<kCount>(at<T>(y, n, z, i, q) + c, sum);
  }
}

template <class T, int kCount>
cudaError_t start(const ResizeProblem& p, const ResizeArgs& a, const Context& ctx, cudaStream_t stream) {
  const int64_t items = ctx.images * p.z * p.p * p.q * (p.c / kCount);
  if (!items) return cudaSuccess;
  return with_index(items, [&](auto zero) {
    using I = decltype(zero);
    return launch<false>(resize<T, kCount, I>, dim3(blocks_for(items, 256)), dim3(256), 0, stream, p, a.x, a.y, Divider<I>(p.c / kCount),
                         Divider<I>(p.q), Divider<I>(p.p), Divider<I>(p.z), static_cast<I>(items));
  });
}

double bytes(const ResizeProblem& p, const Context& ctx) {
  return double(ctx.images) * element_bytes(ctx.precision) * double(p.c) * (double(p.d * p.h * p.w) + double(p.z * p.p * p.q));
}
const char* refuse_vector(const ResizeProblem& p, const Context& ctx) {
  if (p.c % (16 / element_bytes(ctx.precision))) return "channels are no multiple of 16 bytes";
  if (ctx.x_align < 16 || ctx.y_align < 16) return "strides or addresses are no multiple of 16 bytes";
  return nullptr;
}
double cost_vector(const ResizeProblem& p, const Context& ctx) { return 2.5 + bytes(p, ctx) / 2e6; }
cudaError_t run_vector(const ResizeProblem& p, const ResizeArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    return start<T, kVector<T>>(p, a, ctx, stream);
  });
}
const char* refuse_none(const ResizeProblem&, const Context&) { return nullptr; }
double cost_any(const ResizeProblem& p, const Context& ctx) { return 5 + bytes(p, ctx) / 0.4e6; }
cudaError_t run_any(const ResizeProblem& p, const ResizeArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  return with_element(ctx.precision, [&](auto zero) { return start<decltype(zero), 1>(p, a, ctx, stream); });
}
int64_t no_workspace(const ResizeProblem&, const Context&) { return 0; }

}  // namespace

extern const ResizeKernel resize_vector, resize_any;
const ResizeKernel resize_vector = {"resize_vector", refuse_vector, cost_vector, no_workspace, run_vector};
const ResizeKernel resize_any = {"resize_any", refuse_none, cost_any, no_workspace, run_any};

}  // namespace ck::cuda
