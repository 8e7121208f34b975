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
  // Convolutions only: weights T R S C/G K (times scale[k] if given) into the row's own layout. Null for the other families.
  int64_t (*packed_bytes)(const Problem&) = nullptr;
  int64_t (*pack_tasks)(const Problem&) = nullptr;
  void (*pack)(const Problem&, const void* weights, const void* scale, void* packed, int64_t first, int64_t last) = nullptr;
  bool bf16 = false;  // computes in bfloat16, and takes tensors stored so
};

using ConvKernel = Kernel<ConvProblem, ConvArgs>;
using PoolKernel = Kernel<PoolProblem, PoolArgs>;
using NormKernel = Kernel<NormProblem, NormArgs>;
using MapKernel = Kernel<MapProblem, MapArgs>;
using MoveKernel = Kernel<MoveProblem, MoveArgs>;
using ResizeKernel = Kernel<ResizeProblem, ResizeArgs>;

}  // namespace ck
