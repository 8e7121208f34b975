// problem.h: what is computed, as plain structs of sizes. One struct per operator family; the only place where size formulas live.
//
// Glossary (cuDNN / CUTLASS literature; the lecture's, Keras' and torch's words beside it):
//   n            images in a batch            (batch; never part of a problem: kernels are chosen per image)
//   d h w c      input depth, height, width, channels   (lecture: n x n x C^i;  Keras: input_shape;  torch: C_in, D, H, W)
//   z p q k      output depth, height, width, channels  (lecture: C^o filters;   Keras: filters;      torch: out_channels)
//   t r s        filter depth, height, width            (lecture: F;             Keras: kernel_size)
//   stride_* pad_*_lo pad_*_hi dil_*     in pixels; dilation 1 = dense (never "minus one"); lo = front/top/left
//   groups       independent slices of the channels: c/groups inputs feed k/groups outputs
// One- and two-dimensional problems have d = t = z = 1 (and h = r = p = 1).
// Tensors are NDHWC: the channel stride is 1, the other strides travel in a View (tensor.h).
#pragma once
#include <cstdint>

namespace ck {

enum class Act : int32_t {
  kNone,
  kClamp,  // min(max(v, a), b): ReLU is (0, inf), ReLU6 (0, 6)
  kSilu,
  kSigmoid,
  kHardSwish,
  kHardSigmoid,
  kGelu,      // exact, through erf
  kGeluTanh,  // the tanh approximation
  kTanh,
  kElu,        // a = alpha
  kLeakyRelu,  // a = slope
  kSoftplus,   // a = beta, b = threshold
  kExp,
};

// The activation of an epilogue, with its parameters.
struct Activation {
  Act kind;
  double a, b;
};

// The bfloat16 arithmetic that a convolution may use: none unless asked for, else what the machine has.
enum class Bf16 : int32_t {
  kOff,
  kPairs,  // AVX512_BF16
  kTiles,  // and AMX, granted by the operating system
};

struct ConvProblem {
  int64_t d, h, w, c;
  int64_t z, p, q, k;
  int64_t t, r, s;
  int64_t stride_d, stride_h, stride_w;
  int64_t pad_d_lo, pad_h_lo, pad_w_lo;
  int64_t pad_d_hi, pad_h_hi, pad_w_hi;
  int64_t dil_d, dil_h, dil_w;
  int64_t groups;
  int32_t transposed;  // 1: y and x change places in the formula (the gradient of a convolution); weights are still T R S C/G K
  int32_t exact;       // 1: no algorithm that changes the rounding beyond the order of sums (Winograd)
  int32_t lean;        // 1: no enlarged weights
  int32_t residual;    // 1: a tensor of y's shape is added before the activation
  Bf16 bf16;           // products of values rounded to bfloat16, summed in float32, are allowed
  int32_t x_bf16, y_bf16, residual_bf16;  // 1: the tensor is stored as bfloat16; only for rows that say they can (kernel.h)
  Activation act;
};

enum class PoolKind : int32_t { kMax, kAvg };

struct PoolProblem {
  int64_t d, h, w, c;
  int64_t z, p, q;
  int64_t t, r, s;  // window
  int64_t stride_d, stride_h, stride_w;
  int64_t pad_d_lo, pad_h_lo, pad_w_lo;
  int64_t pad_d_hi, pad_h_hi, pad_w_hi;
  int64_t dil_d, dil_h, dil_w;
  int64_t divisor;  // average: > 0 overrides the number of elements
  int32_t count_include_pad;
  int32_t adaptive;  // 1: window of output i is [floor(i*in/out), ceil((i+1)*in/out))
  int32_t indices;   // max: also write the int64 index of the maximum within the input's d*h*w
  PoolKind kind;
};

enum class NormKind : int32_t { kScaleShift, kLayerNorm, kLrn, kSoftmax, kLogSoftmax };

// Row-wise operators over the channels of each pixel.
struct NormProblem {
  int64_t d, h, w, c;
  NormKind kind;
  int64_t size;           // LRN: channels in the window
  double alpha, beta, k;  // LRN: (k + alpha/size * sum x^2)^-beta
  double eps;             // layer norm
  Activation act;         // scale and shift
};

enum class MapKind : int32_t { kUnary, kAdd, kSub, kMul, kDiv, kMax, kMin };

// Elementwise operators; a and b broadcast along every dimension of size 1.
struct MapProblem {
  int64_t d, h, w, c;      // of the result
  int64_t ad, ah, aw, ac;  // of the first operand
  int64_t bd, bh, bw, bc;  // of the second operand (ignored by kUnary)
  MapKind kind;
  Activation act;
};

enum class Border : int32_t { kConstant, kReflect, kReplicate, kCircular };

// Copies: y[i] = x[j], j[perm[k]] = i[k] - lo[k], with a border rule. Covers pad, crop (negative lo), transpose, concat (a view of y)
// and layout changes (views with other channel strides, see MoveArgs).
struct MoveProblem {
  int64_t in[4];    // d h w c of x
  int64_t out[4];   // sizes of y
  int32_t perm[4];  // y's dimension k is x's dimension perm[k]
  int64_t lo[4];    // y's index i reads x's index i - lo (in y's dimension order)
  Border border;
  double value;
};

enum class ResizeKind : int32_t { kNearest, kNearestExact, kLinear, kCubic };

struct ResizeProblem {
  int64_t d, h, w, c;
  int64_t z, p, q;
  double scale_d, scale_h, scale_w;  // input pixels per output pixel; 0: by the sizes. align_corners has its own
  int32_t align_corners;
  ResizeKind kind;
};

}  // namespace ck
