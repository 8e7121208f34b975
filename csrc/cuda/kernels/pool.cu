// pool.cu: max and average pooling of any window, adaptive and global ones included.
//
// Computes  y[n,z,p,q,c] = max or sum/divisor of x[n,d,h,w,c] over the window of (z,p,q)   (core/window.h)
// Layout    x NDHWC, y NZPQC; index like y: the flat position of the maximum within d*h*w. The last NaN wins, else the first maximum
// Tiling    pool_window (2x2 and 3x3, stride 1 or 2): a thread = 16 bytes of channels of two neighbouring outputs, which share columns of inputs; all of
//           a row's loads are on their way before the first is used. pool_vector: a thread = 16 bytes of channels of an output pixel; pool_global: a
//           block = 32 vectors of channels of an image whose pixels 8 warps share, partial results joined in the warps' order; pool_any: a thread = an
//           output element
// Cost      one read of x (windows overlap in the caches), one write of y: bandwidth
// Refuses   pool_window: other windows, dilation, indices, and as pool_vector; pool_vector: channels or strides that are no multiple of 16 bytes;
//           pool_global: the same, indices, more than one output pixel
// Source    torch.nn.functional.max_pool3d, avg_pool3d, adaptive_*_pool3d
#include "core/window.h"
#include "cuda/kernel.cuh"

namespace ck::cuda {
namespace {

// Maximum or sum of one channel, and where.
template <int kCount>
struct Gathered {
  float v[kCount];
  int64_t where[kCount];

  CK_DEVICE void begin(bool max, int64_t start) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = max ? -INFINITY : 0.f, where[i] = start;
  }
  CK_DEVICE void add(bool max, const float (&x)[kCount], int64_t at) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (!max) v[i] += x[i];
      else if (x[i] > v[i] || x[i] != x[i]) v[i] = x[i], where[i] = at;
    }
  }
};

template <class T, int kCount, class I, bool kIndices>
__global__ void pool(PoolProblem p, View x, View y, View index, Divider<I> by_c, Divider<I> by_q, Divider<I> by_p, Divider<I> by_z,
                     I items) {
  const I step = static_cast<I>(gridDim.x) * blockDim.x;
  const bool max = p.kind == PoolKind::kMax;
  for (I item = static_cast<I>(blockIdx.x) * blockDim.x + threadIdx.x; item < items; item += step) {
    I c, q, i, z;
    const I pixel = by_c.divmod(item, c);
    const I row = by_q.divmod(pixel, q);
    const I slice = by_p.divmod(row, i);
    const I n = by_z.divmod(slice, z);
    const Taps depth = depth_taps(p, z), rows = row_taps(p, i), columns = column_taps(p, q);
    Gathered<kCount> g;
    g.begin(max, (depth.first * p.h + rows.first) * p.w + columns.first);
    for (int64_t t = 0; t < depth.count; ++t)
      for (int64_t r = 0; r < rows.count; ++r) {
        const int64_t d = depth.first + t * depth.step, h = rows.first + r * rows.step;
        const T* x_h = at<const T>(x, n, d, h, columns.first) + static_cast<int64_t>(c) * kCount;
        for (int64_t s = 0; s < columns.count; ++s) {
          float v[kCount];
          load<kCount>(x_h + s * columns.step * x.pixel, v);
          g.add(max, v, kIndices ? (d * p.h + h) * p.w + columns.first + s * columns.step : 0);
        }
      }
    if (!max) {
      const float divisor = static_cast<float>(pool_divisor(p, depth, rows, columns));
#pragma unroll
      for (int j = 0; j < kCount; ++j) g.v[j] /= divisor;
    }
    store<kCount>(at<T>(y, n, z, i, q) + static_cast<int64_t>(c) * kCount, g.v);
    if (kIndices) {
      int64_t* out = at<int64_t>(index, n, z, i, q) + static_cast<int64_t>(c) * kCount;
#pragma unroll
      for (int j = 0; j < kCount; ++j) out[j] = g.where[j];
    }
  }
}

// The larger, or the sum. NaN stays NaN.
template <bool kMax>
CK_DEVICE float join(float a, float b) {
  if (!kMax) return a + b;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
#else
  return b > a || b != b ? b : a;
#endif
}

struct Window {
  int h, w, q, stride_h, pad_h, pad_w, pad_h_hi, pad_w_hi;
  int divisor;  // average: 0 = the number of elements
  int with_padding;
};
constexpr int kStrip = 2;  // outputs of a thread

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define CK_STRIP_BOUNDS __launch_bounds__(256, 2)  // ptxas aims at three blocks by itself, and spills
#else
#define CK_STRIP_BOUNDS __launch_bounds__(256)
#endif

template <class T, int kSide, int kStride, bool kMax>
__global__ void CK_STRIP_BOUNDS pool_strip(View x, View y, Window g, Divider<uint32_t> by_c, Divider<uint32_t> by_strip,
                                           Divider<uint32_t> by_p, uint32_t items) {
  constexpr int kCount = kVector<T>, kColumns = (kStrip - 1) * kStride + kSide;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  [[maybe_unused]] constexpr int kRowsAtOnce = 1;  // a maximum that keeps NaN takes a comparison more there, and registers
#else
  [[maybe_unused]] constexpr int kRowsAtOnce = kSide;
#endif
  const uint32_t step = gridDim.x * blockDim.x;
  for (uint32_t item = blockIdx.x * blockDim.x + threadIdx.x; item < items; item += step) {
    uint32_t vector, strip, p;
    const uint32_t rest = by_c.divmod(item, vector), line = by_strip.divmod(rest, strip), n = by_p.divmod(line, p);
    const int q0 = static_cast<int>(strip) * kStrip, h0 = static_cast<int>(p) * g.stride_h - g.pad_h, w0 = q0 * kStride - g.pad_w;
    const int64_t c = static_cast<int64_t>(vector) * kCount;
    const T* x_n = at<const T>(x, n, 0, 0, 0) + c;
    float column[kColumns][kCount];
#pragma unroll(kRowsAtOnce)
    for (int r = 0; r < kSide; ++r) {
      const bool row = h0 + r >= 0 && h0 + r < g.h;
      const T* x_h = x_n + static_cast<int64_t>(h0 + r) * x.row;
      Pack<T, kCount> in[kColumns];
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        if (row && w0 + i >= 0 && w0 + i < g.w) in[i] = *reinterpret_cast<const Pack<T, kCount>*>(x_h + (w0 + i) * x.pixel);
        else
#pragma unroll
          for (int j = 0; j < kCount; ++j) in[i].v[j] = from_float<T>(kMax ? -INFINITY : 0.f);
      }
#pragma unroll
      for (int i = 0; i < kColumns; ++i)
#pragma unroll
        for (int j = 0; j < kCount; ++j) column[i][j] = r ? join<kMax>(column[i][j], to_float(in[i].v[j])) : to_float(in[i].v[j]);
    }
    // Elements along a dimension that starts at `first`: those inside, or inside of the padding, too.
    auto elements = [&](int first, int size, int pad_hi) {
      const int end = first + kSide < size + (g.with_padding ? pad_hi : 0) ? first + kSide : size + (g.with_padding ? pad_hi : 0);
      const int begin = g.with_padding || first > 0 ? first : 0;
      return end > begin ? end - begin : 0;
    };
#pragma unroll
    for (int o = 0; o < kStrip; ++o) {
      if (q0 + o >= g.q) break;
      float v[kCount];
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        v[j] = column[o * kStride][j];
#pragma unroll
        for (int s = 1; s < kSide; ++s) v[j] = join<kMax>(v[j], column[o * kStride + s][j]);
      }
      if (!kMax) {
        int divisor = g.divisor ? g.divisor : elements(h0, g.h, g.pad_h_hi) * elements(w0 + o * kStride, g.w, g.pad_w_hi);
        if (divisor < 1) divisor = 1;
#pragma unroll
        for (int j = 0; j < kCount; ++j) v[j] /= static_cast<float>(divisor);
      }
      store<kCount>(at<T>(y, n, 0, p, q0 + o) + c, v);
    }
  }
}

constexpr int kLanes = 32, kWarps = 8;

// Grid: (channel vectors / 32, images).
template <class T, int kCount>
__global__ void __launch_bounds__(kLanes* kWarps) pool_all(PoolProblem p, View x, View y) {
  __shared__ float partial[kWarps][kLanes][kCount];
  const bool max = p.kind == PoolKind::kMax;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * kLanes + lane) * kCount, pixels = p.d * p.h * p.w;
  const bool inside = c < p.c;
  const int64_t n = blockIdx.y;
  Gathered<kCount> g;
  g.begin(max, 0);
  if (inside)
    for (int64_t i = warp; i < pixels; i += kWarps) {
      float v[kCount];
      load<kCount>(at<const T>(x, n, i / (p.h * p.w), i / p.w % p.h, i % p.w) + c, v);
      g.add(max, v, 0);
    }
#pragma unroll
  for (int j = 0; j < kCount; ++j) partial[warp][lane][j] = g.v[j];
  __syncthreads();
  if (warp != 0 || !inside) return;
  for (int other = 1; other < kWarps; ++other) g.add(max, partial[other][lane], 0);
  const float divisor = max ? 1.f : static_cast<float>(p.divisor > 0 ? p.divisor : pixels);
#pragma unroll
  for (int j = 0; j < kCount; ++j) g.v[j] /= divisor;
  store<kCount>(at<T>(y, n, 0, 0, 0) + c, g.v);
}

template <class T, int kCount>
cudaError_t start(const PoolProblem& p, const PoolArgs& a, const Context& ctx, cudaStream_t stream) {
  const int64_t items = ctx.images * p.z * p.p * p.q * (p.c / kCount);
  if (!items) return cudaSuccess;
  return with_index(items, [&](auto zero) {
    using I = decltype(zero);
    auto go = [&](auto* kernel) {
      return launch<false>(kernel, dim3(blocks_for(items, 256)), dim3(256), 0, stream, p, a.x, a.y, a.index, Divider<I>(p.c / kCount),
                           Divider<I>(p.q), Divider<I>(p.p), Divider<I>(p.z), static_cast<I>(items));
    };
    return p.indices ? go(pool<T, kCount, I, true>) : go(pool<T, kCount, I, false>);
  });
}

double bytes(const PoolProblem& p, const Context& ctx) {
  return double(ctx.images) * double(element_bytes(ctx.precision)) * double(p.c) * (double(p.d * p.h * p.w) + double(p.z * p.p * p.q));
}
double window(const PoolProblem& p) { return p.adaptive ? double(p.d * p.h * p.w) / double(p.z * p.p * p.q) + 1 : double(p.t * p.r * p.s); }

const char* refuse_vector(const PoolProblem& p, const Context& ctx) {
  if (p.c % (16 / element_bytes(ctx.precision))) return "channels are no multiple of 16 bytes";
  if (ctx.x_align < 16 || ctx.y_align < 16) return "strides or addresses are no multiple of 16 bytes";
  return nullptr;
}
// The time of the memory, and of threads that walk large windows one pixel after another.
double cost_vector(const PoolProblem& p, const Context& ctx) { return 2.5 + bytes(p, ctx) / 2.5e6 + 0.01 * window(p); }
cudaError_t run_vector(const PoolProblem& p, const PoolArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    return start<T, kVector<T>>(p, a, ctx, stream);
  });
}

const char* refuse_window(const PoolProblem& p, const Context& ctx) {
  if (const char* reason = refuse_vector(p, ctx)) return reason;
  if (p.adaptive || p.indices) return "adaptive windows, or indices";
  if (p.d != 1 || p.t != 1 || p.z != 1 || p.pad_d_lo || p.pad_d_hi) return "three dimensions";
  if (p.r != p.s || (p.r != 2 && p.r != 3) || (p.stride_w != 1 && p.stride_w != 2) || p.dil_h != 1 || p.dil_w != 1)
    return "not a window of 2x2 or 3x3 with stride 1 or 2";
  constexpr int64_t kMost = int64_t{1} << 28;
  for (int64_t size :
       {p.h, p.w, (p.p + 1) * p.stride_h, (p.q + kStrip) * p.stride_w, p.pad_h_lo, p.pad_w_lo, p.pad_h_hi, p.pad_w_hi, p.divisor})
    if (size >= kMost) return "a size is too large";
  if (p.p * ceil_div(p.q, kStrip) * (p.c / (16 / element_bytes(ctx.precision))) >= too_many_items())
    return "an image has more than 2^31 strips";
  return nullptr;
}
double cost_window(const PoolProblem& p, const Context& ctx) { return 2.4 + bytes(p, ctx) / 2.5e6; }
cudaError_t run_window(const PoolProblem& p, const PoolArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  const Window g{int(p.h),           int(p.w),        int(p.q),
                 int(p.stride_h),    int(p.pad_h_lo), int(p.pad_w_lo),
                 int(p.pad_h_hi),    int(p.pad_w_hi), int(p.divisor > 0 ? p.divisor : 0),
                 p.count_include_pad};
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    using D = Divider<uint32_t>;
    const int64_t strips = ceil_div(p.q, kStrip), one = p.p * strips * (p.c / kVector<T>);
    const int64_t part = one > 0 ? (too_many_items() - 1) / one : 1;  // images of a launch, so that its threads fit 31 bits
    for (int64_t first = 0; first < ctx.images && one; first += part) {
      const int64_t images = ctx.images - first < part ? ctx.images - first : part, items = images * one;
      View x = a.x, y = a.y;
      x.data = static_cast<T*>(x.data) + first * x.image, y.data = static_cast<T*>(y.data) + first * y.image;
      auto go = [&](auto* kernel) {
        return launch<false>(kernel, dim3(blocks_for(items, 256)), dim3(256), 0, stream, x, y, g, D(p.c / kVector<T>), D(strips), D(p.p),
                             static_cast<uint32_t>(items));
      };
      const bool max = p.kind == PoolKind::kMax, two = p.r == 2, by_one = p.stride_w == 1;
      const cudaError_t e = two && by_one ? (max ? go(pool_strip<T, 2, 1, true>) : go(pool_strip<T, 2, 1, false>))
                            : two         ? (max ? go(pool_strip<T, 2, 2, true>) : go(pool_strip<T, 2, 2, false>))
                            : by_one      ? (max ? go(pool_strip<T, 3, 1, true>) : go(pool_strip<T, 3, 1, false>))
                                          : (max ? go(pool_strip<T, 3, 2, true>) : go(pool_strip<T, 3, 2, false>));
      if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
  });
}

bool whole(int64_t out, int64_t in, int64_t window, int64_t lo, int64_t hi, int64_t dil, bool adaptive) {
  return out == 1 && (adaptive || (window == in && !lo && !hi && dil == 1));
}
const char* refuse_global(const PoolProblem& p, const Context& ctx) {
  if (!whole(p.z, p.d, p.t, p.pad_d_lo, p.pad_d_hi, p.dil_d, p.adaptive) ||
      !whole(p.p, p.h, p.r, p.pad_h_lo, p.pad_h_hi, p.dil_h, p.adaptive) ||
      !whole(p.q, p.w, p.s, p.pad_w_lo, p.pad_w_hi, p.dil_w, p.adaptive))
    return "the window is not the whole image";
  if (p.indices) return "indices are wanted";
  if (ctx.images > 65535) return "more images than a grid has layers";
  return refuse_vector(p, ctx);
}
double cost_global(const PoolProblem& p, const Context& ctx) { return 3.0 + bytes(p, ctx) / 2.5e6 + 0.01 * window(p) / kWarps; }
cudaError_t run_global(const PoolProblem& p, const PoolArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kCount = kVector<T>;
    if (!ctx.images) return cudaSuccess;
    return launch<true>(pool_all<T, kCount>, dim3(blocks_for(p.c / kCount, kLanes), static_cast<unsigned>(ctx.images)),
                        dim3(kLanes * kWarps), 0, stream, p, a.x, a.y);
  });
}

const char* refuse_none(const PoolProblem&, const Context&) { return nullptr; }
double cost_any(const PoolProblem& p, const Context& ctx) { return 10 + bytes(p, ctx) * window(p) / 0.3e6; }
cudaError_t run_any(const PoolProblem& p, const PoolArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  return with_element(ctx.precision, [&](auto zero) { return start<decltype(zero), 1>(p, a, ctx, stream); });
}
int64_t no_workspace(const PoolProblem&, const Context&) { return 0; }

}  // namespace

extern const PoolKernel pool_window, pool_vector, pool_global, pool_any;
const PoolKernel pool_window = {"pool_window", refuse_window, cost_window, no_workspace, run_window};
const PoolKernel pool_vector = {"pool_vector", refuse_vector, cost_vector, no_workspace, run_vector};
const PoolKernel pool_global = {"pool_global", refuse_global, cost_global, no_workspace, run_global};
const PoolKernel pool_any = {"pool_any", refuse_none, cost_any, no_workspace, run_any};

}  // namespace ck::cuda
