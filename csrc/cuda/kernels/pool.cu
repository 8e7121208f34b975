// pool.cu: max and average pooling of any window, adaptive and global ones included.
//
// Computes  y[n,z,p,q,c] = max or sum/divisor of x[n,d,h,w,c] over the window of (z,p,q)   (core/window.h)
// Layout    x NDHWC, y NZPQC; index like y: the flat position of the maximum within d*h*w. The last NaN wins, else the first maximum
// Tiling    pool_vector: a thread = 16 bytes of channels of an output pixel; pool_global: a block = 32 vectors of channels of an image whose pixels
//           8 warps share, partial results joined in the warps' order; pool_any: a thread = an output element
// Cost      one read of x (windows overlap in the caches), one write of y: bandwidth
// Refuses   pool_vector: channels or strides that are no multiple of 16 bytes; pool_global: the same, indices, more than one output pixel
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

extern const PoolKernel pool_vector, pool_global, pool_any;
const PoolKernel pool_vector = {"pool_vector", refuse_vector, cost_vector, no_workspace, run_vector};
const PoolKernel pool_global = {"pool_global", refuse_global, cost_global, no_workspace, run_global};
const PoolKernel pool_any = {"pool_any", refuse_none, cost_any, no_workspace, run_any};

}  // namespace ck::cuda
