// plan.h: a Program (core/device.h) as a list of launches on one device.
//
//   create   constants go to the device, tensors are laid into an arena of one image by liveness
//   run      n images: the first time with given pointers the steps are launched one by one on the caller's stream, in memory that is taken from and
//            given back to the pool in stream order; the second time they are captured, from then on a run is one graph launch
//
// Kernels are chosen when a number of images (and alignment) is first seen. Runs may come from several threads and streams.
#pragma once
#include <list>
#include <memory>
#include <mutex>
#include <variant>
#include <vector>

#include "cuda/dispatch.h"
#include "cuda/runtime.h"

namespace ck::cuda {

using device::Element;

// A convolution's weights for one device, and what rows made of them. Shared by the plans of a model.
class Weight {
 public:
  Weight(int device, const void* data, bool on_device, Element type, const int64_t* sizes, const int64_t* strides, const float* scale);
  // Packs at the first call with this row, precision and problem, and waits for it: any stream may then use it.
  const void* packed(const ConvKernel& kernel, const ConvProblem& problem, const Context& ctx, cudaStream_t stream);
  const float* scale() const { return reinterpret_cast<const float*>(scale_.data()); }
  int64_t bytes();

 private:
  int device_;
  const void* data_;
  bool on_device_;
  Element type_;
  int64_t sizes_[5], strides_[5];
  Memory scale_;
  std::mutex mutex_;
  std::map<std::tuple<const void*, Precision, int64_t, int64_t>, Memory> packed_;
};

// to[i] = from[i] with any strides and types.
void relay(const device::Relay& r, cudaStream_t stream);

class Plan {
 public:
  Plan(int device, Precision precision, const device::Program& program);
  void run(int64_t n, const device::Array* inputs, void* const* outputs, bool channels_first, cudaStream_t stream);
  void profile(int64_t n, const device::Array* inputs, void* const* outputs, int repeat, cudaStream_t stream, double* seconds);
  void choice(int64_t n, int step, device::Choice* out);
  void memory(int64_t n, int64_t* arena, int64_t* workspace);
  int device() const { return device_.id; }

 private:
  using Problem = std::variant<ConvProblem, PoolProblem, NormProblem, MapProblem, MoveProblem, ResizeProblem>;
  struct Tensor {
    int64_t dims[4], offset, pixel;
    int root;
  };
  struct Root {
    int64_t size;
    bool is_input, is_index;
    int64_t offset[2] = {0, 0};  // in the arena, bytes of one image; [channels_first]
  };
  struct Step {
    Problem problem;
    int x, x2, y, index;
    Weight* weight;
    Memory scale, shift;
    std::string forced;
  };
  struct Chosen {  // for a step
    std::variant<const ConvKernel*, const PoolKernel*, const NormKernel*, const MapKernel*, const MoveKernel*, const ResizeKernel*> kernel;
    double cost;
    std::string refused;
    int64_t workspace;
  };
  struct Choices {
    std::vector<Chosen> steps;
    int64_t workspace = 0;
  };
  struct Place {  // where a root is during a run
    char* base = nullptr;
    int64_t image = 0, depth = 0, row = 0, pixel = 0;  // pixel != 0: a caller's channels-last strides, read in place
  };
  struct Call {  // the arguments of a run
    int64_t n;
    std::vector<device::Array> inputs;
    std::vector<void*> outputs;
    bool channels_first;
    bool operator==(const Call& o) const;
  };
  struct Recorded {
    Call call;
    int64_t seen;  // the number of the run that used it last
    Memory memory;
    std::unique_ptr<Graph> graph;
  };

  Context context(int64_t images) const { return {precision_, images, &device_, 16, 16, 16}; }
  Context context(const Step& step, int64_t images, const std::vector<Place>& places) const;
  int64_t block_of(int64_t n, bool channels_first) const;
  std::vector<bool> direct_outputs() const;
  bool reads_in_place(const device::Array& a, const Tensor& t) const;
  std::vector<Place> places(const Call& call, char* memory, int64_t first, int64_t images) const;
  View view(const Tensor& t, const std::vector<Place>& places) const;
  int align(const View& v, int bytes) const;
  std::shared_ptr<const Choices> choose(int64_t images, const std::vector<Place>& places);
  int64_t memory_bytes(const Call& call, int64_t block, const Choices& choices) const;
  void queue(const Call& call, char* memory, int64_t block, const std::vector<std::shared_ptr<const Choices>>& choices, cudaStream_t stream,
             std::vector<Timer>* timers);
  std::vector<std::shared_ptr<const Choices>> prepare(const Call& call, int64_t block, cudaStream_t stream);
  void execute(const Step& step, const Chosen& chosen, const std::vector<Place>& places, int64_t images, void* workspace,
               cudaStream_t stream);
  void copy(const Tensor& t, const MoveArgs& args, int64_t images, cudaStream_t stream) const;
  Call call_of(int64_t n, const device::Array* inputs, void* const* outputs, bool channels_first) const;

  const Device device_;
  const Precision precision_;
  const int element_bytes_;
  const bool graphs_;
  std::vector<Tensor> tensors_;
  std::vector<Root> roots_;
  std::vector<Step> steps_;
  std::vector<int> inputs_, outputs_;
  std::vector<bool> aliased_;        // by root: some tensor is a window of it
  std::vector<bool> direct_;         // by output: written in place by the step that makes it, unless it is to be channels first
  int64_t arena_bytes_[2] = {0, 0};  // of one image; [channels_first]

  std::mutex mutex_;
  std::map<std::vector<int64_t>, std::shared_ptr<const Choices>> choices_;
  std::list<Recorded> recorded_;
  int64_t runs_ = 0;
};

}  // namespace ck::cuda
