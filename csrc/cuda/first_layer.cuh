// first_layer.cuh: convolutions of 1 to 4 channels (photos): the image and its filters widened so that tensor cores can read them.
//
// A row of S taps of C channels is contiguous in NHWC, so it serves as the depth of a convolution with R x 1 taps. Packing widens C to `channels` (4 or
// 8), adds the padding, and makes neighbouring outputs whole 16-byte units apart; filters become K R depth, S * channels padded to 64 bytes with zeros.
//
//     image row   |0 0 0 0|r g b 0|r g b 0|r g b 0| ...      depth of output q:  from unit q * stride on, R rows of it
//
// What follows is an ordinary convolution of [N, Hp, Q, depth], whose pixels overlap in memory: conv_mma and conv_sm90_persistent take it as a view.
// The zeros of a filter row multiply the pixels that follow the window: an infinity or NaN there makes NaN of outputs up to depth/channels - S pixels
// to the left of those that see it.
//
// With two planes (conv_sm90_first, outputs 32 bytes apart) a row holds its even units first and then the odd ones, so that each plane's outputs are
// 16 bytes apart again; with four planes (64 bytes apart) every fourth.
#pragma once
#include "cuda/filters.cuh"

namespace ck::cuda {

struct FirstLayer {
  int64_t n, h, w, c;       // the image
  int64_t pad_h, pad_w;     // before it
  int64_t channels, pitch;  // of a packed pixel; packed pixels of a row
  int64_t rows;             // of a packed image
  int64_t depth;            // elements of a filter row
  int64_t row_bytes, planes;
  int64_t slack_bytes;   // zeros behind the last image: what reads of the last rows run into
  int64_t packed_bytes;  // images and slack
  int64_t filters_at;    // bytes into the packed filters
};

inline int64_t first_depth(const ConvProblem& p, int64_t channels, int element_bytes) {
  const int64_t chunk = 64 / element_bytes;
  return ceil_div(p.s * channels, chunk) * chunk;
}
// Filters of halves are packed twice, for pixels of 4 and of 8 channels: the stride says which are used, and the packed form must not depend on it.
inline int64_t first_filter_bytes(const ConvProblem& p, int element_bytes) {
  const int64_t four = p.k * p.r * first_depth(p, 4, element_bytes) * element_bytes;
  return element_bytes == 4 ? four : four + p.k * p.r * first_depth(p, 8, element_bytes) * element_bytes;
}

inline FirstLayer first_layer(const ConvProblem& p, int64_t images, int element_bytes, int64_t planes, int64_t slack_bytes) {
  FirstLayer f;
  f.n = images, f.h = p.h, f.w = p.w, f.c = p.c;
  f.pad_h = p.pad_h_lo, f.pad_w = p.pad_w_lo;
  f.channels = p.stride_w * 4 * element_bytes % 16 == 0 ? 4 : 8;
  f.rows = p.h + p.pad_h_lo + p.pad_h_hi;
  f.planes = planes;
  const int64_t unit = 16 * planes;
  f.row_bytes = ceil_div(((p.q - 1) * p.stride_w + p.s) * f.channels * element_bytes, unit) * unit;
  f.pitch = f.row_bytes / (f.channels * element_bytes);
  f.depth = first_depth(p, f.channels, element_bytes);
  f.slack_bytes = ceil_div(slack_bytes, 16) * 16;
  f.packed_bytes = images * f.rows * f.row_bytes + f.slack_bytes;
  f.filters_at = f.channels == 8 ? p.k * p.r * first_depth(p, 4, element_bytes) * element_bytes : 0;
  return f;
}

// The convolution over the packed image, and its view.
inline ConvProblem first_problem(const ConvProblem& p, const FirstLayer& f) {
  ConvProblem o = p;
  o.w = p.q, o.h = f.rows, o.c = f.depth, o.s = 1;
  o.pad_h_lo = o.pad_h_hi = o.pad_w_lo = o.pad_w_hi = 0;
  o.stride_w = o.dil_w = 1;
  return o;
}
inline View first_view(const ConvProblem& p, const FirstLayer& f, void* packed, int element_bytes) {
  return {packed, f.rows * f.row_bytes / element_bytes, f.rows * f.row_bytes / element_bytes, f.row_bytes / element_bytes,
          p.stride_w * f.channels};
}

inline const char* refuse_first(const ConvProblem& p) {
  if (p.c > 4) return "more than 4 channels";
  if (p.transposed) return "transposed";
  if (p.d != 1 || p.t != 1 || p.z != 1) return "volumes";
  if (p.groups != 1) return "groups";
  if (p.dil_w != 1) return "dilated rows: a row of taps is not contiguous";
  if (p.r > 31) return "filters of more than 31 rows";
  if (p.pad_h_lo < 0 || p.pad_h_hi < 0 || p.pad_w_lo < 0 || p.pad_w_hi < 0) return "negative padding";
  return nullptr;
}

// A block packs one row of an image, a thread 16 bytes at a time; the last block writes the slack.
template <class T, int kChannels>
__global__ void pack_image(View x, char* packed, FirstLayer f) {
  constexpr int kPixels = 16 / (kChannels * static_cast<int>(sizeof(T)));
  const int64_t row = static_cast<int64_t>(blockIdx.x), units = f.row_bytes / 16;
  if (row == f.n * f.rows) {
    for (int64_t i = threadIdx.x; i < f.slack_bytes / 16; i += blockDim.x)
      *reinterpret_cast<uint4*>(packed + row * f.row_bytes + 16 * i) = make_uint4(0, 0, 0, 0);
    return;
  }
  const int64_t n = row / f.rows, h = row - n * f.rows - f.pad_h;
  for (int64_t unit = threadIdx.x; unit < units; unit += blockDim.x) {
    Pack<T, 16 / static_cast<int>(sizeof(T))> out;
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int64_t w = unit * kPixels + i - f.pad_w;
      const bool inside = h >= 0 && h < f.h && w >= 0 && w < f.w;
      const T* pixel = inside ? at<const T>(x, n, 0, h, w) : nullptr;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) out.v[i * kChannels + c] = c < 4 && inside && c < f.c ? pixel[c] : from_float<T>(0.f);
    }
    const int64_t plane = unit % f.planes;
    *reinterpret_cast<Pack<T, 16 / static_cast<int>(sizeof(T))>*>(packed + row * f.row_bytes +
                                                                  (plane * (units / f.planes) + unit / f.planes) * 16) = out;
  }
}

// T R S C K -> K R depth.
template <class T>
__global__ void pack_first_filters(const float* weights, T* packed, int64_t r_count, int64_t s_count, int64_t c_count, int64_t k_count,
                                   int64_t channels, int64_t depth, int tf32, int64_t items) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < items; i += step) {
    const int64_t s = i % depth / channels, c = i % depth % channels, r = i / depth % r_count, k = i / depth / r_count;
    float v = s < s_count && c < c_count ? weights[((r * s_count + s) * c_count + c) * k_count + k] : 0.f;
    if (tf32) v = round_tf32(v);
    packed[i] = from_float<T>(v);
  }
}

// Microseconds of packing: a launch, the image read and written.
inline double pack_image_us(const FirstLayer& f, const ConvProblem& p, int element_bytes) {
  return 2.5 + (double(f.packed_bytes) + double(f.n) * double(p.h * p.w * p.c) * element_bytes) / 2e6;
}

inline cudaError_t launch_pack_image(const FirstLayer& f, Precision precision, const View& x, void* packed, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(f.n * f.rows + 1)), block(256);
  return with_element(precision, [&](auto zero) {
    using T = decltype(zero);
    return f.channels == 4
               ? launch<false>(pack_image<T, 4>, grid, block, 0, stream, x, static_cast<char*>(packed), f)
               : launch<false>(pack_image < T, 16 / sizeof(T) == 4 ? 4 : 8 >, grid, block, 0, stream, x, static_cast<char*>(packed), f);
  });
}

inline cudaError_t launch_pack_first_filters(const ConvProblem& p, Precision precision, const float* weights, void* packed,
                                             cudaStream_t stream) {
  const int e = element_bytes(precision);
  char* to = static_cast<char*>(packed);
  for (int64_t channels = 4; channels <= (e == 4 ? 4 : 8); channels += 4) {
    const int64_t depth = first_depth(p, channels, e), items = p.k * p.r * depth;
    const cudaError_t error = with_element(precision, [&](auto zero) {
      using T = decltype(zero);
      return launch<false>(pack_first_filters<T>, dim3(blocks_for(items, 256)), dim3(256), 0, stream, weights, reinterpret_cast<T*>(to),
                           p.r, p.s, p.c, p.k, channels, depth, precision == Precision::kTF32 ? 1 : 0, items);
    });
    if (error != cudaSuccess) return error;
    to += items * e;
  }
  return cudaSuccess;
}

}  // namespace ck::cuda
