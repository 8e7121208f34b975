// conv_winograd.cu: 3x3 convolution with stride 1 by Winograd's F(2x2, 3x3) and F(4x4, 3x3), float32: 16 multiplications instead of 36, 36 instead of
// 144.
//
// Computes  Y = A' [ sum_c (G g_c G') . (B' d_c B) ] A  for each 2x2 (4x4) tile of outputs and its 4x4 (6x6) tile of inputs, then the epilogue
// Points    F(2x2): 0, 1, -1, infinity. F(4x4): 0, +-5/8, +-3/2, infinity, as on the CPU: exact in binary, half the rounding error of 0, +-1, +-2
// Layout    x NHWC, y NPQK; U = G g G' in double at plan time, rounded once: [product][c rounded up to 8][k rounded up to 8]
// Tiling    three launches for a part of the batch whose V and M fit 256 MiB:
//             V [product][tile][c]   a thread = a tile's channel
//             M [product][tile][k]   16 (36) products with gemm.cuh's tile
//             y                      a thread = a tile's filter
// Cost      2*16/4 (36/16) * NPQKC flop; V and M are written and read once: 2*(16/4 or 36/16)*NPQ*(C+K) floats
// Refuses   other filters, strides, dilation, groups, transposed; exact; lean; half precision; fewer than 32 channels or filters, channels not in fours
// Source    Lavin and Gray 2016, arXiv:1509.09308; points: Barabasz et al. 2020, arXiv:1803.10986
#include "cuda/gemm.cuh"

namespace ck::cuda {
namespace {

// F(kOut x kOut, 3x3) by its one-dimensional transforms.
template <int kOut>
struct Transform;

template <>
struct Transform<2> {
  static constexpr int kIn = 4;
  CK_DEVICE static void in(float (&d)[4]) {
    const float d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
    d[0] = d0 - d2, d[1] = d1 + d2, d[2] = d2 - d1, d[3] = d1 - d3;
  }
  CK_DEVICE static void out(const float (&m)[4], float (&y)[2]) { y[0] = m[0] + m[1] + m[2], y[1] = m[1] - m[2] - m[3]; }
  CK_DEVICE static void filter(const double (&g)[3], double (&u)[4]) {
    u[0] = g[0], u[1] = (g[0] + g[1] + g[2]) / 2, u[2] = (g[0] - g[1] + g[2]) / 2, u[3] = g[2];
  }
};

template <>
struct Transform<4> {
  static constexpr int kIn = 6;
  static constexpr float kP = 0.625f, kQ = 1.5f, kP2 = kP * kP, kQ2 = kQ * kQ;  // the points, exact
  CK_DEVICE static void in(float (&d)[6]) {
    const float d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3], d4 = d[4], d5 = d[5];
    d[0] = kP2 * kQ2 * d0 - (kP2 + kQ2) * d2 + d4;
    const float a = d4 - kQ2 * d2, b = kP * (d3 - kQ2 * d1);
    d[1] = a + b, d[2] = a - b;
    const float c = d4 - kP2 * d2, e = kQ * (d3 - kP2 * d1);
    d[3] = c + e, d[4] = c - e;
    d[5] = kP2 * kQ2 * d1 - (kP2 + kQ2) * d3 + d5;
  }
  CK_DEVICE static void out(const float (&m)[6], float (&y)[4]) {
    const float s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
    y[0] = m[0] + s1 + s2;
    y[1] = kP * d1 + kQ * d2;
    y[2] = kP2 * s1 + kQ2 * s2;
    y[3] = (kP * kP2) * d1 + (kQ * kQ2) * d2 + m[5];
  }
  CK_DEVICE static void filter(const double (&g)[3], double (&u)[6]) {
    constexpr double p = 0.625, q = 1.5;
    constexpr double at_p = 2 * p * p * (p * p - q * q),
                     at_q = 2 * q * q * (q * q - p * p);  // products of the distances between the points
    u[0] = g[0] / (p * p * q * q);
    u[1] = (g[0] + p * g[1] + p * p * g[2]) / at_p, u[2] = (g[0] - p * g[1] + p * p * g[2]) / at_p;
    u[3] = (g[0] + q * g[1] + q * q * g[2]) / at_q, u[4] = (g[0] - q * g[1] + q * q * g[2]) / at_q;
    u[5] = g[2];
  }
};

struct Tiles {
  int h, w, p, q, pad_h, pad_w;
  uint32_t count;  // of all images of a launch
  Divider<uint32_t> by_column, by_row;

  CK_DEVICE void find(uint32_t tile, int out, uint32_t& n, int& row, int& column) const {
    uint32_t r, c;
    const uint32_t rest = by_column.divmod(tile, c);
    n = by_row.divmod(rest, r);
    row = static_cast<int>(r) * out, column = static_cast<int>(c) * out;
  }
};

template <int kOut>
__global__ void __launch_bounds__(128) transform_in(View x, float* v, Tiles tiles, int channels, int64_t items) {
  using W = Transform<kOut>;
  constexpr int kIn = W::kIn;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < items; item += step) {
    const int c = static_cast<int>(item % channels);
    const uint32_t tile = static_cast<uint32_t>(item / channels);
    uint32_t n;
    int row, column;
    tiles.find(tile, kOut, n, row, column);
    const int h0 = row - tiles.pad_h, w0 = column - tiles.pad_w;
    float d[kIn][kIn];
#pragma unroll
    for (int i = 0; i < kIn; ++i)
#pragma unroll
      for (int j = 0; j < kIn; ++j) {
        const int h = h0 + i, w = w0 + j;
        d[i][j] = h >= 0 && h < tiles.h && w >= 0 && w < tiles.w ? at<const float>(x, n, 0, h, w)[c] : 0.f;
      }
#pragma unroll
    for (int j = 0; j < kIn; ++j) {
      float line[kIn];
#pragma unroll
      for (int i = 0; i < kIn; ++i) line[i] = d[i][j];
      W::in(line);
#pragma unroll
      for (int i = 0; i < kIn; ++i) d[i][j] = line[i];
    }
#pragma unroll
    for (int i = 0; i < kIn; ++i) {
      W::in(d[i]);
#pragma unroll
      for (int j = 0; j < kIn; ++j) v[(static_cast<int64_t>(i * kIn + j) * tiles.count + tile) * channels + c] = d[i][j];
    }
  }
}

template <int kOut>
__global__ void __launch_bounds__(128)
    transform_out(const float* m, int64_t ld, View y, Tiles tiles, Epilogue e, int filters, int64_t items) {
  using W = Transform<kOut>;
  constexpr int kIn = W::kIn;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < items; item += step) {
    const int k = static_cast<int>(item % filters);
    const uint32_t tile = static_cast<uint32_t>(item / filters);
    uint32_t n;
    int row, column;
    tiles.find(tile, kOut, n, row, column);
    float z[kOut][kIn];
#pragma unroll
    for (int j = 0; j < kIn; ++j) {
      float line[kIn], out[kOut];
#pragma unroll
      for (int i = 0; i < kIn; ++i) line[i] = m[(static_cast<int64_t>(i * kIn + j) * tiles.count + tile) * ld + k];
      W::out(line, out);
#pragma unroll
      for (int i = 0; i < kOut; ++i) z[i][j] = out[i];
    }
    float sum[kOut * kOut];
#pragma unroll
    for (int i = 0; i < kOut; ++i) {
      float out[kOut];
      W::out(z[i], out);
#pragma unroll
      for (int j = 0; j < kOut; ++j) sum[i * kOut + j] = out[j];
    }
#pragma unroll 1
    for (int i = 0; i < kOut * kOut; ++i) {  // one copy of the activations
      const int p = row + i / kOut, q = column + i % kOut;
      if (p >= tiles.p || q >= tiles.q) continue;
      float one = sum[0];
#pragma unroll
      for (int j = 1; j < kOut * kOut; ++j) one = j == i ? sum[j] : one;
      const float residual = e.residual.data ? at<const float>(e.residual, n, 0, p, q)[k] : 0.f;
      at<float>(y, n, 0, p, q)[k] = finish(e, one, k, residual);
    }
  }
}

template <int kOut>
__global__ void transform_filters(const float* weights, float* u, int channels, int filters, int64_t k_padded, int64_t ldb, int64_t items) {
  using W = Transform<kOut>;
  constexpr int kIn = W::kIn;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < items; item += step) {
    const int64_t k = item % ldb, c = item / ldb;
    double g[3][3], half[kIn][3];
#pragma unroll
    for (int r = 0; r < 3; ++r)
#pragma unroll
      for (int s = 0; s < 3; ++s)
        g[r][s] = c < channels && k < filters ? static_cast<double>(weights[(static_cast<int64_t>(r * 3 + s) * channels + c) * filters + k])
                                              : 0.0;
#pragma unroll
    for (int s = 0; s < 3; ++s) {
      const double line[3] = {g[0][s], g[1][s], g[2][s]};
      double out[kIn];
      W::filter(line, out);
#pragma unroll
      for (int i = 0; i < kIn; ++i) half[i][s] = out[i];
    }
#pragma unroll
    for (int i = 0; i < kIn; ++i) {
      double out[kIn];
      W::filter(half[i], out);
#pragma unroll
      for (int j = 0; j < kIn; ++j) u[(static_cast<int64_t>(i * kIn + j) * k_padded + c) * ldb + k] = static_cast<float>(out[j]);
    }
  }
}

template <int kOut>
int64_t tiles_of(const ConvProblem& p) {
  return ceil_div(p.p, kOut) * ceil_div(p.q, kOut);
}
template <int kOut>
constexpr int kProducts = Transform<kOut>::kIn * Transform<kOut>::kIn;

template <int kOut>
int64_t bytes_of(const ConvProblem& p, int64_t images) {  // V and M
  return kProducts<kOut> * images * tiles_of<kOut>(p) * (p.c + round_up(p.k, 8)) * 4;
}
template <int kOut>
int64_t part_of(const ConvProblem& p, const Context& ctx) {
  const int64_t fit = (int64_t{1} << 28) / bytes_of<kOut>(p, 1);
  return fit < 1 ? 1 : fit < ctx.images ? fit : ctx.images;
}

template <int kOut>
const char* refuse(const ConvProblem& p, const Context& ctx) {
  if (element_bytes(ctx.precision) != 4) return "half precision";
  if (p.exact) return "exact: the transforms round";
  if (p.lean) return "lean: the weights grow";
  if (p.transposed || p.groups != 1) return "transposed or groups";
  if (p.t != 1 || p.d != 1 || p.r != 3 || p.s != 3 || p.pad_d_lo || p.pad_d_hi) return "not a 3x3 filter";
  if (p.stride_h != 1 || p.stride_w != 1 || p.dil_h != 1 || p.dil_w != 1) return "strides or dilation";
  if (p.c < 32 || p.k < 32 || p.c % 4) return "fewer than 32 channels or filters, or channels not in fours";
  if (bytes_of<kOut>(p, 1) > (int64_t{1} << 30)) return "the tiles of an image take more than 1 GiB";
  return refuse_gemm(p, ctx);
}
template <int kOut>
int64_t workspace_bytes(const ConvProblem& p, const Context& ctx) {
  return bytes_of<kOut>(p, part_of<kOut>(p, ctx));
}
bool large(const ConvProblem& p, const Context& ctx, int64_t m, int products) {
  return ceil_div(m, 128) * ceil_div(p.k, 128) * products >= ctx.device->multiprocessors && p.k > 64;
}
template <int kOut>
double cost(const ConvProblem& p, const Context& ctx) {
  const double tiles = double(ctx.images * tiles_of<kOut>(p)), products = kProducts<kOut>;
  const int side = large(p, ctx, ctx.images * tiles_of<kOut>(p), kProducts<kOut>) ? 128 : 64;
  return 6 + gemm_cost(ctx, tiles, double(p.k), double(p.c), side, side, products, products * double(p.c) * double(p.k) * 4) +
         2 * products * tiles * double(p.c + p.k) * 4 / 2.2e6 + conv_bytes(p, ctx) / 2.2e6;
}
template <int kOut>
cudaError_t run(const ConvProblem& p, const ConvArgs& a, const Context& ctx, void* workspace, cudaStream_t stream) {
  constexpr int products = kProducts<kOut>;
  const int64_t part = part_of<kOut>(p, ctx), ld = round_up(p.k, 8);
  for (int64_t first = 0; first < ctx.images; first += part) {
    const int64_t images = ctx.images - first < part ? ctx.images - first : part, count = images * tiles_of<kOut>(p);
    const ConvArgs own = from_image(a, first, 4);
    const Tiles tiles{int(p.h),
                      int(p.w),
                      int(p.p),
                      int(p.q),
                      int(p.pad_h_lo),
                      int(p.pad_w_lo),
                      static_cast<uint32_t>(count),
                      Divider<uint32_t>(ceil_div(p.q, kOut)),
                      Divider<uint32_t>(ceil_div(p.p, kOut))};
    float* v = static_cast<float*>(workspace);
    float* m = v + products * count * p.c;
    cudaError_t e = launch<false>(transform_in<kOut>, dim3(blocks_for(count * p.c, 128)), dim3(128), 0, stream, own.x, v, tiles,
                                  static_cast<int>(p.c), count * p.c);
    if (e != cudaSuccess) return e;
    const GemmSize s = gemm_size(count, p.k, p.c);
    const RowSource<float, 4> source{v, p.c, count * p.c, static_cast<int>(p.c)};
    const SumSink sink{m, ld};
    const float* u = static_cast<const float*>(own.weights);
    e = large(p, ctx, count, products) ? launch_gemm<float, 128, 128>(source, u, s, products, sink, stream)
                                       : launch_gemm<float, 64, 64>(source, u, s, products, sink, stream);
    if (e != cudaSuccess) return e;
    e = launch<false>(transform_out<kOut>, dim3(blocks_for(count * p.k, 128)), dim3(128), 0, stream, m, ld, own.y, tiles,
                      epilogue(p.act, own), static_cast<int>(p.k), count * p.k);
    if (e != cudaSuccess) return e;
  }
  return cudaSuccess;
}
template <int kOut>
int64_t packed_bytes(const ConvProblem& p, const Context&) {
  return kProducts<kOut> * round_up(p.c, kTileK) * round_up(p.k, 8) * 4;
}
template <int kOut>
cudaError_t pack(const ConvProblem& p, const Context&, const float* weights, void* packed, cudaStream_t stream) {
  const int64_t rows = round_up(p.c, kTileK), ldb = round_up(p.k, 8);
  return launch<false>(transform_filters<kOut>, dim3(blocks_for(rows * ldb, 128)), dim3(128), 0, stream, weights,
                       static_cast<float*>(packed), static_cast<int>(p.c), static_cast<int>(p.k), rows, ldb, rows * ldb);
}

}  // namespace

extern const ConvKernel conv_winograd2, conv_winograd4;
const ConvKernel conv_winograd2 = {"conv_winograd2", refuse<2>, cost<2>, workspace_bytes<2>, run<2>, packed_bytes<2>, pack<2>};
const ConvKernel conv_winograd4 = {"conv_winograd4", refuse<4>, cost<4>, workspace_bytes<4>, run<4>, packed_bytes<4>, pack<4>};

}  // namespace ck::cuda
