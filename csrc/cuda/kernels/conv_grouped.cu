// conv_grouped.cu: convolution in narrow groups (ResNeXt: 4 to 32 channels), on CUDA cores.
//
// Computes  y[n,p,q,k] = act(scale[k] * sum_{r,s,c} x[n, p*sh-ph+r*dh, q*sw-pw+s*dw, g*C/G+c] * w[r,s,c,k] + bias[k] + residual), g = k / (K/G)
// Layout    x NHWC, w [r][s][c][k] in x's type, y NPQK; sums in float in the order r s c
// Tiling    a thread = four filters of a group x kPixels outputs of a row: 4 x 4 sums. Neighbouring threads take neighbouring filters, so that x, w and y
//           are read and written in whole lines although a group is narrow
// Cost      2*NPQ*K*RS*C/G flop; for 16 multiply-adds a pixel and channel quad: one load of x, and a quarter of four loads of w
// Refuses   three dimensions, transposed, one group, channels or filters of a group not in fours or more than 64
// Source    Xie et al. 2017, arXiv:1611.05431, sec. 3.3 (the layers)
#include "cuda/gemm.cuh"

namespace ck::cuda {

int64_t pack_plain_bytes(const ConvProblem& p, const Context& ctx);
cudaError_t pack_plain(const ConvProblem& p, const Context& ctx, const float* weights, void* packed, cudaStream_t stream);

namespace {

constexpr int kPixels = 4;

struct Geometry {
  int h, w, q, r, s, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, c_group, k_group, k;
};

template <class T>
__global__ void __launch_bounds__(128)
    grouped(View x, View y, const T* weights, Epilogue e, Geometry g, Divider<uint32_t> by_k, Divider<uint32_t> by_strip,
            Divider<uint32_t> by_p, Divider<uint32_t> by_group, uint32_t items) {
  const uint32_t step = gridDim.x * blockDim.x;
  for (uint32_t item = blockIdx.x * blockDim.x + threadIdx.x; item < items; item += step) {
    uint32_t quad, strip, p;
    const uint32_t rest = by_k.divmod(item, quad), row = by_strip.divmod(rest, strip), n = by_p.divmod(row, p);
    const int k = static_cast<int>(quad) * 4, q0 = static_cast<int>(strip) * kPixels;
    const int first_c = static_cast<int>(by_group.div(static_cast<uint32_t>(k))) * g.c_group;
    const int h0 = static_cast<int>(p) * g.stride_h - g.pad_h, w0 = q0 * g.stride_w - g.pad_w;
    float sum[kPixels][4] = {};
    for (int r = 0; r < g.r; ++r) {
      const int h = h0 + r * g.dil_h;
      if (h < 0 || h >= g.h) continue;
      const T* x_h = at<const T>(x, n, 0, h, 0) + first_c;
      for (int s = 0; s < g.s; ++s) {
        const T* w_rs = weights + static_cast<int64_t>(r * g.s + s) * g.c_group * g.k + k;
        for (int c = 0; c < g.c_group; c += 4) {
          float f[4][4];
#pragma unroll
          for (int j = 0; j < 4; ++j) load<4>(w_rs + static_cast<int64_t>(c + j) * g.k, f[j]);
#pragma unroll
          for (int i = 0; i < kPixels; ++i) {
            const int w = w0 + i * g.stride_w + s * g.dil_w;
            if (w < 0 || w >= g.w) continue;
            float v[4];
            load<4>(x_h + w * x.pixel + c, v);
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
              for (int l = 0; l < 4; ++l) sum[i][l] += v[j] * f[j][l];
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kPixels; ++i)
      if (q0 + i < g.q) finish_store<4>(e, sum[i], k, n, 0, p, q0 + i, at<T>(y, n, 0, p, q0 + i) + k);
  }
}

const char* refuse(const ConvProblem& p, const Context& ctx) {
  if (p.transposed) return "transposed";
  if (p.groups == 1) return "one group";
  if (p.t != 1 || p.d != 1 || p.z != 1 || p.pad_d_lo || p.pad_d_hi) return "three dimensions";
  const int64_t c = p.c / p.groups, k = p.k / p.groups;
  if (c % 4 || k % 4 || c > 64 || k > 64) return "channels or filters of a group are not in fours, or more than 64";
  const int bytes = 4 * element_bytes(ctx.precision);
  if (ctx.x_align < bytes || ctx.y_align < bytes || ctx.residual_align < bytes)
    return "strides or addresses do not keep four elements together";
  constexpr int64_t kMost = int64_t{1} << 28;
  if (p.h >= kMost || p.w >= kMost || p.k >= kMost || p.r * p.dil_h >= kMost || p.s * p.dil_w >= kMost || p.p * p.stride_h >= kMost ||
      (p.q + kPixels) * p.stride_w >= kMost || p.pad_h_lo >= kMost || p.pad_w_lo >= kMost)
    return "a size is too large";
  if (p.p * ceil_div(p.q, kPixels) * (p.k / 4) >= too_many_items()) return "an image has more than 2^31 strips";
  return nullptr;
}
double cost(const ConvProblem& p, const Context& ctx) {
  const double compute = double(ctx.images) * double(p.p * p.q) * double(p.k) * double(p.r * p.s * (p.c / p.groups)) /
                         (ctx.device->multiprocessors * 64 * 1600.0 * 0.4);
  const double memory = conv_bytes(p, ctx) / 2.2e6;
  return 3 + (compute > memory ? compute : memory);
}
int64_t workspace_bytes(const ConvProblem&, const Context&) { return 0; }

cudaError_t run(const ConvProblem& p, const ConvArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  const Geometry g{int(p.h),
                   int(p.w),
                   int(p.q),
                   int(p.r),
                   int(p.s),
                   int(p.stride_h),
                   int(p.stride_w),
                   int(p.pad_h_lo),
                   int(p.pad_w_lo),
                   int(p.dil_h),
                   int(p.dil_w),
                   int(p.c / p.groups),
                   int(p.k / p.groups),
                   int(p.k)};
  const int64_t strips = ceil_div(p.q, kPixels), one = p.p * strips * (p.k / 4);
  if (!one) return cudaSuccess;
  const int64_t part = (too_many_items() - 1) / one;  // images of a launch, so that its threads fit 31 bits
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    using D = Divider<uint32_t>;
    for (int64_t first = 0; first < ctx.images; first += part) {
      const int64_t images = ctx.images - first < part ? ctx.images - first : part, items = images * one;
      const ConvArgs own = from_image(a, first, element_bytes(ctx.precision));
      const cudaError_t e =
          launch<false>(grouped<T>, dim3(blocks_for(items, 128)), dim3(128), 0, stream, own.x, own.y, static_cast<const T*>(own.weights),
                        epilogue(p.act, own), g, D(p.k / 4), D(strips), D(p.p), D(p.k / p.groups), static_cast<uint32_t>(items));
      if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
  });
}

}  // namespace

extern const ConvKernel conv_grouped;
const ConvKernel conv_grouped = {"conv_grouped", refuse, cost, workspace_bytes, run, pack_plain_bytes, pack_plain};

}  // namespace ck::cuda
