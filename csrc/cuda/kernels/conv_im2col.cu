// conv_im2col.cu: convolution as a plain matrix product: of the image itself where a filter is one pixel (conv_pointwise), of a copy that holds the
// pixels under each filter in a row otherwise (conv_im2col).
//
// Computes  y[m,k] = act(scale[k] * sum_j a[m,j] * w[j,k] + bias[k] + residual), a = x, or a[m, (t,r,s,c)] = x under tap (t,r,s) of output pixel m
// Layout    x NDHWC, w as conv_direct, y NZPQK
// Tiling    gemm.cuh with 128x128, 128x64 or 64x64 tiles; the copy takes a thread for each of its elements (eight at a time where channels allow)
// Cost      2*NZPQ*K*TRS*C flop; conv_im2col writes and reads NZPQ*TRS*C elements more. What it gains over conv_direct: no index arithmetic in the
//           product, which counts where channels are few and not a multiple of four
// Refuses   groups, transposed; conv_pointwise: filters, strides or padding, images that are not one dense list of pixels, channels not in fours;
//           conv_im2col: filters of one pixel, copies that do not fit 1 GiB
// Source    Chellapilla et al. 2006 (unrolling convolution)
#include "cuda/gemm.cuh"

namespace ck::cuda {
namespace {

struct Geometry {
  int d, h, w, c, t, r, s;
  int stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dil_d, dil_h, dil_w;
};

// a[m][j], j < row; zeros where the filter leaves the image and behind the last tap.
template <class T>
__global__ void unroll(View x, T* a, Geometry g, Divider<uint32_t> by_row, Divider<uint32_t> by_c, Divider<uint32_t> by_s,
                       Divider<uint32_t> by_r, Divider<uint32_t> by_q, Divider<uint32_t> by_p, Divider<uint32_t> by_z, int64_t items,
                       uint32_t row, bool fast) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < items; item += step) {
    uint32_t m, j;
    if (fast) {
      m = by_row.divmod(static_cast<uint32_t>(item), j);
    } else {
      m = static_cast<uint32_t>(item / row), j = static_cast<uint32_t>(item % row);
    }
    uint32_t c, s, r, q, p, z;
    const uint32_t tap = by_c.divmod(j, c), line = by_s.divmod(tap, s), t = by_r.divmod(line, r);
    const uint32_t out_row = by_q.divmod(m, q), slice = by_p.divmod(out_row, p), n = by_z.divmod(slice, z);
    const int d = static_cast<int>(z) * g.stride_d - g.pad_d + static_cast<int>(t) * g.dil_d;
    const int h = static_cast<int>(p) * g.stride_h - g.pad_h + static_cast<int>(r) * g.dil_h;
    const int w = static_cast<int>(q) * g.stride_w - g.pad_w + static_cast<int>(s) * g.dil_w;
    const bool inside = static_cast<int>(t) < g.t && d >= 0 && d < g.d && h >= 0 && h < g.h && w >= 0 && w < g.w;
    a[item] = inside ? at<const T>(x, n, d, h, w)[c] : from_float<T>(0.f);
  }
}

int64_t columns(const ConvProblem& p) { return round_up(p.t * p.r * p.s * p.c, kTileK); }

constexpr int64_t kMostBytes = int64_t{1} << 28;  // of the copy: parts of the batch that stay near the cache
int64_t part_of(const ConvProblem& p, const Context& ctx) {
  const int64_t one = p.z * p.p * p.q * columns(p) * element_bytes(ctx.precision);
  const int64_t fit = kMostBytes / (one > 0 ? one : 1), most = images_per_launch(p);
  const int64_t part = fit < 1 ? 1 : fit < most ? fit : most;
  return part < ctx.images ? part : ctx.images;
}

struct Tile {
  int m, n;
};
Tile tile_of(int64_t m, int64_t n, const Context& ctx) {
  if (n > 64 && ceil_div(m, 128) * ceil_div(n, 128) >= ctx.device->multiprocessors) return {128, 128};
  if (ceil_div(m, 128) * ceil_div(n, 64) >= 2 * ctx.device->multiprocessors) return {128, 64};
  return {64, 64};
}

template <class T>
cudaError_t multiply(const ConvProblem& p, const ConvArgs& a, const Context& ctx, const T* rows, int64_t row, int k, int64_t images,
                     cudaStream_t stream) {
  const GemmSize s = gemm_size(images * p.z * p.p * p.q, p.k, k);
  const RowSource<T, 4> source{rows, row, 0, k};
  const T* b = static_cast<const T*>(a.weights);
  const Tile tile = tile_of(s.m, p.k, ctx);
  auto go = [&](auto out) {
    const FinishSink<T, decltype(out)::value> sink(p, a);
    if (tile.n == 128) return launch_gemm<T, 128, 128>(source, b, s, 1, sink, stream);
    if (tile.m == 128) return launch_gemm<T, 128, 64>(source, b, s, 1, sink, stream);
    return launch_gemm<T, 64, 64>(source, b, s, 1, sink, stream);
  };
  return vectors_out(p, ctx) ? go(Int<4>{}) : go(Int<1>{});
}

const char* refuse_both(const ConvProblem& p, const Context& ctx) {
  if (p.transposed) return "transposed";
  if (p.groups != 1) return "groups";
  return refuse_gemm(p, ctx);
}

bool one_pixel(const ConvProblem& p) {
  return p.t * p.r * p.s == 1 && p.stride_d == 1 && p.stride_h == 1 && p.stride_w == 1 && !p.pad_d_lo && !p.pad_h_lo && !p.pad_w_lo &&
         !p.pad_d_hi && !p.pad_h_hi && !p.pad_w_hi;
}

const char* refuse_pointwise(const ConvProblem& p, const Context& ctx) {
  if (const char* reason = refuse_both(p, ctx)) return reason;
  if (!one_pixel(p)) return "a filter of several pixels, a stride or padding";
  if (!ctx.x_flat) return "the pixels of x are not one evenly spaced list";
  if (p.c % 4 || ctx.x_align < 4 * element_bytes(ctx.precision)) return "channels are not in fours";
  return nullptr;
}
double cost_pointwise(const ConvProblem& p, const Context& ctx) {
  const int64_t m = ctx.images * p.z * p.p * p.q;
  const Tile tile = tile_of(m, p.k, ctx);
  return 0.95 * gemm_cost(ctx, double(m), double(p.k), double(p.c), tile.m, tile.n, 1, conv_bytes(p, ctx));
}
int64_t no_workspace(const ConvProblem&, const Context&) { return 0; }
cudaError_t run_pointwise(const ConvProblem& p, const ConvArgs& a, const Context& ctx, void*, cudaStream_t stream) {
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    return in_parts(p, a, ctx, [&](const ConvArgs& part, int64_t images) {
      return multiply<T>(p, part, ctx, static_cast<const T*>(part.x.data), part.x.pixel, static_cast<int>(p.c), images, stream);
    });
  });
}

const char* refuse_im2col(const ConvProblem& p, const Context& ctx) {
  if (const char* reason = refuse_both(p, ctx)) return reason;
  if (p.t * p.r * p.s == 1) return "a filter of one pixel needs no copy";
  if (p.z * p.p * p.q * columns(p) * element_bytes(ctx.precision) > (int64_t{1} << 30)) return "the copy of an image takes more than 1 GiB";
  return nullptr;
}
int64_t workspace_im2col(const ConvProblem& p, const Context& ctx) {
  return part_of(p, ctx) * p.z * p.p * p.q * columns(p) * element_bytes(ctx.precision);
}
double cost_im2col(const ConvProblem& p, const Context& ctx) {
  const double m = double(ctx.images * p.z * p.p * p.q), k = double(columns(p));
  const Tile tile = tile_of(part_of(p, ctx) * p.z * p.p * p.q, p.k, ctx);
  return 3 + 2 * m * k * element_bytes(ctx.precision) / 2e6 +
         0.95 * gemm_cost(ctx, m, double(p.k), k, tile.m, tile.n, 1, conv_bytes(p, ctx));
}
cudaError_t run_im2col(const ConvProblem& p, const ConvArgs& a, const Context& ctx, void* workspace, cudaStream_t stream) {
  const Geometry g{int(p.d),        int(p.h),        int(p.w),        int(p.c),        int(p.t),        int(p.r),
                   int(p.s),        int(p.stride_d), int(p.stride_h), int(p.stride_w), int(p.pad_d_lo), int(p.pad_h_lo),
                   int(p.pad_w_lo), int(p.dil_d),    int(p.dil_h),    int(p.dil_w)};
  using D = Divider<uint32_t>;
  const int64_t part = part_of(p, ctx), row = columns(p);
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t first = 0; first < ctx.images; first += part) {
      const int64_t images = ctx.images - first < part ? ctx.images - first : part, items = images * p.z * p.p * p.q * row;
      const ConvArgs own = from_image(a, first, element_bytes(ctx.precision));
      T* rows = static_cast<T*>(workspace);
      cudaError_t e = launch<false>(unroll<T>, dim3(blocks_for(items, 256)), dim3(256), 0, stream, own.x, rows, g, D(row), D(p.c), D(p.s),
                                    D(p.r), D(p.q), D(p.p), D(p.z), items, static_cast<uint32_t>(row), items < too_many_items());
      if (e == cudaSuccess) e = multiply<T>(p, own, ctx, rows, row, static_cast<int>(row), images, stream);
      if (e != cudaSuccess) return e;
    }
    return cudaSuccess;
  });
}

}  // namespace

extern const ConvKernel conv_pointwise, conv_im2col;
const ConvKernel conv_pointwise = {"conv_pointwise", refuse_pointwise, cost_pointwise, no_workspace,
                                   run_pointwise,    pack_gemm_bytes,  pack_gemm};
const ConvKernel conv_im2col = {"conv_im2col", refuse_im2col, cost_im2col, workspace_im2col, run_im2col, pack_gemm_bytes, pack_gemm};

}  // namespace ck::cuda
