// conv_direct.cu: convolution as a matrix product whose left side is gathered from the image while it runs (implicit im2col), on CUDA cores.
//
// Computes  y[m,k] = act(scale[k] * sum_{t,r,s,c} x[pixel under tap (t,r,s) of m, c] * w[t,r,s,c,k] + bias[k] + residual), m = (n,z,p,q)
// Layout    x NDHWC, w [group][t r s c][k] padded to eights, y NZPQK; sums in float in the order t r s c
// Tiling    gemm.cuh; 128x128 where that fills the device, else 128x64 or 64x64. conv_split cuts the sum into slices as well, so that small images
//           reach every multiprocessor, and adds the slices in their order. conv_transposed asks for each tap whether its position is a whole one.
// Cost      2*NZPQ*K*TRS*C/G flop; conv_split also writes and reads slices*NZPQ*K floats
// Refuses   sizes beyond 31 bits in one image; conv_direct, conv_split: transposed; conv_transposed: others; conv_split: sums too short to cut
// Source    Chetlur et al. 2014, arXiv:1410.0759 (implicit); the fixed order of slices is why results repeat
#include "cuda/gemm.cuh"

namespace ck::cuda {
namespace {

struct Tile {
  int m, n;
};
Tile tile_of(const ConvProblem& p, const Context& ctx) {
  const int64_t m = ctx.images * p.z * p.p * p.q, n = p.k / p.groups;
  const int64_t large = ceil_div(m, 128) * ceil_div(n, 128) * p.groups;
  if (n > 64 && large >= ctx.device->multiprocessors) return {128, 128};
  if (ceil_div(m, 128) * ceil_div(n, 64) * p.groups >= 2 * ctx.device->multiprocessors) return {128, 64};
  return {64, 64};
}

int64_t slices_of(const ConvProblem& p, const Context& ctx) {
  const int64_t m = ctx.images * p.z * p.p * p.q, n = p.k / p.groups, k = p.t * p.r * p.s * (p.c / p.groups);
  const int64_t tiles = ceil_div(m, 64) * ceil_div(n, 64) * p.groups;
  int64_t slices = ceil_div(4 * ctx.device->multiprocessors, tiles > 0 ? tiles : 1);
  const int64_t most = k / 64 < 32 ? k / 64 : 32;  // 64 products at least
  if (slices > most) slices = most;
  return slices > 1 ? gemm_size(1, 1, k, slices).slices : 1;
}

template <class T, class Source, class Sink>
cudaError_t start(const ConvProblem& p, const ConvArgs& a, int64_t images, Tile tile, const Source& source, const Sink& sink,
                  cudaStream_t stream) {
  const GemmSize s = gemm_size(images * p.z * p.p * p.q, p.k / p.groups, source.k);
  const T* b = static_cast<const T*>(a.weights);
  const int groups = static_cast<int>(p.groups);
  if (tile.n == 128) return launch_gemm<T, 128, 128>(source, b, s, groups, sink, stream);
  if (tile.m == 128) return launch_gemm<T, 128, 64>(source, b, s, groups, sink, stream);
  return launch_gemm<T, 64, 64>(source, b, s, groups, sink, stream);
}

double cost_of(const ConvProblem& p, const Context& ctx, Tile tile) {
  return gemm_cost(ctx, double(ctx.images * p.z * p.p * p.q), double(p.k / p.groups), double(p.t * p.r * p.s * (p.c / p.groups)), tile.m,
                   tile.n, double(p.groups), conv_bytes(p, ctx)) *
         (vectors_in(p, ctx) ? 1 : 1.5);
}

const char* refuse_direct(const ConvProblem& p, const Context& ctx) { return p.transposed ? "transposed" : refuse_gemm(p, ctx); }
double cost_direct(const ConvProblem& p, const Context& ctx) { return cost_of(p, ctx, tile_of(p, ctx)); }
cudaError_t run_direct(const ConvProblem& p, const ConvArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    return with_vectors(p, ctx, [&](auto in, auto out) {
      return in_parts(p, a, ctx, [&](const ConvArgs& part, int64_t images) {
        return start<T>(p, part, images, tile_of(p, ctx), ConvSource<T, decltype(in)::value, false>(p, part.x),
                        FinishSink<T, decltype(out)::value>(p, part), stream);
      });
    });
  });
}

const char* refuse_split(const ConvProblem& p, const Context& ctx) {
  if (p.transposed) return "transposed";
  if (const char* reason = refuse_gemm(p, ctx)) return reason;
  if (slices_of(p, ctx) < 2) return "the sum is too short to cut, or the image fills the device";
  if (images_per_launch(p) < ctx.images) return "more than 2^31 pixels";
  return nullptr;
}
int64_t workspace_split(const ConvProblem& p, const Context& ctx) {
  return slices_of(p, ctx) * p.groups * ctx.images * p.z * p.p * p.q * round_up(p.k / p.groups, 8) * 4;
}
double cost_split(const ConvProblem& p, const Context& ctx) {
  const double slices = double(slices_of(p, ctx));
  return gemm_cost(ctx, double(ctx.images * p.z * p.p * p.q), double(p.k / p.groups), double(p.t * p.r * p.s * (p.c / p.groups)) / slices,
                   64, 64, double(p.groups) * slices, conv_bytes(p, ctx)) *
             (vectors_in(p, ctx) ? 1 : 1.5) +
         2 + 2 * double(workspace_split(p, ctx)) / 2.5e6;
}
cudaError_t run_split(const ConvProblem& p, const ConvArgs& a, const Context& ctx, void* workspace, cudaStream_t stream) {
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    return with_vectors(p, ctx, [&](auto in, auto out) {
      const ConvSource<T, decltype(in)::value, false> source(p, a.x);
      const GemmSize s = gemm_size(ctx.images * p.z * p.p * p.q, p.k / p.groups, source.k, slices_of(p, ctx));
      float* partial = static_cast<float*>(workspace);
      const int groups = static_cast<int>(p.groups);
      const cudaError_t e = launch_gemm<T, 64, 64>(source, static_cast<const T*>(a.weights), s, groups, SumSink{partial, s.ldb}, stream);
      if (e != cudaSuccess) return e;
      return launch_reduce(partial, s, s.ldb, groups, FinishSink<T, decltype(out)::value>(p, a), stream);
    });
  });
}

const char* refuse_transposed(const ConvProblem& p, const Context& ctx) { return p.transposed ? refuse_gemm(p, ctx) : "not transposed"; }
double cost_transposed(const ConvProblem& p, const Context& ctx) { return 1.2 * cost_of(p, ctx, {64, 64}); }
cudaError_t run_transposed(const ConvProblem& p, const ConvArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    return with_vectors(p, ctx, [&](auto in, auto out) {
      return in_parts(p, a, ctx, [&](const ConvArgs& part, int64_t images) {
        const ConvSource<T, decltype(in)::value, true> source(p, part.x);
        const GemmSize s = gemm_size(images * p.z * p.p * p.q, p.k / p.groups, source.k);
        return launch_gemm<T, 64, 64>(source, static_cast<const T*>(part.weights), s, static_cast<int>(p.groups),
                                      FinishSink<T, decltype(out)::value>(p, part), stream);
      });
    });
  });
}
int64_t no_workspace(const ConvProblem&, const Context&) { return 0; }

}  // namespace

int64_t pack_gemm_bytes(const ConvProblem& p, const Context& ctx) {
  return p.groups * round_up(p.t * p.r * p.s * (p.c / p.groups), kTileK) * round_up(p.k / p.groups, 8) * element_bytes(ctx.precision);
}
cudaError_t pack_gemm(const ConvProblem& p, const Context& ctx, const float* weights, void* packed, cudaStream_t stream) {
  const int64_t rows = p.t * p.r * p.s * (p.c / p.groups), padded = round_up(rows, kTileK), ldb = round_up(p.k / p.groups, 8);
  const int64_t items = p.groups * padded * ldb;
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    return launch<false>(pack_gemm_kernel<T>, dim3(blocks_for(items, 256)), dim3(256), 0, stream, weights, static_cast<T*>(packed), rows,
                         p.k / p.groups, padded, ldb, items);
  });
}

extern const ConvKernel conv_direct, conv_split, conv_transposed;
const ConvKernel conv_direct = {"conv_direct", refuse_direct, cost_direct, no_workspace, run_direct, pack_gemm_bytes, pack_gemm};
const ConvKernel conv_split = {"conv_split", refuse_split, cost_split, workspace_split, run_split, pack_gemm_bytes, pack_gemm};
const ConvKernel conv_transposed = {"conv_transposed", refuse_transposed, cost_transposed, no_workspace,
                                    run_transposed,    pack_gemm_bytes,   pack_gemm};

}  // namespace ck::cuda
