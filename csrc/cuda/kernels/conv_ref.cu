// conv_ref.cu: convolution and transposed convolution, the definition. Never optimised.
//
// Computes  y[n,z,p,q,k] = act(scale[k] * sum_{t,r,s,c} x[n, z*sd-pd+t*dd, p*sh-ph+r*dh, q*sw-pw+s*dw, g*C/G+c] * w[t,r,s,c,k] + bias[k] + residual)
//           with g = k / (K/G); transposed: x's and y's positions change places in the index formula
// Layout    x NDHWC, w T R S C/G K as given (float), y NZPQK; sums in float, in the order t r s c
// Tiling    a thread = one output
// Refuses   TF32 and 3xTF32: it has no such products (a plan of these precisions takes it as float, see dispatch)
// Source    Dumoulin and Visin 2016, arXiv:1603.07285
#include "cuda/kernel.cuh"

namespace ck::cuda {
namespace {

// The input position that output `o` reads through tap `tap`, or -1.
CK_DEVICE int64_t source(int64_t o, int64_t tap, int64_t stride, int64_t pad, int64_t dil, int64_t in, bool transposed) {
  int64_t i = o * stride - pad + tap * dil;
  if (transposed) {
    i = o + pad - tap * dil;
    if (i < 0 || i % stride) return -1;
    i /= stride;
  }
  return i >= 0 && i < in ? i : -1;
}

template <class T>
__global__ void conv(ConvProblem p, View x, View y, const float* weights, Epilogue e, int64_t items) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < items; i += step) {
    const int64_t k = i % p.k, q = i / p.k % p.q, row = i / p.k / p.q % p.p, z = i / p.k / p.q / p.p % p.z, n = i / p.k / p.q / p.p / p.z;
    const int64_t c_group = p.c / p.groups, k_group = p.k / p.groups;
    float sum = 0;
    for (int64_t t = 0; t < p.t; ++t)
      for (int64_t r = 0; r < p.r; ++r)
        for (int64_t s = 0; s < p.s; ++s) {
          const int64_t d = source(z, t, p.stride_d, p.pad_d_lo, p.dil_d, p.d, p.transposed);
          const int64_t h = source(row, r, p.stride_h, p.pad_h_lo, p.dil_h, p.h, p.transposed);
          const int64_t w = source(q, s, p.stride_w, p.pad_w_lo, p.dil_w, p.w, p.transposed);
          if (d < 0 || h < 0 || w < 0) continue;
          const T* x_c = at<const T>(x, n, d, h, w) + k / k_group * c_group;
          const float* w_trs = weights + ((t * p.r + r) * p.s + s) * c_group * p.k;
          for (int64_t c = 0; c < c_group; ++c) sum += to_float(x_c[c]) * w_trs[c * p.k + k];
        }
    const float residual = e.residual.data ? to_float(at<const T>(e.residual, n, z, row, q)[k]) : 0.f;
    at<T>(y, n, z, row, q)[k] = from_float<T>(finish(e, sum, k, residual));
  }
}

const char* refuse(const ConvProblem&, const Context&) { return nullptr; }
double cost(const ConvProblem& p, const Context& ctx) {
  return 1e6 + 1e-3 * double(ctx.images) * double(p.z * p.p * p.q) * double(p.k) * double(p.t * p.r * p.s * (p.c / p.groups));
}
int64_t workspace_bytes(const ConvProblem&, const Context&) { return 0; }
cudaError_t run(const ConvProblem& p, const ConvArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  const int64_t items = ctx.images * p.z * p.p * p.q * p.k;
  if (!items) return cudaSuccess;
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    return launch<false>(conv<T>, dim3(blocks_for(items, 256)), dim3(256), 0, stream, p, a.x, a.y, static_cast<const float*>(a.weights),
                         epilogue(p.act, a), items);
  });
}
int64_t packed_bytes(const ConvProblem& p, const Context&) { return p.t * p.r * p.s * (p.c / p.groups) * p.k * 4; }
cudaError_t pack(const ConvProblem& p, const Context& ctx, const float* weights, void* packed, cudaStream_t stream) {
  return cudaMemcpyAsync(packed, weights, static_cast<size_t>(packed_bytes(p, ctx)), cudaMemcpyDeviceToDevice, stream);
}

}  // namespace

extern const ConvKernel conv_ref;
const ConvKernel conv_ref = {"conv_ref", refuse, cost, workspace_bytes, run, packed_bytes, pack};

}  // namespace ck::cuda
