// conv_dense.cu: a dense layer for up to eight rows (images), where every weight is read once and used a few times.
//
// Computes  y[m,k] = act(scale[k] * sum_c x[m,c] * w[c,k] + bias[k] + residual[m,k]), m < 8
// Layout    x rows of C, w as conv_direct (one group), y rows of K; sums in float: a slice of C at a time, slices in their order
// Tiling    a thread = four filters of all rows over one slice of C; the weights stream past it in 16 bytes, x comes from the caches. Slices are cut so
//           that every multiprocessor streams; a second launch adds them up (gemm.cuh's reduce_slices)
// Cost      the bytes of w
// Refuses   anything but one pixel in, one pixel out, one group; more than eight images
// Source    the classic matrix-vector product
#include "cuda/gemm.cuh"

namespace ck::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kMostRows = 8;

// Grid: (quads of filters / kThreads, slices). partial: [slice][kRows][ldb].
template <class T, int kRows>
__global__ void __launch_bounds__(kThreads) dense(const T* x, int64_t x_row, const T* w, GemmSize s, float* partial) {
  const int n = (static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x)) * 4;
  if (n >= s.ldb) return;
  const int slice = static_cast<int>(blockIdx.y), first = slice * s.k_slice, last = first + s.k_slice < s.k ? first + s.k_slice : s.k;
  float sum[kRows][4] = {};
  const T* w_c = w + static_cast<int64_t>(first) * s.ldb + n;
#pragma unroll 4
  for (int c = first; c < last; ++c, w_c += s.ldb) {
    float v[4];
    load<4>(w_c, v);
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      const float xm = m < static_cast<int>(s.m) ? to_float(x[m * x_row + c]) : 0.f;
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[m][i] += xm * v[i];
    }
  }
#pragma unroll
  for (int m = 0; m < kRows; ++m)
    if (m < static_cast<int>(s.m)) store<4>(partial + (static_cast<int64_t>(slice) * s.m + m) * s.ldb + n, sum[m]);
}

GemmSize size_of(const ConvProblem& p, const Context& ctx) {
  const int64_t columns = ceil_div(ceil_div(p.k, 4), kThreads);
  int64_t slices = ceil_div(4 * ctx.device->multiprocessors, columns);
  const int64_t most = p.c / 32 < 64 ? p.c / 32 : 64;
  if (slices > most) slices = most;
  return gemm_size(ctx.images, p.k, p.c, slices < 1 ? 1 : slices);
}

const char* refuse(const ConvProblem& p, const Context& ctx) {
  if (p.d * p.h * p.w != 1 || p.z * p.p * p.q != 1 || p.t * p.r * p.s != 1 || p.pad_d_lo || p.pad_h_lo || p.pad_w_lo)
    return "more than one pixel";
  if (p.groups != 1 || p.transposed) return "groups or transposed";
  if (ctx.images > kMostRows) return "more than eight images";
  return refuse_gemm(p, ctx);
}
int64_t workspace_bytes(const ConvProblem& p, const Context& ctx) {
  const GemmSize s = size_of(p, ctx);
  return static_cast<int64_t>(s.slices) * s.m * s.ldb * 4;
}
double cost(const ConvProblem& p, const Context& ctx) { return 5 + conv_bytes(p, ctx) / 2e6; }
cudaError_t run(const ConvProblem& p, const ConvArgs& a, const Context& ctx, void* workspace, cudaStream_t stream) {
  const GemmSize s = size_of(p, ctx);
  const dim3 grid(blocks_for(ceil_div(p.k, 4), kThreads), static_cast<unsigned>(s.slices));
  float* partial = static_cast<float*>(workspace);
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    auto go = [&](auto* kernel) {
      return launch<false>(kernel, grid, dim3(kThreads), 0, stream, static_cast<const T*>(a.x.data), a.x.image,
                           static_cast<const T*>(a.weights), s, partial);
    };
    const cudaError_t e = s.m == 1 ? go(dense<T, 1>) : s.m == 2 ? go(dense<T, 2>) : s.m <= 4 ? go(dense<T, 4>) : go(dense<T, 8>);
    if (e != cudaSuccess) return e;
    return vectors_out(p, ctx) ? launch_reduce(partial, s, s.ldb, 1, FinishSink<T, 4>(p, a), stream)
                               : launch_reduce(partial, s, s.ldb, 1, FinishSink<T, 1>(p, a), stream);
  });
}

}  // namespace

extern const ConvKernel conv_dense;
const ConvKernel conv_dense = {"conv_dense", refuse, cost, workspace_bytes, run, pack_gemm_bytes, pack_gemm};

}  // namespace ck::cuda
