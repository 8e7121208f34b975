// kernel.cuh: a CUDA kernel is a row, as on the CPU (core/kernel.h). One struct per operator family, listed in cuda/kernels.def.
//
// A row's functions run on the host. They never allocate, synchronise or throw: `run` and `pack` queue launches on the stream they are given,
// use the workspace they asked for (256-byte aligned, contents undefined) and return the launch's error. All of it may be captured into a graph.
// Pointers are to device memory. The same call gives the same bits every time: sums have a fixed order, there are no atomics on floats.
//
// Types     Precision says what a call computes in. kF32, kTF32 and kF32x3 have float tensors (x, y, residual), kF16 __half, kBF16 __nv_bfloat16;
//           sums, scale, bias, norm parameters and activations are float always; y is rounded once, at the end.
// Weights   The plan uploads T R S C/G K as float; `pack` brings them into the row's own layout and type, once for each parameter, row and precision
//           (then the float copy is freed). The packed form must depend on the problem's filter sizes, C, K, groups, the precision and the device
//           alone: not on the images, the map's size, strides or alignments. The folded scale is not in it: it is an epilogue factor.
// Choice    The cheapest row that accepts, for this problem, number of images and alignment (unlike the CPU, which never looks at N: a device with
//           a hundred cores needs split sums at N = 1).
#pragma once
#include "core/kernel.h"
#include "cuda/common.cuh"

namespace ck::cuda {

enum class Precision : int32_t {
  kF32,    // strict: float products and sums
  kTF32,   // float tensors, products of 10-bit mantissas on tensor cores
  kF32x3,  // float tensors, three TF32 products each: close to float, not IEEE
  kF16,
  kBF16,
};

inline int element_bytes(Precision p) { return p == Precision::kF16 || p == Precision::kBF16 ? 2 : 4; }

struct Device {
  int id;
  int capability;        // 75, 80, 86, 90 ...: 10 * major + minor
  int multiprocessors;   // SMs
  int64_t shared_bytes;  // a block's largest dynamic shared memory (opt-in)
  int64_t l2_bytes;
  int64_t memory_bytes;
};

// What a row may look at beside the problem.
struct Context {
  Precision precision;
  int64_t images;
  const Device* device;
  // The largest power of two, 16 at most, that divides a tensor's address and all its strides, in bytes. 16 = vectors and TMA are possible.
  int x_align, y_align, residual_align;
  bool x_flat = true;  // all pixels of all images of x are one list, x.pixel elements apart
  bool y_flat = true, residual_flat = true;
  int64_t x_channel = 1, y_channel = 1;  // of MoveArgs
};

struct ConvArgs {
  View x, y, residual;  // residual.data may be null; strides in elements
  const void* weights;  // what pack() wrote
  const float* scale;   // k values or null
  const float* bias;    // k values or null
};  // y = act(scale * sum + bias + residual)

struct NormArgs {
  View x, y;
  const float* scale;  // c values (kScaleShift, kLayerNorm) or null
  const float* shift;
};

template <class Problem, class Args>
struct Kernel {
  const char* name;
  const char* (*refuse)(const Problem&, const Context&);       // a reason, or null to accept
  double (*cost)(const Problem&, const Context&);              // estimated microseconds for all images
  int64_t (*workspace_bytes)(const Problem&, const Context&);  // for all images; the row must refuse what it cannot keep below 1 GiB
  cudaError_t (*run)(const Problem&, const Args&, const Context&, void* workspace, cudaStream_t);
  // Convolutions only.
  int64_t (*packed_bytes)(const Problem&, const Context&) = nullptr;
  cudaError_t (*pack)(const Problem&, const Context&, const float* weights, void* packed, cudaStream_t) = nullptr;
};

using ConvKernel = Kernel<ConvProblem, ConvArgs>;
using PoolKernel = Kernel<PoolProblem, PoolArgs>;
using NormKernel = Kernel<NormProblem, NormArgs>;
using MapKernel = Kernel<MapProblem, MapArgs>;
using MoveKernel = Kernel<MoveProblem, MoveArgs>;
using ResizeKernel = Kernel<ResizeProblem, ResizeArgs>;

// Calls f(T{}) with the element type of a precision: run-time options become types once.
template <class F>
cudaError_t with_element(Precision p, F f) {
  switch (p) {
    case Precision::kF16: return f(Half{});
    case Precision::kBF16: return f(Bfloat{});
    default: return f(float{});
  }
}

}  // namespace ck::cuda
