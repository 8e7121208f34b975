// kernel.h: a kernel is a row. One struct per operator family, filled in by each kernel file, listed in cpu/kernels.def.
//
// A row never allocates, throws, knows Python or OpenMP. It cuts its work into `tasks` that may run in any order on any thread;
// the plan hands each thread a contiguous range [first, last) and a scratch of `scratch_bytes` (64-byte aligned, contents undefined).
// Each output element is computed by exactly one task, in an order of sums that depends on the problem alone.
#pragma once
#include "problem.h"
#include "tensor.h"

namespace ck {

struct ConvArgs {
  View x, y, residual;  // residual.data may be null
  const void* weights;  // what pack() wrote
  const void* bias;     // k values or null
};

struct PoolArgs {
  View x, y;
  View index;  // int64, only when problem.indices
};

struct NormArgs {
  View x, y;
  const void* scale;  // c values (kScaleShift, kLayerNorm) or null
  const void* shift;
};

struct MapArgs {
  View a, b, y;
};

struct MoveArgs {
  View x, y;
  int64_t x_channel;  // elements from one channel of x to the next; 1 inside a plan, other values only for a caller's own array
  int64_t y_channel;  // the same of y: a result wanted as NCHW
};

struct ResizeArgs {
  View x, y;
};

template <class Problem, class Args>
struct Kernel {
  const char* name;
  const char* (*refuse)(const Problem&);     // a reason, or null to accept
  double (*cost)(const Problem&);            // estimated microseconds for one image on one core
  int64_t (*scratch_bytes)(const Problem&);  // per thread
  int64_t (*tasks)(const Problem&, int64_t images);
  void (*run)(const Problem&, const Args&, int64_t images, int64_t first, int64_t last, void* scratch);
  // Convolutions only: weights T R S C/G K (times scale[k] if given) into the row's own layout. Null for the other families, and for rows that
  // read the parameter's memory as it is.
  int64_t (*packed_bytes)(const Problem&) = nullptr;
  int64_t (*pack_tasks)(const Problem&) = nullptr;
  void (*pack)(const Problem&, const void* weights, const void* scale, void* packed, int64_t first, int64_t last) = nullptr;
  bool bf16 = false;  // takes tensors stored as bfloat16
  // Optional: the same from the weights T R S K/G C of the layer whose gradient this convolution is, the taps in reverse order if `flip`.
  void (*pack_swapped)(const Problem&, const void* weights, bool flip, void* packed, int64_t first, int64_t last) = nullptr;
  // Convolutions only: each element of the residual is read once, by the task that then writes the same element of y: both may be one memory.
  bool in_place = false;
};

// Training. The rows of these families may run in phases: all tasks of one are done before the next begins. Between them stands `shared`, one for
// all threads, where a first phase leaves partial sums of chunks whose number depends on the problem and the images alone, and a second adds
// them in order: the same bits for any number of threads.

struct ConvWeightArgs {
  View x, dy;  // of the forward convolution
  void* dw;    // T R S C/G K
};

struct PoolBackArgs {
  View dy, index;  // index: max only
  View dx;
};

struct NormBackArgs {
  View dy, saved;  // x; softmax and log-softmax: y
  const void* scale;
  View dx;
  void *dscale, *dshift;  // layer norm; or null
};

struct SumArgs {
  View a, b;
  View y;  // a total: image stride 0
};

struct BatchNormArgs {
  View x, dy;
  View residual;
  const void *gamma, *beta;  // or null: 1 and 0
  void *mean, *var;          // written forward, read backward
  View y;                    // y or dx
  void *dgamma, *dbeta;
};

struct MapBackArgs {
  View dy, a, b, dx;
};

struct DropoutArgs {
  View x, y;
  const void* step;  // one number, or null for 0
};

struct LossArgs {
  View x, label, weight;
  View loss, dx;  // loss: one channel
};

struct MoveBackArgs {
  View dy, dx;
};

struct ResizeBackArgs {
  View dy, dx;
};

struct UpdateArgs {
  void* w;
  const void* g;
  void *m, *v;  // sgd: m = momentum or null; adam: both; rmsprop: v, and m if it has momentum
};

template <class Problem, class Args>
struct PhasedKernel {
  const char* name;
  const char* (*refuse)(const Problem&);
  double (*cost)(const Problem&);
  int64_t (*scratch_bytes)(const Problem&);
  int64_t (*shared_bytes)(const Problem&, int64_t images);
  int64_t (*phases)(const Problem&, int64_t images);
  int64_t (*tasks)(const Problem&, int64_t images, int phase);
  void (*run)(const Problem&, const Args&, int64_t images, int phase, int64_t first, int64_t last, void* scratch, void* shared);
};

using ConvWeightKernel = PhasedKernel<ConvProblem, ConvWeightArgs>;
using PoolBackKernel = PhasedKernel<PoolProblem, PoolBackArgs>;
using NormBackKernel = PhasedKernel<NormProblem, NormBackArgs>;
using SumKernel = PhasedKernel<SumProblem, SumArgs>;
using BatchNormKernel = PhasedKernel<BatchNormProblem, BatchNormArgs>;
using MapBackKernel = PhasedKernel<MapBackProblem, MapBackArgs>;
using DropoutKernel = PhasedKernel<DropoutProblem, DropoutArgs>;
using LossKernel = PhasedKernel<LossProblem, LossArgs>;
using MoveBackKernel = PhasedKernel<MoveProblem, MoveBackArgs>;
using ResizeBackKernel = PhasedKernel<ResizeProblem, ResizeBackArgs>;
using UpdateKernel = PhasedKernel<UpdateProblem, UpdateArgs>;

using ConvKernel = Kernel<ConvProblem, ConvArgs>;
using PoolKernel = Kernel<PoolProblem, PoolArgs>;
using NormKernel = Kernel<NormProblem, NormArgs>;
using MapKernel = Kernel<MapProblem, MapArgs>;
using MoveKernel = Kernel<MoveProblem, MoveArgs>;
using ResizeKernel = Kernel<ResizeProblem, ResizeArgs>;

}  // namespace ck
