// gemm.cuh: the tile of a matrix product on CUDA cores, float sums; what is multiplied comes from a Source, what becomes of a tile is a Sink.
//
// Computes  sink(m, n) = sum_k source(m, k) * b[k][n], k in ascending order in one chain of fused multiply-adds
// Layout    b: [batch][k rounded up to 8][ldb = n rounded up to 8], zeros in the padding (pack_gemm below)
// Tiling    a block = kTileM x kTileN outputs, 64 for each thread: two times two squares of 4x4, so that a warp reads shared memory in 16 bytes without
//           conflicts; 8 steps of k at a time in two buffers, the next one on its way through registers while one is multiplied
//
//             thread:   rows 4*ty + 0..3 and kTileM/2 + 4*ty + 0..3,   columns 4*tx + 0..3 and kTileN/2 + 4*tx + 0..3
//
//           Grid: (m tiles, n tiles, batches * slices); a slice sums a part of k.
// Source    Volkov and Demmel 2008 (registers before shared memory); the tile is the classic SGEMM one
#pragma once
#include <type_traits>

#include "cuda/kernel.cuh"

namespace ck::cuda {

constexpr int kTileK = 8;

struct GemmSize {
  uint32_t m;
  int n, k, ldb;
  int64_t b_batch;      // elements from one batch of b to the next
  int slices, k_slice;  // k_slice a multiple of kTileK; 1 and k if the sum is not cut
};

inline int64_t round_up(int64_t n, int64_t to) { return ceil_div(n, to) * to; }

inline GemmSize gemm_size(int64_t m, int64_t n, int64_t k, int64_t slices = 1) {
  const int64_t part = round_up(ceil_div(k, slices), kTileK);
  return {static_cast<uint32_t>(m),
          static_cast<int>(n),
          static_cast<int>(k),
          static_cast<int>(round_up(n, 8)),
          round_up(k, kTileK) * round_up(n, 8),
          static_cast<int>(ceil_div(k, part)),
          static_cast<int>(part)};
}

// Source: rows of a matrix in memory, kVec elements (4 or 1) at a time.
template <class T, int kVec>
struct RowSource {
  const T* a;
  int64_t row, batch;  // elements
  int k;

  struct State {
    const T* row;  // null: past the end
  };
  CK_DEVICE State begin(uint32_t m, uint32_t m_size, int b) const { return {m < m_size ? a + b * batch + m * row : nullptr}; }
  CK_DEVICE void load4(const State& s, int at_k, float (&v)[4]) const {
    if constexpr (kVec == 4) {
      if (s.row && at_k < k) return load<4>(s.row + at_k, v);
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = 0;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = s.row && at_k + i < k ? to_float(s.row[at_k + i]) : 0.f;
    }
  }
};

// Source: the pixels under a filter, gathered from the image (implicit im2col); row m = output pixel (n,z,p,q), k = (t,r,s,c).
template <class T, int kVec, bool kTransposed>
struct ConvSource {
  View x;
  int d, h, w, c_group;
  int stride_d, stride_h, stride_w, pad_d, pad_h, pad_w, dil_d, dil_h, dil_w;
  int k;
  Divider<uint32_t> by_q, by_p, by_z, by_c, by_s, by_r;

  ConvSource(const ConvProblem& p, const View& view)
      : x(view),
        d(static_cast<int>(p.d)),
        h(static_cast<int>(p.h)),
        w(static_cast<int>(p.w)),
        c_group(static_cast<int>(p.c / p.groups)),
        stride_d(static_cast<int>(p.stride_d)),
        stride_h(static_cast<int>(p.stride_h)),
        stride_w(static_cast<int>(p.stride_w)),
        pad_d(static_cast<int>(p.pad_d_lo)),
        pad_h(static_cast<int>(p.pad_h_lo)),
        pad_w(static_cast<int>(p.pad_w_lo)),
        dil_d(static_cast<int>(p.dil_d)),
        dil_h(static_cast<int>(p.dil_h)),
        dil_w(static_cast<int>(p.dil_w)),
        k(static_cast<int>(p.t * p.r * p.s * (p.c / p.groups))),
        by_q(p.q),
        by_p(p.p),
        by_z(p.z),
        by_c(p.c / p.groups),
        by_s(p.s),
        by_r(p.r) {}

  struct State {
    const T* image;  // null: past the end
    int d0, h0, w0;  // where tap 0 looks
  };
  CK_DEVICE State begin(uint32_t m, uint32_t m_size, int group) const {
    if (m >= m_size) return {nullptr, 0, 0, 0};
    uint32_t q, p, z;
    const uint32_t row = by_q.divmod(m, q), slice = by_p.divmod(row, p), n = by_z.divmod(slice, z);
    const T* image = static_cast<const T*>(x.data) + static_cast<int64_t>(n) * x.image + static_cast<int64_t>(group) * c_group;
    const int zi = static_cast<int>(z), pi = static_cast<int>(p), qi = static_cast<int>(q);
    if constexpr (kTransposed) return {image, zi + pad_d, pi + pad_h, qi + pad_w};
    return {image, zi * stride_d - pad_d, pi * stride_h - pad_h, qi * stride_w - pad_w};
  }
  // The position that tap i reads, or -1.
  CK_DEVICE static int position(int first, int tap, int dil, int stride, int size) {
    int at = kTransposed ? first - tap * dil : first + tap * dil;
    if constexpr (kTransposed) {
      if (at < 0 || at % stride) return -1;
      at /= stride;
    }
    return at >= 0 && at < size ? at : -1;
  }
  CK_DEVICE const T* find(const State& st, int at_k) const {
    uint32_t c, s, r;
    const uint32_t tap = by_c.divmod(static_cast<uint32_t>(at_k), c), line = by_s.divmod(tap, s), t = by_r.divmod(line, r);
    const int di = position(st.d0, static_cast<int>(t), dil_d, stride_d, d), hi = position(st.h0, static_cast<int>(r), dil_h, stride_h, h),
              wi = position(st.w0, static_cast<int>(s), dil_w, stride_w, w);
    if ((di | hi | wi) < 0) return nullptr;
    return st.image + di * x.depth + hi * x.row + wi * x.pixel + c;
  }
  CK_DEVICE void load4(const State& st, int at_k, float (&v)[4]) const {
    if constexpr (kVec == 4) {  // c_group is a multiple of 4: the four share a tap
      const T* from = st.image && at_k < k ? find(st, at_k) : nullptr;
      if (from) return load<4>(from, v);
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = 0;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const T* from = st.image && at_k + i < k ? find(st, at_k + i) : nullptr;
        v[i] = from ? to_float(*from) : 0.f;
      }
    }
  }
};

// Sink: float sums into memory, [batch][slice][m][ld].
struct SumSink {
  float* to;
  int64_t ld;
  CK_DEVICE void store4(const GemmSize& s, int batch, int slice, uint32_t m, int n, const float (&v)[4]) const {
    if (n < s.ldb) store<4>(to + ((static_cast<int64_t>(batch) * s.slices + slice) * s.m + m) * ld + n, v);
  }
};

// Sink: the epilogue and the output pixel. kVec = 4: y and the residual take four elements at once.
template <class T, int kVec>
struct FinishSink {
  Epilogue e;
  View y;
  Divider<uint32_t> by_q, by_p, by_z;

  FinishSink(const ConvProblem& p, const ConvArgs& a) : e(epilogue(p.act, a)), y(a.y), by_q(p.q), by_p(p.p), by_z(p.z) {}

  CK_DEVICE void store4(const GemmSize& s, int group, int, uint32_t m, int n, const float (&v)[4]) const {
    if (n >= s.n) return;
    uint32_t q, p, z;
    const uint32_t row = by_q.divmod(m, q), slice = by_p.divmod(row, p), image = by_z.divmod(slice, z);
    const int64_t k = static_cast<int64_t>(group) * s.n + n;
    T* out = at<T>(y, image, z, p, q) + k;
    if constexpr (kVec == 4) {
      finish_store<4>(e, v, k, image, z, p, q, out);
    } else {
      const T* residual = e.residual.data ? at<const T>(e.residual, image, z, p, q) + k : nullptr;
#pragma unroll 1
      for (int i = 0; i < 4 && n + i < s.n; ++i) {
        const float sum = i == 0 ? v[0] : i == 1 ? v[1] : i == 2 ? v[2] : v[3];
        out[i] = from_float<T>(finish(e, sum, k + i, residual ? to_float(residual[i]) : 0.f));
      }
    }
  }
};

template <class T, int kTileM, int kTileN, class Source, class Sink>
__global__ void __launch_bounds__(kTileM* kTileN / 64) gemm(Source source, const T* b, GemmSize s, Sink sink) {
  constexpr int kThreads = kTileM * kTileN / 64;
  constexpr int kRowSteps = kThreads / kTileM;     // threads that share a row of A: 1 or 2
  constexpr int kLoadsA = kTileK / 4 / kRowSteps;  // of four elements each, for a thread
  constexpr int kLoadsB = kTileK * kTileN / 4 / kThreads;
  static_assert(kRowSteps >= 1 && kLoadsA >= 1 && kLoadsB >= 1, "a tile is too small for its threads");
  __shared__ float as[2][kTileK][kTileM];
  __shared__ float bs[2][kTileK][kTileN];
  const int tid = static_cast<int>(threadIdx.x);
  const int batch = static_cast<int>(blockIdx.z) / s.slices, slice = static_cast<int>(blockIdx.z) % s.slices;
  const int k_first = slice * s.k_slice, k_last = k_first + s.k_slice < s.k ? k_first + s.k_slice : s.k;
  const int n0 = static_cast<int>(blockIdx.y) * kTileN;
  const int row = tid % kTileM, step = tid / kTileM;
  const auto state = source.begin(blockIdx.x * kTileM + static_cast<uint32_t>(row), s.m, batch);
  const T* b_k = b + batch * s.b_batch;

  float next_a[kLoadsA][4], next_b[kLoadsB][4];
  auto fetch = [&](int k) {
#pragma unroll
    for (int i = 0; i < kLoadsA; ++i) source.load4(state, k + 4 * (step * kLoadsA + i), next_a[i]);
#pragma unroll
    for (int i = 0; i < kLoadsB; ++i) {
      const int at = tid + i * kThreads, line = at / (kTileN / 4), column = n0 + at % (kTileN / 4) * 4;
      if (column < s.ldb) {
        load<4>(b_k + static_cast<int64_t>(k + line) * s.ldb + column, next_b[i]);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) next_b[i][j] = 0;
      }
    }
  };
  auto keep = [&](int buffer) {
#pragma unroll
    for (int i = 0; i < kLoadsA; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) as[buffer][4 * (step * kLoadsA + i) + j][row] = next_a[i][j];
#pragma unroll
    for (int i = 0; i < kLoadsB; ++i) {
      const int at = tid + i * kThreads;
      store<4>(&bs[buffer][at / (kTileN / 4)][at % (kTileN / 4) * 4], next_b[i]);
    }
  };

  const int tx = tid % (kTileN / 8), ty = tid / (kTileN / 8);
  float sum[2][4][2][4] = {};
  fetch(k_first);
  keep(0);
  __syncthreads();
  int buffer = 0;
  for (int k = k_first; k < k_last; k += kTileK) {
    const bool more = k + kTileK < k_last;
    if (more) fetch(k + kTileK);
#pragma unroll
    for (int kk = 0; kk < kTileK; ++kk) {
      float a[2][4], c[2][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        load<4>(&as[buffer][kk][half * kTileM / 2 + 4 * ty], a[half]);
        load<4>(&bs[buffer][kk][half * kTileN / 2 + 4 * tx], c[half]);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[i / 4][i % 4][j / 4][j % 4] += a[i / 4][i % 4] * c[j / 4][j % 4];
    }
    if (more) keep(buffer ^ 1);
    __syncthreads();
    buffer ^= 1;
  }
  // One row at a time in a loop that stays one: unrolled, the activations would be in the code 64 times.
#pragma unroll 1
  for (int i = 0; i < 8; ++i) {
    float out[2][4];
#pragma unroll
    for (int from = 0; from < 8; ++from)
      if (from == i)
#pragma unroll
        for (int j = 0; j < 8; ++j) out[j / 4][j % 4] = sum[from / 4][from % 4][j / 4][j % 4];
    const uint32_t m = blockIdx.x * kTileM + static_cast<uint32_t>(i / 4 * (kTileM / 2) + 4 * ty + i % 4);
    if (m >= s.m) continue;
    sink.store4(s, batch, slice, m, n0 + 4 * tx, out[0]);
    sink.store4(s, batch, slice, m, n0 + kTileN / 2 + 4 * tx, out[1]);
  }
}

template <class T, int kTileM, int kTileN, class Source, class Sink>
cudaError_t launch_gemm(const Source& source, const T* b, const GemmSize& s, int batches, const Sink& sink, cudaStream_t stream) {
  const dim3 grid(blocks_for(s.m, kTileM), blocks_for(s.n, kTileN), static_cast<unsigned>(batches * s.slices));
  return launch<true>(gemm<T, kTileM, kTileN, Source, Sink>, grid, dim3(kTileM * kTileN / 64), 0, stream, source, b, s, sink);
}

// The sums of all slices, in their order, then the epilogue: y of [batch][slice][m][ld] partial sums. A thread = four filters of a pixel.
template <class T, int kVec>
__global__ void reduce_slices(const float* partial, GemmSize s, int64_t ld, FinishSink<T, kVec> sink, int64_t items) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int quads = s.ldb / 4;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < items; item += step) {
    const int n = static_cast<int>(item % quads) * 4;
    const int64_t rest = item / quads;
    const uint32_t m = static_cast<uint32_t>(rest % s.m);
    const int batch = static_cast<int>(rest / s.m);
    float sum[4] = {};
    for (int slice = 0; slice < s.slices; ++slice) {
      float v[4];
      load<4>(partial + ((static_cast<int64_t>(batch) * s.slices + slice) * s.m + m) * ld + n, v);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] += v[i];
    }
    sink.store4(s, batch, 0, m, n, sum);
  }
}
template <class T, int kVec>
cudaError_t launch_reduce(const float* partial, const GemmSize& s, int64_t ld, int batches, const FinishSink<T, kVec>& sink,
                          cudaStream_t stream) {
  const int64_t items = static_cast<int64_t>(batches) * s.m * (s.ldb / 4);
  return launch<false>(reduce_slices<T, kVec>, dim3(blocks_for(items, 256)), dim3(256), 0, stream, partial, s, ld, sink, items);
}

// Weights T R S C/G K as b: [group][(t,r,s,c) rounded up to 8][K/G rounded up to 8]. Rows that use it name this very function in their `pack`, so
// that they share one packed copy.
template <class T>
__global__ void pack_gemm_kernel(const float* weights, T* packed, int64_t k_rows, int64_t filters, int64_t k_padded, int64_t ldb,
                                 int64_t items) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < items; i += step) {
    const int64_t n = i % ldb, k = i / ldb % k_padded, group = i / ldb / k_padded, groups = items / ldb / k_padded;
    packed[i] = from_float<T>(n < filters && k < k_rows ? weights[k * filters * groups + group * filters + n] : 0.f);
  }
}
int64_t pack_gemm_bytes(const ConvProblem& p, const Context& ctx);
cudaError_t pack_gemm(const ConvProblem& p, const Context& ctx, const float* weights, void* packed, cudaStream_t stream);

// Sizes that the integers of a kernel hold, for rows built on this tile.
inline const char* refuse_gemm(const ConvProblem& p, const Context& ctx) {
  constexpr int64_t kMost = int64_t{1} << 30;
  if (p.z * p.p * p.q >= (kMost < too_many_items() ? kMost : too_many_items()) || p.d * p.h * p.w >= kMost)
    return "an image has more than 2^30 pixels";
  if (p.t * p.r * p.s * (p.c / p.groups) >= kMost || p.k >= kMost) return "a filter is too large";
  for (int64_t size : {p.stride_d, p.stride_h, p.stride_w, p.dil_d * p.t, p.dil_h * p.r, p.dil_w * p.s, p.pad_d_lo, p.pad_h_lo, p.pad_w_lo,
                       p.d * p.stride_d, p.h * p.stride_h, p.w * p.stride_w})
    if (size >= kMost) return "a stride, dilation or padding is too large";
  if (p.groups > 65535 / 32 || p.k / p.groups > 65535 * int64_t{64}) return "more groups or filters than a grid has layers";
  if (!ctx.images) return "no images";
  return nullptr;
}
// How many images a launch takes, so that output pixels fit 31 bits.
inline int64_t images_per_launch(const ConvProblem& p) {
  const int64_t pixels = p.z * p.p * p.q;
  return (too_many_items() - 1) / (pixels > 0 ? pixels : 1);
}
template <class Args>
Args from_image(Args a, int64_t image, int bytes) {
  for (View* v : {&a.x, &a.y, &a.residual})
    if (v->data) v->data = static_cast<char*>(v->data) + image * v->image * bytes;
  return a;
}

// Four channels (of one group) are one access on either side.
inline bool vectors_in(const ConvProblem& p, const Context& ctx) {
  return p.c / p.groups % 4 == 0 && ctx.x_align >= 4 * element_bytes(ctx.precision);
}
inline bool vectors_out(const ConvProblem& p, const Context& ctx) {
  const int bytes = 4 * element_bytes(ctx.precision);
  return p.k / p.groups % 4 == 0 && ctx.y_align >= bytes && ctx.residual_align >= bytes;
}

// f(kVecIn, kVecOut) as types.
template <int kValue>
using Int = std::integral_constant<int, kValue>;
template <class F>
cudaError_t with_vectors(const ConvProblem& p, const Context& ctx, F f) {
  if (vectors_in(p, ctx) && vectors_out(p, ctx)) return f(Int<4>{}, Int<4>{});
  if (vectors_out(p, ctx)) return f(Int<1>{}, Int<4>{});
  return f(Int<1>{}, Int<1>{});
}

// f(args, images) for parts of the batch whose pixels fit 31 bits.
template <class F>
cudaError_t in_parts(const ConvProblem& p, const ConvArgs& a, const Context& ctx, F f) {
  const int64_t part = images_per_launch(p);
  for (int64_t first = 0; first < ctx.images; first += part) {
    const int64_t images = ctx.images - first < part ? ctx.images - first : part;
    const cudaError_t e = f(from_image(a, first, element_bytes(ctx.precision)), images);
    if (e != cudaSuccess) return e;
  }
  return cudaSuccess;
}

// Microseconds of a product on CUDA cores: whole waves of tiles, never below the time of the memory.
inline double gemm_cost(const Context& ctx, double m, double n, double k, int tile_m, int tile_n, double batches, double bytes) {
  const int cores =
      ctx.device->capability == 75 || ctx.device->capability == 80 ? 64 : 128;  // fused multiply-adds a clock and multiprocessor
  const double per_wave = ctx.device->multiprocessors * (tile_m * tile_n >= 128 * 128 ? 2.0 : 4.0);  // resident tiles
  const double tiles = std::ceil(m / tile_m) * std::ceil(n / tile_n) * batches;
  const double rate =
      cores * 1600.0 * 0.75 / (per_wave / ctx.device->multiprocessors);  // multiply-adds a microsecond for each resident tile
  const double waves = std::ceil(tiles / per_wave);
  const double compute = waves * double(tile_m) * tile_n * k / rate;
  const double memory = bytes / 2.5e6;
  return 3 + (compute > memory ? compute : memory);
}
inline double conv_bytes(const ConvProblem& p, const Context& ctx) {
  const double e = element_bytes(ctx.precision);
  return e * (double(ctx.images) * (double(p.d * p.h * p.w) * double(p.c) + double(p.z * p.p * p.q) * double(p.k) * (p.residual ? 2 : 1)) +
              double(p.t * p.r * p.s) * double(p.c / p.groups) * double(p.k));
}

}  // namespace ck::cuda
