// move.cu: copies with a permutation, an offset and a border; changes of layout.
//
// Computes  y[i0,i1,i2,i3] = x[j], j[perm[k]] = i[k] - lo[k]; a j outside x follows the border rule (core/window.h)
// Layout    any strides, the channel strides of x and y included
// Tiling    move_vector: a thread = 16 bytes of channels of an output pixel; move_tile: NCHW <-> NHWC, a block turns tiles of 32 pixels x 32 channels in
//           shared memory; move_any: a thread = an element
// Cost      bandwidth
// Refuses   move_vector: permutations, borders and offsets of channels, strides that are no multiple of 16 bytes; move_tile: all but a plain copy
//           between a tensor with channel stride 1 and one with pixel stride 1 whose rows follow each other
// Source    torch.nn.functional.pad, torch.permute
#include "core/window.h"
#include "cuda/kernel.cuh"

namespace ck::cuda {
namespace {

// The problem in the order of y's dimensions: size and stride of the dimension of x that each one walks.
struct Walk {
  int64_t in[4], lo[4], stride[4];
  Border border;
  float value;
};

template <class T, int kCount, class I>
__global__ void move(Walk walk, const T* x, int64_t x_image, View y, int64_t y_channel, Divider<I> by_c, Divider<I> by_2, Divider<I> by_1,
                     Divider<I> by_0, I items) {
  const I step = static_cast<I>(gridDim.x) * blockDim.x;
  for (I item = static_cast<I>(blockIdx.x) * blockDim.x + threadIdx.x; item < items; item += step) {
    I c, i2, i1, i0;
    const I pixel = by_c.divmod(item, c);
    const I row = by_2.divmod(pixel, i2);
    const I slice = by_1.divmod(row, i1);
    const I n = by_0.divmod(slice, i0);
    const int64_t i[4] = {static_cast<int64_t>(i0), static_cast<int64_t>(i1), static_cast<int64_t>(i2), static_cast<int64_t>(c) * kCount};
    bool inside = true;
    int64_t offset = static_cast<int64_t>(n) * x_image;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t from = border_index(walk.border, i[k] - walk.lo[k], walk.in[k]);
      offset += from * walk.stride[k];
      inside = inside && from >= 0;
    }
    float v[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) v[k] = walk.value;
    if (inside) load<kCount>(x + offset, v);
    store<kCount>(at<T>(y, n, i0, i1, i2) + i[3] * y_channel, v);
  }
}

// A plane is a matrix of `pixels` x `channels`: element (i, c) at i * pixel + c * channel. Grid: (tiles of pixels, tiles of channels, images).
struct Matrix {
  int64_t image, pixel, channel;
};
constexpr int kTile = 32, kRows = 8;
template <class T>
__global__ void __launch_bounds__(kTile* kRows) turn(const T* x, T* y, Matrix from, Matrix to, int64_t pixels, int64_t channels) {
  __shared__ T tile[kTile][kTile + 1];
  const int lane = static_cast<int>(threadIdx.x) % kTile, row = static_cast<int>(threadIdx.x) / kTile;
  const int64_t i0 = static_cast<int64_t>(blockIdx.x) * kTile, c0 = static_cast<int64_t>(blockIdx.y) * kTile;
  const T* x_n = x + blockIdx.z * from.image;
  T* y_n = y + blockIdx.z * to.image;
  for (int k = row; k < kTile; k += kRows) {  // lanes along what is dense in x
    const int64_t i = i0 + (from.channel == 1 ? k : lane), c = c0 + (from.channel == 1 ? lane : k);
    if (i < pixels && c < channels) tile[k][lane] = x_n[i * from.pixel + c * from.channel];
  }
  __syncthreads();
  for (int k = row; k < kTile; k += kRows) {  // and along what is dense in y
    const int64_t i = i0 + (to.channel == 1 ? k : lane), c = c0 + (to.channel == 1 ? lane : k);
    if (i < pixels && c < channels) y_n[i * to.pixel + c * to.channel] = tile[lane][k];
  }
}

template <class T, int kCount>
cudaError_t start(const MoveProblem& p, const MoveArgs& a, const Context& ctx, cudaStream_t stream) {
  const int64_t items = ctx.images * p.out[0] * p.out[1] * p.out[2] * (p.out[3] / kCount);
  if (!items) return cudaSuccess;
  const int64_t strides[4] = {a.x.depth, a.x.row, a.x.pixel, a.x_channel};
  Walk walk{{}, {}, {}, p.border, static_cast<float>(p.value)};
  for (int k = 0; k < 4; ++k) walk.in[k] = p.in[p.perm[k]], walk.lo[k] = p.lo[k], walk.stride[k] = strides[p.perm[k]];
  return with_index(items, [&](auto zero) {
    using I = decltype(zero);
    return launch<false>(move<T, kCount, I>, dim3(blocks_for(items, 256)), dim3(256), 0, stream, walk, static_cast<const T*>(a.x.data),
                         a.x.image, a.y, a.y_channel, Divider<I>(p.out[3] / kCount), Divider<I>(p.out[2]), Divider<I>(p.out[1]),
                         Divider<I>(p.out[0]), static_cast<I>(items));
  });
}

double bytes(const MoveProblem& p, const Context& ctx) {
  return 2.0 * double(ctx.images) * element_bytes(ctx.precision) * double(p.out[0] * p.out[1]) * double(p.out[2]) * double(p.out[3]);
}
const char* refuse_vector(const MoveProblem& p, const Context& ctx) {
  if (ctx.x_channel != 1 || ctx.y_channel != 1) return "channels are not dense";
  if (p.perm[3] != 3 || p.lo[3] || p.in[3] != p.out[3]) return "channels change";
  if (p.out[3] % (16 / element_bytes(ctx.precision))) return "channels are no multiple of 16 bytes";
  if (ctx.x_align < 16 || ctx.y_align < 16) return "strides or addresses are no multiple of 16 bytes";
  return nullptr;
}
double cost_vector(const MoveProblem& p, const Context& ctx) { return 2.5 + bytes(p, ctx) / 2.5e6; }
cudaError_t run_vector(const MoveProblem& p, const MoveArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    return start<T, kVector<T>>(p, a, ctx, stream);
  });
}

const char* refuse_tile(const MoveProblem& p, const Context& ctx) {
  for (int k = 0; k < 4; ++k)
    if (p.perm[k] != k || p.lo[k] || p.in[k] != p.out[k]) return "not a plain copy";
  if ((ctx.x_channel == 1) == (ctx.y_channel == 1)) return "not a change between channels first and channels last";
  if (ctx.images > 65535 || p.in[3] > 65535 * kTile) return "more images or channels than a grid has layers";
  return nullptr;
}
// A tile takes its time whether it is full or not: with three channels, most of its lanes have nothing to do.
double cost_tile(const MoveProblem& p, const Context& ctx) {
  const double pixels = double(p.in[0] * p.in[1] * p.in[2]), channels = double(p.in[3]);
  if (!(pixels > 0 && channels > 0)) return 3;
  const double full = std::ceil(pixels / kTile) * kTile / pixels * std::ceil(channels / kTile) * kTile / channels;
  return 3 + bytes(p, ctx) * full / 1.8e6;
}

// Rows follow each other and so do slices: pixels are a flat list.
bool flat(const MoveProblem& p, const View& v) {
  return (p.in[1] == 1 || v.row == p.in[2] * v.pixel) && (p.in[0] == 1 || v.depth == p.in[1] * p.in[2] * v.pixel);
}
cudaError_t run_any(const MoveProblem& p, const MoveArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  return with_element(ctx.precision, [&](auto zero) { return start<decltype(zero), 1>(p, a, ctx, stream); });
}
cudaError_t run_tile(const MoveProblem& p, const MoveArgs& a, const Context& ctx, void* workspace, cudaStream_t stream) {
  if (!flat(p, a.x) || !flat(p, a.y)) return run_any(p, a, ctx, workspace, stream);  // a window of a larger image
  const int64_t pixels = p.in[0] * p.in[1] * p.in[2];
  if (!ctx.images || !pixels || !p.in[3]) return cudaSuccess;
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    const dim3 grid(blocks_for(pixels, kTile), blocks_for(p.in[3], kTile), static_cast<unsigned>(ctx.images));
    return launch<true>(turn<T>, grid, dim3(kTile * kRows), 0, stream, static_cast<const T*>(a.x.data), static_cast<T*>(a.y.data),
                        Matrix{a.x.image, a.x.pixel, a.x_channel}, Matrix{a.y.image, a.y.pixel, a.y_channel}, pixels, p.in[3]);
  });
}

const char* refuse_none(const MoveProblem&, const Context&) { return nullptr; }
double cost_any(const MoveProblem& p, const Context& ctx) { return 5 + bytes(p, ctx) / 0.5e6; }
int64_t no_workspace(const MoveProblem&, const Context&) { return 0; }

}  // namespace

extern const MoveKernel move_vector, move_tile, move_any;
const MoveKernel move_vector = {"move_vector", refuse_vector, cost_vector, no_workspace, run_vector};
const MoveKernel move_tile = {"move_tile", refuse_tile, cost_tile, no_workspace, run_tile};
const MoveKernel move_any = {"move_any", refuse_none, cost_any, no_workspace, run_any};

}  // namespace ck::cuda
