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

// The bfloat16 that a plan may use: none unless asked for, else what the machine has.
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
  int32_t training;    // 1: the weights change with every run, so packing them counts
  int32_t swapped;     // 1: the parameter is another convolution's, with C and K of each group exchanged (the gradient of its input)
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
  Bf16 bf16;  // as in ConvProblem
  int32_t x_bf16, y_bf16;
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
  Bf16 bf16;  // as in ConvProblem
  int32_t a_bf16, b_bf16, y_bf16;
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

// Training. The problem of a gradient is that of its forward operator (ConvProblem, PoolProblem, NormProblem, MoveProblem, ResizeProblem),
// or one of these. "Total": one for the batch, without the image dimension.

// y = factor * sum of a (or of a * b) over the dimensions in which y has size 1, and over the images if y is a total.
struct SumProblem {
  int64_t d, h, w, c;
  int64_t yd, yh, yw, yc;  // equal to d h w c, or 1
  int32_t total, product;
  int32_t mean;  // 1: also divided by the number of terms
  double factor;
};

// Batch norm with the statistics of the batch; mean and (biased) variance are totals.
struct BatchNormProblem {
  int64_t d, h, w, c;
  int32_t backward;  // 1: from dy to dx, dgamma, dbeta
  int32_t residual;  // forward: a tensor is added before the activation
  double eps;
  Activation act;  // none or a clamp; backward: dy is zero where the clamp was active
};

enum class MapBackKind : int32_t { kActivation, kMax, kMin };

// dx of an activation from its output or its input; dx of max and min for the first operand, ties halved.
struct MapBackProblem {
  int64_t d, h, w, c;
  int64_t ad, ah, aw, ac;  // the saved tensor (kMax, kMin: the operand whose gradient it is); equal or 1
  int64_t bd, bh, bw, bc;  // kMax, kMin: the other operand
  MapBackKind kind;
  int32_t from_output;
  Activation act;
};

// y = x * mask / (1 - rate); the mask depends on the seed, the step and the element alone (core/random.h).
struct DropoutProblem {
  int64_t d, h, w, c;
  double rate;
  uint64_t seed;
  int32_t per_image;  // 1: an image is kept or dropped as a whole (stochastic depth)
};

enum class LossKind : int32_t { kSparse, kDense, kSigmoid, kSquared, kAbsolute };

// The loss of each pixel and the gradient of its prediction, in one go.
//   kSparse    softmax cross-entropy, the label is a class (negative: the pixel does not count); kDense: the label is a distribution
//   kSigmoid   binary cross-entropy of logits, kSquared and kAbsolute of anything: means over the channels
struct LossProblem {
  int64_t d, h, w, c;
  LossKind kind;
  int32_t weighted;  // 1: each pixel has a weight
  int32_t mean;      // 1: the gradient is divided by the number of pixels of the batch
  double smoothing;  // labels: label * (1 - smoothing) + smoothing / classes (kSigmoid: / 2)
  double scale;      // of the gradient
};

enum class UpdateKind : int32_t { kSgd, kAdam, kRmsprop };

// One step of an optimizer on a tensor; formulas are torch.optim's.
struct UpdateProblem {
  int64_t count;
  UpdateKind kind;
  double rate, decay;
  double momentum, dampening;       // sgd, rmsprop
  double beta1, beta2, eps;         // adam; rmsprop: beta2 = alpha
  double correction1, correction2;  // adam: 1 - beta^t
  int32_t nesterov, decoupled;      // decoupled: AdamW's weight decay
  int32_t first;                    // sgd: the momentum starts as the gradient
  int32_t eps_inside;               // rmsprop, adam: the root is taken of v + eps (Keras' old form); 0: root + eps
  double scale;                     // of the gradient, before all else
};

}  // namespace ck
