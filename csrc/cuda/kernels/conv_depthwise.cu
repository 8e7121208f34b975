// conv_depthwise.cu: depthwise convolution.
//
// Computes  y[n,p,q,c] = act(scale[c] * sum_rs x[n, p*sh-ph+r*dh, q*sw-pw+s*dw, c] * w[r,s,c] + bias[c] + residual)
// Layout    x NHWC, w [r][s][c] in x's type, y NPQC; sums in float in the order r s
// Tiling    a thread = 16 bytes of channels x kPixels outputs of a row. Filters of 3x3 and 5x5 with stride 1 or 2 are compiled in: a row of inputs is
//           read into registers once and serves all outputs and taps; others read each tap
// Cost      2*NPQC*RS flop; 4*(NHWC + RSC + NPQC) bytes: bandwidth
// Refuses   three dimensions, groups != C or K != C, transposed, channels or strides that are no multiple of 16 bytes
// Source    Howard et al. 2017, arXiv:1704.04861, sec. 3.1
#include "cuda/gemm.cuh"

namespace ck::cuda {
namespace {

constexpr int kPixels = 4;

struct Geometry {
  int h, w, q, r, s, stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;
};

// kR = kS = kStride = 0: known at run time only.
template <class T, int kR, int kS, int kStride>
__global__ void __launch_bounds__(128)
    depthwise(View x, View y, const T* weights, Epilogue e, Geometry g, int channels, Divider<uint32_t> by_c, Divider<uint32_t> by_strip,
              Divider<uint32_t> by_p, uint32_t items) {
  constexpr int kVec = kVector<T>;
  const uint32_t step = gridDim.x * blockDim.x;
  for (uint32_t item = blockIdx.x * blockDim.x + threadIdx.x; item < items; item += step) {
    uint32_t vector, strip, p;
    const uint32_t rest = by_c.divmod(item, vector), row = by_strip.divmod(rest, strip), n = by_p.divmod(row, p);
    const int c = static_cast<int>(vector) * kVec, q0 = static_cast<int>(strip) * kPixels;
    const int rows = kR ? kR : g.r, taps = kS ? kS : g.s, stride = kStride ? kStride : g.stride_w;
    const int h0 = static_cast<int>(p) * g.stride_h - g.pad_h, w0 = q0 * stride - g.pad_w;
    float sum[kPixels][kVec] = {};
    for (int r = 0; r < rows; ++r) {
      const int h = h0 + r * g.dil_h;
      if (h < 0 || h >= g.h) continue;
      const T* x_h = at<const T>(x, n, 0, h, 0) + c;
      const T* w_r = weights + static_cast<int64_t>(r) * taps * channels + c;
      if constexpr (kS > 0) {  // dilation 1
        constexpr int kInputs = (kPixels - 1) * kStride + kS;
        Pack<T, kVec> in[kInputs];
#pragma unroll
        for (int i = 0; i < kInputs; ++i) {
          const int w = w0 + i;
          if (w >= 0 && w < g.w) in[i] = *reinterpret_cast<const Pack<T, kVec>*>(x_h + w * x.pixel);
          else
#pragma unroll
            for (int j = 0; j < kVec; ++j) in[i].v[j] = from_float<T>(0.f);
        }
#pragma unroll
        for (int s = 0; s < kS; ++s) {
          float f[kVec];
          load<kVec>(w_r + static_cast<int64_t>(s) * channels, f);
#pragma unroll
          for (int i = 0; i < kPixels; ++i)
#pragma unroll
            for (int j = 0; j < kVec; ++j) sum[i][j] += to_float(in[i * kStride + s].v[j]) * f[j];
        }
      } else {
        for (int s = 0; s < taps; ++s) {
          float f[kVec];
          load<kVec>(w_r + static_cast<int64_t>(s) * channels, f);
#pragma unroll
          for (int i = 0; i < kPixels; ++i) {
            const int w = w0 + i * stride + s * g.dil_w;
            if (w < 0 || w >= g.w) continue;
            float v[kVec];
            load<kVec>(x_h + w * x.pixel, v);
#pragma unroll
            for (int j = 0; j < kVec; ++j) sum[i][j] += v[j] * f[j];
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kPixels; ++i)
      if (q0 + i < g.q) finish_store<kVec>(e, sum[i], c, n, 0, p, q0 + i, at<T>(y, n, 0, p, q0 + i) + c);
  }
}

const char* refuse(const ConvProblem& p, const Context& ctx) {
  if (p.transposed) return "transposed";
  if (p.groups != p.c || p.k != p.c) return "not depthwise with one filter a channel";
  if (p.t != 1 || p.d != 1 || p.z != 1 || p.pad_d_lo || p.pad_d_hi) return "three dimensions";
  if (p.c % (16 / element_bytes(ctx.precision))) return "channels are no multiple of 16 bytes";
  if (ctx.x_align < 16 || ctx.y_align < 16 || ctx.residual_align < 16) return "strides or addresses are no multiple of 16 bytes";
  constexpr int64_t kMost = int64_t{1} << 28;
  if (p.h >= kMost || p.w >= kMost || p.c >= kMost || p.r * p.dil_h >= kMost || p.s * p.dil_w >= kMost || p.p * p.stride_h >= kMost ||
      (p.q + kPixels) * p.stride_w >= kMost || p.pad_h_lo >= kMost || p.pad_w_lo >= kMost)
    return "a size is too large";
  if (p.p * ceil_div(p.q, kPixels) * (p.c / (16 / element_bytes(ctx.precision))) >= too_many_items())
    return "an image has more than 2^31 strips";
  return nullptr;
}
double cost(const ConvProblem& p, const Context& ctx) {
  const double compute =
      double(ctx.images) * double(p.p * p.q) * double(p.c) * double(p.r * p.s) / (ctx.device->multiprocessors * 64 * 1600.0 * 0.5);
  const double memory = conv_bytes(p, ctx) / 2.2e6;
  return 3 + (compute > memory ? compute : memory);
}
int64_t workspace_bytes(const ConvProblem&, const Context&) { return 0; }

cudaError_t run(const ConvProblem& p, const ConvArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  const Geometry g{int(p.h),        int(p.w),        int(p.q),        int(p.r),     int(p.s),    int(p.stride_h),
                   int(p.stride_w), int(p.pad_h_lo), int(p.pad_w_lo), int(p.dil_h), int(p.dil_w)};
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    const int64_t strips = ceil_div(p.q, kPixels), one = p.p * strips * (p.c / kVector<T>);
    const int64_t part = one > 0 ? (too_many_items() - 1) / one : 1;  // images of a launch, so that its threads fit 31 bits
    for (int64_t first = 0; first < ctx.images && one; first += part) {
      const int64_t images = ctx.images - first < part ? ctx.images - first : part, items = images * one;
      const ConvArgs own = from_image(a, first, element_bytes(ctx.precision));
      auto go = [&](auto* kernel) {
        using D = Divider<uint32_t>;
        return launch<false>(kernel, dim3(blocks_for(items, 128)), dim3(128), 0, stream, own.x, own.y, static_cast<const T*>(own.weights),
                             epilogue(p.act, own), g, static_cast<int>(p.c), D(p.c / kVector<T>), D(strips), D(p.p),
                             static_cast<uint32_t>(items));
      };
      const bool plain = p.r == p.s && p.dil_h == 1 && p.dil_w == 1 && p.stride_h == p.stride_w;
      const cudaError_t e = plain && p.r == 3 && p.stride_w == 1   ? go(depthwise<T, 3, 3, 1>)
                            : plain && p.r == 3 && p.stride_w == 2 ? go(depthwise<T, 3, 3, 2>)
                            : plain && p.r == 5 && p.stride_w == 1 ? go(depthwise<T, 5, 5, 1>)
                            : plain && p.r == 5 && p.stride_w == 2 ? go(depthwise<T, 5, 5, 2>)
                                                                   : go(depthwise<T, 0, 0, 0>);
      if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
  });
}

// w [r][s][1][c] is in place already.
template <class T>
__global__ void narrow(const float* from, T* to, int64_t items) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < items; i += step) to[i] = from_float<T>(from[i]);
}

}  // namespace

int64_t pack_plain_bytes(const ConvProblem& p, const Context& ctx) {
  return p.t * p.r * p.s * (p.c / p.groups) * p.k * element_bytes(ctx.precision);
}
cudaError_t pack_plain(const ConvProblem& p, const Context& ctx, const float* weights, void* packed, cudaStream_t stream) {
  const int64_t items = p.t * p.r * p.s * (p.c / p.groups) * p.k;
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    return launch<false>(narrow<T>, dim3(blocks_for(items, 256)), dim3(256), 0, stream, weights, static_cast<T*>(packed), items);
  });
}

extern const ConvKernel conv_depthwise;
const ConvKernel conv_depthwise = {"conv_depthwise", refuse, cost, workspace_bytes, run, pack_plain_bytes, pack_plain};

}  // namespace ck::cuda
