// plan.h: a whole network as a list of steps over one arena, run in one call.
//
//   build    input(), conv(), pool(), ... append steps; each chooses its kernel at once from the per-image problem
//   finish   lays all tensors of one image into an arena by liveness (arena.cpp)
//   run      n images at a time in blocks, for any n; concurrent calls lease an arena each
//
// A tensor is a window (channel range, reshape) into a root; a root is memory: a caller's input, a slot of the arena, or, at run time, a caller's output.
// Weights are shared: a Parameter owns its packed forms, so that plans for several input sizes hold one copy.
#pragma once
#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <variant>
#include <vector>

#include "core/memory.h"
#include "dispatch/tables.h"

namespace ck {

using Dims = std::array<int64_t, 4>;    // d h w c of one image
using Triple = std::array<int64_t, 3>;  // d h w

int64_t elements(const Dims& dims);  // overflow-checked
std::string text(const Dims& dims);

// A weight tensor T R S C/G K as the model holds it (memory kept alive by `owner`), times scale[k], and what kernels made of it.
class Parameter {
 public:
  Parameter(std::array<int64_t, 5> shape, int element_bytes, const void* data, std::shared_ptr<void> owner, Buffer scale)
      : shape(shape), element_bytes(element_bytes), data_(data), owner_(std::move(owner)), scale_(std::move(scale)) {}
  std::shared_ptr<const Buffer> packed(const ConvKernel& kernel, const ConvProblem& problem);
  int64_t packed_bytes();

  const std::array<int64_t, 5> shape;
  const int element_bytes;

 private:
  const void* data_;
  std::shared_ptr<void> owner_;
  Buffer scale_;
  std::mutex mutex_;
  std::map<std::tuple<const void*, int64_t, int64_t>, std::shared_ptr<const Buffer>> packed_;
};

struct External {  // a caller's array n d h w c
  void* data;
  int64_t image, depth, row, pixel, channel;  // strides in elements
};

class Plan {
 public:
  struct ConvOptions {
    Triple stride{1, 1, 1}, pad_lo{0, 0, 0}, pad_hi{0, 0, 0}, dilation{1, 1, 1}, output_padding{0, 0, 0};
    int64_t groups = 1;
    bool transposed = false;
    Activation act{Act::kNone, 0, 0};
    std::string algo;
  };
  struct Info {  // what explain prints
    std::string op, label, kernel, why;
    std::vector<std::pair<std::string, std::string>> refused;
    Dims in, out;
    int64_t macs, bytes, workspace, packed;
    double cost = 0;      // estimated microseconds for one image on one core
    std::string key{};    // of the tuning table (convolutions)
    double tuned_us = 0;  // what the table in use says; 0: nothing
  };

  Plan(bool float64, bool exact, bool lean, bool strips, bool bf16);

  int input(const Dims& dims);
  int buffer(const Dims& dims);
  int channel_slice(int t, int64_t first, int64_t count);
  int reshape(int x, const Dims& dims);
  int conv(int x, const std::shared_ptr<Parameter>& weight, Buffer bias, int residual, const ConvOptions& o, int out,
           const std::string& label);
  std::pair<int, int> pool(int x, PoolProblem p, int target, const std::string& label);  // the sizes of the output are in p
  int norm(int x, NormProblem p, Buffer scale, Buffer shift, const std::string& op, const std::string& label);
  int map(int a, int b, MapKind kind, Activation act, const std::string& op, const std::string& label);  // b < 0: unary
  int concat(const std::vector<int>& xs, int axis, const std::string& label);
  int pad(int x, const Dims& lo, const Dims& hi, Border border, double value, const std::string& label);
  int transpose(int x, const std::array<int, 4>& perm, const std::string& label);
  int resize(int x, ResizeProblem p, const std::string& label);

  void finish(const std::vector<int>& outputs);
  void run(int64_t n, const std::vector<External>& inputs, const std::vector<void*>& outputs, bool channels_first, int threads,
           std::vector<double>* seconds = nullptr);

  const Dims& dims(int t) const { return tensor(t).dims; }
  bool is_index(int t) const { return roots_[tensor(t).root].is_index; }
  const std::vector<int>& inputs() const { return inputs_; }
  const std::vector<int>& outputs() const { return outputs_; }
  const std::vector<Info>& infos() const { return infos_; }
  int64_t arena_elements() const { return arena_elements_; }
  int element_bytes() const { return element_bytes_; }

 private:
  struct Tensor {
    Dims dims;
    int root;
    int64_t offset, pixel;  // elements
  };
  struct Root {
    int64_t size;  // elements of one image
    bool is_input, is_index;
    bool is_bf16;     // stored as bfloat16 (bf16.cpp)
    int first, last;  // steps between which it lives
    int64_t offset;   // in the arena, elements of one image
    int aliases;      // tensors that are not the root itself
  };
  struct Place {  // where a root is during a run
    char* base;
    int64_t image;
    int64_t depth = 0, row = 0, pixel = 0;  // a caller's channels-last strides, read in place; 0 = dense
  };
  struct Lease {
    Buffer arena, scratch;
    std::vector<Buffer> staging;
  };
  template <class K, class P>
  struct Call {
    const K* kernel;
    P problem;
  };
  struct Strips;
  struct Step {
    std::variant<Call<ConvKernel, ConvProblem>, Call<PoolKernel, PoolProblem>, Call<NormKernel, NormProblem>, Call<MapKernel, MapProblem>,
                 Call<MoveKernel, MoveProblem>, Call<ResizeKernel, ResizeProblem>, std::shared_ptr<const Strips>>
        call;
    int x, x2, y, index;  // tensor ids, -1 = none
    std::shared_ptr<const Buffer> weights, shift;
  };
  // Row-local steps run strip by strip: rows of each intermediate result live in a thread's buffer, never in the arena (strips.cpp).
  struct Strips {
    std::vector<Step> parts;
    int64_t rows;                  // output rows of a strip
    std::vector<int64_t> buffers;  // bytes of each part's buffer (none for the last)
    int64_t scratch;               // bytes a thread needs in all
  };

  const Tensor& tensor(int t) const;
  int add_tensor(const Dims& dims, int root, int64_t offset, int64_t pixel);
  int new_tensor(const Dims& dims, bool is_index = false);
  int target(int out, const Dims& dims);
  int move(int x, int y, MoveProblem p, const std::string& op, const std::string& label);
  template <class K, class P>
  void add_step(const std::vector<const K*>& rows, const P& problem, Step step, Info info, const std::string& forced = "");
  void use(int t, int step);
  void fuse_strips();
  bool can_strip(const Step& step) const;
  bool feeds(const Step& from, const Step& to) const;
  void run_strips(const Strips& strips, const std::vector<Place>& places, int64_t images, int threads, const Buffer& scratch) const;
  void count_uses(const std::vector<int>& outputs);
  void store_bf16();
  void plan_arena();
  int bytes_of(const Root& root) const { return root.is_index ? 8 : root.is_bf16 ? 2 : element_bytes_; }
  View view(const Tensor& t, const std::vector<Place>& places) const;
  void execute(const Step& step, const std::vector<Place>& places, int64_t images, int threads, const Buffer& scratch) const;
  void fetch(const External& from, int t, const Place& to, int64_t images, int threads) const;
  void deliver(int t, const std::vector<Place>& places, void* to, int64_t first, int64_t images, bool channels_first, int threads) const;
  std::unique_ptr<Lease> lease(int64_t images, int threads);
  void give_back(std::unique_ptr<Lease> lease);

  const int element_bytes_;
  const bool exact_, lean_, strips_;
  const Bf16 bf16_;
  const Table& table_;
  std::vector<Tensor> tensors_;
  std::vector<Root> roots_;
  std::vector<Step> steps_;
  std::vector<Info> infos_;
  std::vector<int> inputs_, outputs_;
  bool finished_ = false;
  int64_t arena_elements_ = 0, block_ = 1, scratch_bytes_ = 0;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Lease>> leases_;
};

}  // namespace ck
