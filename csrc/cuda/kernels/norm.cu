// norm.cu: operators over the channels of each pixel.
//
// Computes  scale_shift   y = act(x * scale + shift)
//           layer_norm    y = (x - mean) / sqrt(var + eps) * scale + shift, mean and (biased) variance over the pixel's channels
//           lrn           y = x / (k + alpha/size * sum of x^2 over channels [c - size/2, c + (size-1)/2])^beta
//           softmax       y = exp(x - max) / sum exp(x - max);  log_softmax  y = x - max - log(sum exp(x - max))
// Layout    x and y NDHWC, scale and shift C
// Tiling    norm_vector: a thread = 16 bytes of channels (scale_shift); norm_block: a block of 128 threads = a pixel, sums by a tree of fixed shape
//           (layer_norm, softmax); norm_any: a thread = a channel for scale_shift and lrn, else a pixel
// Cost      bandwidth; layer_norm and softmax read a pixel two or three times, from the caches
// Refuses   norm_vector: other kinds, strides that are no multiple of 16 bytes; norm_block: scale_shift and lrn
// Source    torch.nn.functional.batch_norm, layer_norm, local_response_norm, softmax
#include "cuda/kernel.cuh"

namespace ck::cuda {
namespace {

struct Pixels {  // flat pixel -> n d h w
  Divider<uint64_t> w, h, d;
  explicit Pixels(const NormProblem& p) : w(p.w), h(p.h), d(p.d) {}
  template <class T>
  CK_DEVICE T* find(const View& v, uint64_t pixel) const {
    uint64_t x, y, z;
    const uint64_t row = w.divmod(pixel, x), slice = h.divmod(row, y), n = d.divmod(slice, z);
    return at<T>(v, static_cast<int64_t>(n), static_cast<int64_t>(z), static_cast<int64_t>(y), static_cast<int64_t>(x));
  }
};

template <class T, int kCount, class I>
__global__ void scale_shift(View x, View y, const float* scale, const float* shift, ActivationF act, Divider<I> by_c, Divider<I> by_w,
                            Divider<I> by_h, Divider<I> by_d, I items) {
  const I step = static_cast<I>(gridDim.x) * blockDim.x;
  for (I item = static_cast<I>(blockIdx.x) * blockDim.x + threadIdx.x; item < items; item += step) {
    I c, w, h, d;
    const I pixel = by_c.divmod(item, c);
    const I row = by_w.divmod(pixel, w);
    const I slice = by_h.divmod(row, h);
    const I n = by_d.divmod(slice, d);
    const int64_t first = static_cast<int64_t>(c) * kCount;
    float v[kCount];
    load<kCount>(at<const T>(x, n, d, h, w) + first, v);
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = activate(v[i] * (scale ? scale[first + i] : 1.f) + (shift ? shift[first + i] : 0.f), act);
    store<kCount>(at<T>(y, n, d, h, w) + first, v);
  }
}

// The sum (or maximum) over a block, the same in every thread: inside warps by shuffles, across them in order.
constexpr int kBlock = 128;
template <bool kMax>
CK_DEVICE float join(float a, float b) {
  return kMax ? (a > b ? a : b) : a + b;
}
template <bool kMax>
__device__ __forceinline__ float over_block(float v, float* shared) {
  for (int lane = 16; lane > 0; lane /= 2) v = join<kMax>(v, __shfl_xor_sync(0xffffffffu, v, lane));
  __syncthreads();  // the last use of `shared` is over
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  v = shared[0];
  for (int warp = 1; warp < kBlock / 32; ++warp) v = join<kMax>(v, shared[warp]);
  return v;
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    norm_pixel(NormProblem p, View x, View y, const float* scale, const float* shift, Pixels pixels, uint64_t count) {
  __shared__ float shared[kBlock / 32];
  for (uint64_t pixel = blockIdx.x; pixel < count; pixel += gridDim.x) {
    const T* from = pixels.find<const T>(x, pixel);
    T* to = pixels.find<T>(y, pixel);
    if (p.kind == NormKind::kLayerNorm) {
      float sum = 0;
      for (int64_t c = threadIdx.x; c < p.c; c += kBlock) sum += to_float(from[c]);
      const float mean = over_block<false>(sum, shared) / static_cast<float>(p.c);
      float squares = 0;
      for (int64_t c = threadIdx.x; c < p.c; c += kBlock) {
        const float v = to_float(from[c]) - mean;
        squares += v * v;
      }
      const float inverse = 1.f / sqrtf(over_block<false>(squares, shared) / static_cast<float>(p.c) + static_cast<float>(p.eps));
      for (int64_t c = threadIdx.x; c < p.c; c += kBlock)
        to[c] = from_float<T>((to_float(from[c]) - mean) * inverse * (scale ? scale[c] : 1.f) + (shift ? shift[c] : 0.f));
    } else {
      float max = -INFINITY;
      for (int64_t c = threadIdx.x; c < p.c; c += kBlock) max = join<true>(max, to_float(from[c]));
      max = over_block<true>(max, shared);
      float sum = 0;
      for (int64_t c = threadIdx.x; c < p.c; c += kBlock) sum += expf(to_float(from[c]) - max);
      sum = over_block<false>(sum, shared);
      const float log_sum = logf(sum);
      for (int64_t c = threadIdx.x; c < p.c; c += kBlock) {
        const float v = to_float(from[c]) - max;
        to[c] = from_float<T>(p.kind == NormKind::kSoftmax ? expf(v) / sum : v - log_sum);
      }
    }
  }
}

template <class T>
__global__ void lrn(NormProblem p, View x, View y, Pixels pixels, uint64_t items) {
  const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  for (uint64_t item = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < items; item += step) {
    const uint64_t pixel = item / static_cast<uint64_t>(p.c);
    const int64_t c = static_cast<int64_t>(item % static_cast<uint64_t>(p.c));
    const T* from = pixels.find<const T>(x, pixel);
    float sum = 0;
    for (int64_t i = c - p.size / 2; i <= c + (p.size - 1) / 2; ++i)
      if (i >= 0 && i < p.c) sum += to_float(from[i]) * to_float(from[i]);
    const float base = static_cast<float>(p.k) + static_cast<float>(p.alpha / static_cast<double>(p.size)) * sum;
    pixels.find<T>(y, pixel)[c] = from_float<T>(to_float(from[c]) / powf(base, static_cast<float>(p.beta)));
  }
}

// A thread walks the channels of a pixel alone, in order.
template <class T>
__global__ void norm_thread(NormProblem p, View x, View y, const float* scale, const float* shift, Pixels pixels, uint64_t count) {
  const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  for (uint64_t pixel = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; pixel < count; pixel += step) {
    const T* from = pixels.find<const T>(x, pixel);
    T* to = pixels.find<T>(y, pixel);
    if (p.kind == NormKind::kLayerNorm) {
      float sum = 0, squares = 0;
      for (int64_t c = 0; c < p.c; ++c) sum += to_float(from[c]);
      const float mean = sum / static_cast<float>(p.c);
      for (int64_t c = 0; c < p.c; ++c) squares += (to_float(from[c]) - mean) * (to_float(from[c]) - mean);
      const float inverse = 1.f / sqrtf(squares / static_cast<float>(p.c) + static_cast<float>(p.eps));
      for (int64_t c = 0; c < p.c; ++c)
        to[c] = from_float<T>((to_float(from[c]) - mean) * inverse * (scale ? scale[c] : 1.f) + (shift ? shift[c] : 0.f));
    } else {
      float max = -INFINITY, sum = 0;
      for (int64_t c = 0; c < p.c; ++c) max = join<true>(max, to_float(from[c]));
      for (int64_t c = 0; c < p.c; ++c) sum += expf(to_float(from[c]) - max);
      for (int64_t c = 0; c < p.c; ++c) {
        const float v = to_float(from[c]) - max;
        to[c] = from_float<T>(p.kind == NormKind::kSoftmax ? expf(v) / sum : v - logf(sum));
      }
    }
  }
}

int64_t pixel_count(const NormProblem& p, const Context& ctx) { return ctx.images * p.d * p.h * p.w; }

template <class T, int kCount>
cudaError_t start_scale_shift(const NormProblem& p, const NormArgs& a, const Context& ctx, cudaStream_t stream) {
  const int64_t items = pixel_count(p, ctx) * (p.c / kCount);
  if (!items) return cudaSuccess;
  return with_index(items, [&](auto zero) {
    using I = decltype(zero);
    return launch<false>(scale_shift<T, kCount, I>, dim3(blocks_for(items, 256)), dim3(256), 0, stream, a.x, a.y, a.scale, a.shift,
                         activation_f(p.act), Divider<I>(p.c / kCount), Divider<I>(p.w), Divider<I>(p.h), Divider<I>(p.d),
                         static_cast<I>(items));
  });
}

double bytes(const NormProblem& p, const Context& ctx) {
  return 2.0 * double(pixel_count(p, ctx)) * double(p.c) * element_bytes(ctx.precision);
}

const char* refuse_vector(const NormProblem& p, const Context& ctx) {
  if (p.kind != NormKind::kScaleShift) return "only scale and shift";
  if (p.c % (16 / element_bytes(ctx.precision))) return "channels are no multiple of 16 bytes";
  if (ctx.x_align < 16 || ctx.y_align < 16) return "strides or addresses are no multiple of 16 bytes";
  return nullptr;
}
double cost_vector(const NormProblem& p, const Context& ctx) { return 2.5 + bytes(p, ctx) / 2.5e6; }
cudaError_t run_vector(const NormProblem& p, const NormArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    return start_scale_shift<T, kVector<T>>(p, a, ctx, stream);
  });
}

const char* refuse_block(const NormProblem& p, const Context&) {
  return p.kind == NormKind::kScaleShift || p.kind == NormKind::kLrn ? "only layer norm and softmax" : nullptr;
}
// A block for a pixel: some 0.5 us each, of which each multiprocessor runs sixteen.
double cost_block(const NormProblem& p, const Context& ctx) {
  return 3 + bytes(p, ctx) / 1.5e6 + 0.5 * double(pixel_count(p, ctx)) / (16.0 * ctx.device->multiprocessors);
}
cudaError_t run_block(const NormProblem& p, const NormArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  const int64_t count = p.c ? pixel_count(p, ctx) : 0;
  if (!count) return cudaSuccess;
  return with_element(ctx.precision, [&](auto zero) {
    return launch<true>(norm_pixel<decltype(zero)>, dim3(blocks_for(count, 1)), dim3(kBlock), 0, stream, p, a.x, a.y, a.scale, a.shift,
                        Pixels(p), static_cast<uint64_t>(count));
  });
}

const char* refuse_none(const NormProblem&, const Context&) { return nullptr; }
double cost_any(const NormProblem& p, const Context& ctx) {
  const bool per_channel = p.kind == NormKind::kScaleShift || p.kind == NormKind::kLrn;
  return 4 + bytes(p, ctx) / (per_channel ? 1e6 : 0.5e6) + (per_channel ? 0.0 : 0.05 * double(p.c));
}
cudaError_t run_any(const NormProblem& p, const NormArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  const int64_t count = p.c ? pixel_count(p, ctx) : 0;
  if (!count) return cudaSuccess;
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    if (p.kind == NormKind::kScaleShift) return start_scale_shift<T, 1>(p, a, ctx, stream);
    if (p.kind == NormKind::kLrn)
      return launch<false>(lrn<T>, dim3(blocks_for(count * p.c, 256)), dim3(256), 0, stream, p, a.x, a.y, Pixels(p),
                           static_cast<uint64_t>(count * p.c));
    return launch<false>(norm_thread<T>, dim3(blocks_for(count, 128)), dim3(128), 0, stream, p, a.x, a.y, a.scale, a.shift, Pixels(p),
                         static_cast<uint64_t>(count));
  });
}
int64_t no_workspace(const NormProblem&, const Context&) { return 0; }

}  // namespace

extern const NormKernel norm_vector, norm_block, norm_any;
const NormKernel norm_vector = {"norm_vector", refuse_vector, cost_vector, no_workspace, run_vector};
const NormKernel norm_block = {"norm_block", refuse_block, cost_block, no_workspace, run_block};
const NormKernel norm_any = {"norm_any", refuse_none, cost_any, no_workspace, run_any};

}  // namespace ck::cuda
