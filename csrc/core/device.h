// device.h: the contract between _core and a module that knows a device (_cuda): plain structs and one table of C functions.
//
// The two extensions are built apart and share no C++ symbol. The module hands over a capsule with a Table; _core checks its version and sizes and
// calls through it. A plan travels as a Program: what is left of it after the passes, with all shapes, before any choice of kernels.
// Functions return a Status; the message of the last failure on this thread is last_error(). A stream is the device's handle as a number, as DLPack
// and __cuda_array_interface__ pass it. Nothing here throws.
#pragma once
#include <cstdint>

#include "problem.h"

namespace ck::device {

constexpr uint32_t kVersion = 1;  // changes with this file or problem.h
constexpr const char* kCapsule = "convkern.device.table";

constexpr uint64_t kAnyStream = ~uint64_t{0};  // release: when every stream is done with it

enum Status : int32_t { kOk, kShape, kDType, kUnsupported, kDevice };  // kDevice: the device or its driver failed
enum class Element : int32_t { kF32, kF16, kBF16, kI64 };

struct Info {
  char name[128];
  int32_t capability, multiprocessors;
  int64_t memory_bytes;
};

// A plan, device-neutral (plan/plan.h has the meaning of the words). Sizes in elements of one image.
struct ProgramRoot {
  int64_t size;
  int32_t is_input, is_index;
  int32_t first, last;  // steps between which it lives; last < 0: never
};
struct ProgramTensor {
  int64_t dims[4], offset, pixel;
  int32_t root, reserved;
};
enum class Family : int32_t { kConv, kPool, kNorm, kMap, kMove, kResize };
struct ProgramStep {
  Family family;
  int32_t x, x2, y, index;  // tensors; -1 = none
  int32_t reserved;
  const void* problem;         // ConvProblem, PoolProblem ... by the family
  void* weight;                // convolutions: from weight_create of the same device
  const float *scale, *shift;  // host: norm parameters; shift = a convolution's bias; null = none
  int64_t channels;            // of scale and shift
  const char* forced;          // a kernel's name, or ""
};
struct Program {
  const ProgramRoot* roots;
  const ProgramTensor* tensors;
  const ProgramStep* steps;
  const int32_t *inputs, *outputs;  // tensors
  int32_t root_count, tensor_count, step_count, input_count, output_count;
  int32_t graphs;  // 1: keep the launches of inputs seen twice as a graph
};

struct Array {  // n d h w c on the device; strides in elements
  void* data;
  int64_t image, depth, row, pixel, channel;
};

struct Choice {                  // valid until the plan's next call on this thread
  const char *kernel, *refused;  // refused: "kernel: reason" lines
  double cost;                   // microseconds, estimated
  int64_t workspace_bytes, packed_bytes;
};

// A copy with any strides and a change of the element type: to[i] = from[i].
struct Relay {
  const void* from;
  void* to;  // dense
  Element from_type, to_type;
  int64_t sizes[6], strides[6];  // of `from`, in elements
};

struct Table {
  uint32_t version, bytes;    // kVersion, sizeof(Table)
  uint32_t problem_bytes[6];  // sizeof of the problems, in the order of Family
  int32_t emulated;           // 1: device memory is host memory (tests)
  int32_t dlpack_type;        // of its arrays: 2 = CUDA, 1 = CPU (emulated)
  const char* (*last_error)();
  Status (*count)(int32_t* devices);
  Status (*info)(int32_t device, Info*);
  Status (*kernel)(int32_t i, Family*, const char** name);  // kUnsupported past the end

  Status (*allocate)(int32_t device, int64_t bytes, uint64_t stream, void**);
  Status (*release)(int32_t device, void*, uint64_t stream);
  Status (*copy)(int32_t device, void* to, const void* from, int64_t bytes, uint64_t stream);  // any two memories
  Status (*synchronize)(int32_t device, uint64_t stream);
  Status (*order)(int32_t device, uint64_t before, uint64_t after);  // what is queued on `after` from now on waits for `before`
  Status (*relay)(int32_t device, const Relay*, uint64_t stream);

  // T R S C/G K, and the factor of each filter. `data` must stay valid as long as the weight if it is on the host.
  Status (*weight_create)(int32_t device, const void* data, int32_t on_device, Element, const int64_t* sizes, const int64_t* strides,
                          const float* scale, void** weight);
  int64_t (*weight_bytes)(void* weight);  // on the device: all packed forms
  void (*weight_destroy)(void* weight);

  Status (*plan_create)(int32_t device, int32_t precision, const Program*, void** plan);
  Status (*plan_run)(void* plan, int64_t n, const Array* inputs, void* const* outputs, int32_t channels_first, uint64_t stream);
  // Seconds of each step, the best of `repeat` runs.
  Status (*plan_profile)(void* plan, int64_t n, const Array* inputs, void* const* outputs, int32_t repeat, uint64_t stream,
                         double* seconds);
  Status (*plan_choice)(void* plan, int64_t n, int32_t step, Choice*);
  Status (*plan_memory)(void* plan, int64_t n, int64_t* arena_bytes, int64_t* workspace_bytes);
  void (*plan_destroy)(void* plan);
};

}  // namespace ck::device
