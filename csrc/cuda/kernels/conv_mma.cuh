// conv_mma.cuh: implicit GEMM on tensor cores by mma.sync, from sm_75 (half) and sm_80 (bfloat16, TF32, 3xTF32) on. See conv_mma.cu for the row.
//
// Computes  y[n,p,q,k] = act(scale[k] * sum_{r,s,c} x[n, p*sh-ph+r*dh, q*sw-pw+s*dw, g*C/G+c] * w[k,r,s,c] + bias[k] + residual), sums in float
// Layout    x NHWC; w G K/G R S C/G, channels padded to 16 bytes (filters.cuh); y NPQK
// Tiling    a block computes kM pixels x kN filters of one group; a step is 64 bytes of channels of one tap
//
//             depth ->  c-block 0: tap 0, tap 1, ... tap RS-1 | c-block 1: ...       (taps inside: neighbouring taps read the same lines of L1 and L2)
//
//           A thread copies 16 bytes of channels of fixed rows (pixels, filters) of each step. A pixel's row is a pointer and a mask of the taps
//           that fall inside the image; from tap to tap one offset, common to all, grows by a constant from the host
//
//           shared memory: rows of 64 bytes, 16-byte chunk c of row r at place c ^ (r/2 % 4): eight rows of one chunk, which is what
//           ldmatrix reads at once, lie in eight different sixteenths of the banks' 128 bytes; and so do the writes
//
//           the way out: lanes of a quad exchange their pairs of columns until each has 8 neighbouring columns of one pixel
// Split     where there are few tiles the depth is cut into slices; a block writes its sums to the workspace, and a second kernel adds the
//           slices up in order
// 3xTF32    a = big + small, each in TF32, and a*b = big*big + big*small + small*big; tensor cores cut off when they add, so sums stay in them for one
//           step of 16 only and are then added in float. Infinities become NaN
// Source    PTX ISA (mma.sync, cp.async); Ootomo and Yokota 2022, arXiv:2203.03341 (3xTF32 and why sums leave the tensor cores)
#pragma once
#include "cuda/activate.cuh"
#include "cuda/kernel.cuh"

namespace ck::cuda {

// The kernels' argument. Sizes "of a group" are after merging (filters.cuh); offsets in bytes.
struct MmaArgs {
  const char* x;  // n = 0
  const char* w;
  int64_t x_image, x_row, x_pixel;
  int64_t next_s, next_r, next_c;  // from the last tap to the next: in the row, to the next row, to the next block of channels
  int64_t w_next_tap, w_next_c, w_filter;
  int m, k, c, pitch, groups;       // pixels; filters and channels of a group; channels with padding
  int h, width, r, s, taps, steps;  // steps = taps * blocks of channels
  int stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;
  int tiles_n, slices;
  Divider<uint32_t> by_q, by_p, by_tile_n, by_group;
  Epilogue epilogue;
  View y;
  int vector;      // 1: 8 filters of y, residual, scale and bias may be read and written as vectors
  float* partial;  // slices > 1: [slice][group][pixel][filters, rounded up to 8]
};

enum class Product { kPlain, kThree };

template <class T_, Product kProduct_, int kM_, int kN_, int kWarpsM_, int kWarpsN_, int kVector_>
struct MmaConfig {
  using T = T_;
  static constexpr Product kProduct = kProduct_;
  static constexpr int kM = kM_, kN = kN_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kVector = kVector_;
  static constexpr int kStages = 4, kRow = 64, kDepth = kRow / static_cast<int>(sizeof(T)), kChunk = 16 / static_cast<int>(sizeof(T));
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kMi = kM / kWarpsM / 16, kNi = kN / kWarpsN / 8;  // matrix instructions of a warp
  static constexpr int kPass = kThreads / 4;                             // rows copied at once
  static constexpr int kAPasses = kM / kPass, kBPasses = kN / kPass;
  static constexpr int kABytes = kM * kRow, kStageBytes = kABytes + kN * kRow;
  static constexpr int kShared = kStages * kStageBytes;
  static constexpr int kBlocks = kThreads == 256 ? 2 : kM == 128 || kProduct == Product::kThree ? 3 : 4;  // of an SM, for the registers
  static_assert(kAPasses * kPass == kM && kBPasses * kPass == kN && kNi % 4 == 0, "");
};

// The place of a 16-byte chunk in a tile of 64-byte rows.
CK_DEVICE uint32_t swizzled_chunk(int row, int chunk) { return static_cast<uint32_t>(row * 64 + ((chunk ^ (row >> 1 & 3)) << 4)); }

// One thread's part in filling the stages.
template <class C>
struct MmaLoader {
  static constexpr bool kAsync = CK_ASYNC_COPY && C::kVector >= 4;
  const MmaArgs& g;
  const int row, chunk;  // of its first pass
  const char* pixel[C::kAPasses];
  uint32_t inside[C::kAPasses];  // bit r: tap row r is inside the image; bit R + s: tap column s
  const char* filter;
  int filters;  // passes whose filter exists
  int64_t a_offset, b_offset;
  int tap_r, tap_s, channel;  // channel: the first of this thread's chunk
  uint4 held_a[kAsync ? 1 : C::kAPasses], held_b[kAsync ? 1 : C::kBPasses];
  uint32_t held_stage;

  CK_DEV MmaLoader(const MmaArgs& g, int m0, int n0, int group, int step)
      : g(g), row(static_cast<int>(threadIdx.x) / 4), chunk(static_cast<int>(threadIdx.x) % 4), held_stage(0) {
    constexpr int e = static_cast<int>(sizeof(typename C::T));
#pragma unroll
    for (int i = 0; i < C::kAPasses; ++i) {
      const int m = m0 + row + i * C::kPass;
      uint32_t q, p;
      const uint32_t n = g.by_p.divmod(g.by_q.divmod(static_cast<uint32_t>(m < g.m ? m : 0), q), p);
      const int h = static_cast<int>(p) * g.stride_h - g.pad_h, w = static_cast<int>(q) * g.stride_w - g.pad_w;
      pixel[i] = g.x + static_cast<int64_t>(n) * g.x_image + h * g.x_row + w * g.x_pixel +
                 (static_cast<int64_t>(group) * g.c + chunk * C::kChunk) * e;
      uint32_t mask = 0;
      for (int r = 0; r < g.r; ++r) mask |= static_cast<uint32_t>(static_cast<uint32_t>(h + r * g.dil_h) < static_cast<uint32_t>(g.h)) << r;
      for (int s = 0; s < g.s; ++s)
        mask |= static_cast<uint32_t>(static_cast<uint32_t>(w + s * g.dil_w) < static_cast<uint32_t>(g.width)) << (g.r + s);
      inside[i] = m < g.m ? mask : 0;
    }
    filter = g.w + (static_cast<int64_t>(group) * g.k + n0 + row) * g.w_filter + chunk * 16;
    filters = g.k - n0 - row;
    filters = filters <= 0 ? 0 : (filters + C::kPass - 1) / C::kPass;
    const int block = step / g.taps, tap = step - block * g.taps;
    tap_r = tap / g.s, tap_s = tap - tap_r * g.s;
    channel = block * C::kDepth + chunk * C::kChunk;
    a_offset = static_cast<int64_t>(block) * C::kRow + tap_r * g.dil_h * g.x_row + tap_s * g.dil_w * g.x_pixel;
    b_offset = static_cast<int64_t>(block) * C::kRow + tap * g.w_next_tap;
  }

  CK_DEV static int least(int a, int b) { return a < b ? a : b; }

  CK_DEV static uint4 read(const char* src, int bytes) {
    uint4 v = make_uint4(0, 0, 0, 0);
    if constexpr (C::kVector == 16) {
      if (bytes >= 16) return *reinterpret_cast<const uint4*>(src);
    }
    uint32_t word[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (C::kVector >= 4 && bytes >= 4 * i + 4) {
        word[i] = *reinterpret_cast<const uint32_t*>(src + 4 * i);
      } else if constexpr (sizeof(typename C::T) == 2) {
        if (bytes >= 4 * i + 2) word[i] = *reinterpret_cast<const uint16_t*>(src + 4 * i);
        if (bytes >= 4 * i + 4) word[i] |= static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(src + 4 * i + 2)) << 16;
      }
    }
    v.x = word[0], v.y = word[1], v.z = word[2], v.w = word[3];
    return v;
  }

  // Starts the copy of one step into the stage at `stage`, and moves on to the next step.
  CK_DEV void fetch(uint32_t stage) {
    const int bytes_left = (g.c - channel) * static_cast<int>(sizeof(typename C::T));
    const int x_bytes = bytes_left <= 0 ? 0 : least(bytes_left, 16);
#pragma unroll
    for (int i = 0; i < C::kAPasses; ++i) {
      const int bytes = inside[i] >> tap_r & inside[i] >> (g.r + tap_s) & 1 ? x_bytes : 0;
      const char* src = pixel[i] + a_offset;
      const uint32_t dst = stage + swizzled_chunk(row + i * C::kPass, chunk);
      if constexpr (!kAsync) {
        held_a[i] = read(src, bytes);
      } else if constexpr (C::kVector == 16) {
        copy_async_reused(dst, src, bytes);  // the next taps read the same lines
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) copy_async_word(dst + 4 * j, src + 4 * j, bytes <= 4 * j ? 0 : least(bytes - 4 * j, 4));
      }
    }
#pragma unroll
    for (int i = 0; i < C::kBPasses; ++i) {
      const int bytes = i < filters && channel < g.pitch ? 16 : 0;
      const char* src = filter + i * C::kPass * g.w_filter + b_offset;
      if constexpr (kAsync) copy_async(stage + C::kABytes + swizzled_chunk(row + i * C::kPass, chunk), src, bytes);
      else held_b[i] = bytes ? *reinterpret_cast<const uint4*>(src) : make_uint4(0, 0, 0, 0);
    }
    held_stage = stage;
    if (++tap_s < g.s) {
      a_offset += g.next_s, b_offset += g.w_next_tap;
    } else if (tap_s = 0, ++tap_r < g.r) {
      a_offset += g.next_r, b_offset += g.w_next_tap;
    } else {
      tap_r = 0, channel += C::kDepth;
      a_offset += g.next_c, b_offset += g.w_next_c;
    }
  }

  // Without asynchronous copies: what fetch() has read goes to its stage. To be called after the product of another stage, under which the
  // loads were on their way.
  CK_DEV void deposit() const {
    if constexpr (!kAsync) {
#pragma unroll
      for (int i = 0; i < C::kAPasses; ++i) store_shared(held_stage + swizzled_chunk(row + i * C::kPass, chunk), held_a[i]);
#pragma unroll
      for (int i = 0; i < C::kBPasses; ++i) store_shared(held_stage + C::kABytes + swizzled_chunk(row + i * C::kPass, chunk), held_b[i]);
    }
  }
};

// A float becomes the nearest TF32, and what is left of it (for three products) another.
template <Product kProduct>
CK_DEV void split_tf32(uint32_t& v, uint32_t& small) {
  const float whole = __uint_as_float(v);
  v = to_tf32(v);
  if constexpr (kProduct == Product::kThree) small = to_tf32(__float_as_uint(whole - __uint_as_float(v)));
}

// One warp's product over one stage: acc += A * B^T.
template <class C>
CK_DEV void mma_stage(float (&acc)[C::kMi][C::kNi][4], uint32_t a_base, uint32_t b_base, int row_a, int row_b) {
  using T = typename C::T;
  const int lane = lane_index();
  // ldmatrix: lanes 0-15 bring the rows of the first chunk of A, 16-31 those of the second; of B (two instructions' columns at once), lanes
  // 0-7 the first 8 filters' first chunk, 8-15 their second, 16-31 the next 8 filters
  const int a_row = row_a + lane % 16, a_chunk = lane / 16;
  const int b_row = row_b + lane % 8 + lane / 16 * 8, b_chunk = lane / 8 % 2;
#pragma unroll(C::kProduct == Product::kThree ? 1 : 2)  // three products: registers
  for (int kk = 0; kk < 2; ++kk) {
    uint32_t a[C::kMi][4];
#pragma unroll
    for (int i = 0; i < C::kMi; ++i) ldmatrix_x4(a_base + swizzled_chunk(a_row + 16 * i, 2 * kk + a_chunk), a[i]);
    uint32_t a_small[C::kMi][4];
    if constexpr (sizeof(T) == 4) {  // the filters of plain TF32 were rounded when they were packed
#pragma unroll
      for (int i = 0; i < C::kMi; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) split_tf32<C::kProduct>(a[i][e], a_small[i][e]);
    }
#pragma unroll
    for (int j = 0; j < C::kNi; j += 2) {
      uint32_t v[4];
      ldmatrix_x4(b_base + swizzled_chunk(b_row + 8 * j, 2 * kk + b_chunk), v);
#pragma unroll
      for (int jj = 0; jj < 2; ++jj) {
        uint32_t b[2] = {v[2 * jj], v[2 * jj + 1]}, b_small[2];
        if constexpr (C::kProduct == Product::kThree) {
#pragma unroll
          for (int e = 0; e < 2; ++e) split_tf32<C::kProduct>(b[e], b_small[e]);
        }
#pragma unroll
        for (int i = 0; i < C::kMi; ++i) {
          if constexpr (C::kProduct == Product::kThree) {
            mma<T>(acc[i][j + jj], a[i], b_small);
            mma<T>(acc[i][j + jj], a_small[i], b);
          }
          mma<T>(acc[i][j + jj], a[i], b);
        }
      }
    }
  }
}

// Four matrix instructions' pairs of columns of one row, v[4][2] in each lane of a quad -> 8 neighbouring columns in each: lane q of the quad gets the
// columns of instruction q. A transposition of 4x4 pairs in two exchanges.
CK_DEV void gather_columns(float (&v)[4][2]) {
  const int lane = lane_index();
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j & bit) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const bool upper = lane & bit;
        const float got = __shfl_xor_sync(~0u, upper ? v[j][i] : v[j + bit][i], bit);
        if (upper) v[j][i] = got;
        else v[j + bit][i] = got;
      }
    }
}

// Eight filters of one pixel: the epilogue, and the way to memory. `act` maps 8 values in place.
template <class T, class F>
CK_DEV void emit(const MmaArgs& g, int m, int group, int col, float (&v)[8], bool inside, F act) {
  uint32_t q = 0, p = 0;
  const int64_t n = g.by_p.divmod(g.by_q.divmod(static_cast<uint32_t>(inside ? m : 0), q), p);
  const int64_t k = static_cast<int64_t>(group) * g.k + col;
  const Epilogue& e = g.epilogue;
  const int count = inside ? (g.k - col < 8 ? g.k - col : 8) : 0;
  const T* residual = e.residual.data ? at<const T>(e.residual, n, 0, p, q) + k : nullptr;
  const bool vector = g.vector && count == 8;
  float add[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
  if (vector) {
    float scale[8], bias[8];
    constexpr int kStep = 16 / static_cast<int>(sizeof(T));
    if (e.scale) {
      load<4>(e.scale + k, reinterpret_cast<float (&)[4]>(scale[0])), load<4>(e.scale + k + 4, reinterpret_cast<float (&)[4]>(scale[4]));
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] *= scale[i];
    }
    if (e.bias) {
      load<4>(e.bias + k, reinterpret_cast<float (&)[4]>(bias[0])), load<4>(e.bias + k + 4, reinterpret_cast<float (&)[4]>(bias[4]));
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] += bias[i];
    }
    if (residual)
#pragma unroll
      for (int i = 0; i < 8; i += kStep) load<kStep>(residual + i, reinterpret_cast<float (&)[kStep]>(add[i]));
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < count) {
        if (e.scale) v[i] *= e.scale[k + i];
        if (e.bias) v[i] += e.bias[k + i];
        if (residual) add[i] = to_float(residual[i]);
      }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] += add[i];
  act(v);
  if (!count) return;
  T* y = at<T>(g.y, n, 0, p, q) + k;
  if (vector) {
    constexpr int kStep = 16 / static_cast<int>(sizeof(T));
#pragma unroll
    for (int i = 0; i < 8; i += kStep) store<kStep>(y + i, reinterpret_cast<const float (&)[kStep]>(v[i]));
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < count) y[i] = from_float<T>(v[i]);
  }
}

CK_DEVICE int64_t partial_pitch(int k) { return ceil_div(k, 8) * 8; }

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocks) multiply(const __grid_constant__ MmaArgs g) {
  using T = typename C::T;
  const uint32_t base = shared_address(dynamic_shared());
  const int warp = warp_index(), lane = lane_index();
  uint32_t tile_n, group;  // columns, then groups, vary fastest: they share the pixels in L2
  const uint32_t tile_m = g.by_group.divmod(g.by_tile_n.divmod(blockIdx.x, tile_n), group);
  const int m0 = static_cast<int>(tile_m) * C::kM, n0 = static_cast<int>(tile_n) * C::kN;
  const int slice = static_cast<int>(blockIdx.y);
  const int begin = static_cast<int>(static_cast<int64_t>(g.steps) * slice / g.slices);
  const int end = static_cast<int>(static_cast<int64_t>(g.steps) * (slice + 1) / g.slices);

  float acc[C::kMi][C::kNi][4];
#pragma unroll
  for (int i = 0; i < C::kMi; ++i)
#pragma unroll
    for (int j = 0; j < C::kNi; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[i][j][e] = 0.f;

  MmaLoader<C> loader(g, m0, n0, static_cast<int>(group), begin);
  auto stage_at = [&](int step) { return base + (step - begin) % C::kStages * C::kStageBytes; };
  for (int step = begin; step < begin + C::kStages - 1; ++step) {
    if (step < end) {
      loader.fetch(stage_at(step));
      loader.deposit();
    }
    copy_async_commit();  // also an empty one: the wait below counts
  }
  const int row_a = warp / C::kWarpsN * (C::kMi * 16), row_b = warp % C::kWarpsN * (C::kNi * 8);
  for (int step = begin; step < end; ++step) {
    copy_async_wait<C::kStages - 2>();
    __syncthreads();  // this step's stage is there for all, and all are done with the one that is filled next
    const bool more = step + C::kStages - 1 < end;
    if (more) loader.fetch(stage_at(step + C::kStages - 1));
    copy_async_commit();
    const uint32_t stage = stage_at(step);
    if constexpr (C::kProduct == Product::kThree) {
      float part[C::kMi][C::kNi][4];
#pragma unroll
      for (int i = 0; i < C::kMi; ++i)
#pragma unroll
        for (int j = 0; j < C::kNi; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) part[i][j][e] = 0.f;
      mma_stage<C>(part, stage, stage + C::kABytes, row_a, row_b);
#pragma unroll
      for (int i = 0; i < C::kMi; ++i)
#pragma unroll
        for (int j = 0; j < C::kNi; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) acc[i][j][e] += part[i][j][e];
    } else {
      mma_stage<C>(acc, stage, stage + C::kABytes, row_a, row_b);
    }
    if (more) loader.deposit();
  }
  copy_async_wait<0>();
  __syncthreads();  // the stages are free: each warp has a kilobyte of scratch for the activation

  const ActivationF act = g.epilogue.act;
#pragma unroll
  for (int i = 0; i < C::kMi; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int m = m0 + row_a + 16 * i + 8 * half + lane / 4;
#pragma unroll
      for (int j = 0; j < C::kNi; j += 4) {
        float pair[4][2], v[8];
#pragma unroll
        for (int e = 0; e < 8; ++e) pair[e / 2][e % 2] = acc[i][j + e / 2][2 * half + e % 2];
        gather_columns(pair);
#pragma unroll
        for (int e = 0; e < 8; ++e) v[e] = pair[e / 2][e % 2];
        const int col = n0 + row_b + 8 * j + lane % 4 * 8;
        const bool inside = m < g.m && col < g.k;
        if (g.slices > 1) {
          if (inside) {
            float* out = g.partial + ((static_cast<int64_t>(slice) * g.groups + group) * g.m + m) * partial_pitch(g.k) + col;
            store<4>(out, reinterpret_cast<const float (&)[4]>(v[0])), store<4>(out + 4, reinterpret_cast<const float (&)[4]>(v[4]));
          }
          continue;
        }
        emit<T>(g, m, static_cast<int>(group), col, v, inside, [&](float (&u)[8]) {
          if (act.kind == Act::kClamp) {
#pragma unroll
            for (int e = 0; e < 8; ++e) u[e] = clamp(u[e], act.a, act.b);
          } else {
            activate_in_shared(u, base + warp * 1024, act);
          }
        });
      }
    }
}

// Adds the slices up, in order, 8 filters of one pixel a thread.
template <class T>
__global__ void sum_slices(const __grid_constant__ MmaArgs g, Divider<uint64_t> by_pitch, Divider<uint64_t> by_m, int64_t items) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x, pitch = partial_pitch(g.k), slice = g.groups * g.m * pitch;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < items; i += step) {
    uint64_t block, m;
    const int group = static_cast<int>(by_m.divmod(by_pitch.divmod(static_cast<uint64_t>(i), block), m));
    float v[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
    for (int j = 0; j < g.slices; ++j) {
      float part[8];
      const float* from = g.partial + j * slice + i * 8;
      load<4>(from, reinterpret_cast<float (&)[4]>(part[0])), load<4>(from + 4, reinterpret_cast<float (&)[4]>(part[4]));
#pragma unroll
      for (int e = 0; e < 8; ++e) v[e] += part[e];
    }
    emit<T>(g, static_cast<int>(m), group, static_cast<int>(block) * 8, v, true, [&](float (&u)[8]) {
#pragma unroll
      for (int e = 0; e < 8; ++e) u[e] = activate(u[e], g.epilogue.act);
    });
  }
}

}  // namespace ck::cuda
