// plan.h: a whole network as a list of steps over one arena, run in one call.
//
//   build    input(), conv(), pool(), ... append steps; each chooses its kernel at once from the per-image problem
//   finish   lays all tensors of one image into an arena by liveness (arena.cpp)
//   run      n images at a time in blocks, for any n; concurrent calls lease an arena each
//
// A tensor is a window (channel range, reshape) into a root; a root is memory: a caller's input, a slot of the arena, or, at run time, a caller's output.
// Weights are shared: a Parameter owns its packed forms, so that plans for several input sizes hold one copy.
// A training plan (plan_train.cpp) also has totals: tensors without the image dimension, one for the batch, such as the gradient of a weight. It runs
// all images as one block, and weights that were touch()ed are packed again by the step that reads them.
#pragma once
#include <array>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
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

// How a kernel sees a weight: as it is, or for the gradient of the input with C and K of each group exchanged, and the taps in reverse order.
enum class Form { kForward, kSwapped, kSwappedFlipped };

// What a kernel made of a weight's values of some version.
struct Packed {
  const ConvKernel* kernel;
  ConvProblem problem;
  Form form;
  Buffer memory;
  std::atomic<int64_t> version{-1};
};

// Where a weight lies that is not T R S C/G K in memory, as a framework's: the elements from one tap to the next (T R S in one), from one channel and
// from one filter of a group to the next, and from group to group.
struct Layout {
  int64_t tap, channel, filter, group;
};

// A weight tensor T R S C/G K as the model holds it (memory kept alive by `owner`), times scale[k], and what kernels made of it.
class Parameter {
 public:
  Parameter(std::array<int64_t, 5> shape, int element_bytes, const void* data, std::shared_ptr<void> owner, Buffer scale,
            bool trainable = false, std::optional<Layout> layout = std::nullopt)
      : shape(shape),
        element_bytes(element_bytes),
        trainable(trainable),
        data_(data),
        owner_(std::move(owner)),
        scale_(std::move(scale)),
        layout_(layout) {}
  std::shared_ptr<Packed> packed(const ConvKernel& kernel, const ConvProblem& problem, Form form = Form::kForward);
  // Packs again what touch() made stale.
  void refresh(Packed& packed, int threads);
  // `room` is memory for weights in another order, which grows as needed.
  void pack(const ConvKernel& kernel, const ConvProblem& problem, Form form, void* to, Buffer& room, int threads) const;
  // The values as `form` wants them: where they lie, if that is their order, else copied to `room`.
  const void* in_order(Form form, int64_t groups, Buffer& room, int threads) const;
  void touch() { ++version_; }  // the owner changed the values
  int64_t version() const { return version_; }
  const void* data() const { return data_; }
  bool scaled() const { return scale_.bytes() > 0; }
  bool laid_out() const { return layout_.has_value(); }
  bool filters_first() const { return layout_ && layout_->filter > layout_->channel; }
  int64_t packed_bytes();
  const void* scale() const { return scale_.bytes() ? scale_.data() : nullptr; }

  // A weight that lies on a device already: where, its strides and its type (device::Element).
  struct DeviceData {
    const void* data = nullptr;
    std::array<int64_t, 5> strides{};
    int element = 0;
  } device_data;
  // What a device made of it (bind/device.cpp), one for each device.
  std::mutex device_mutex;
  std::map<int, std::shared_ptr<void>> on_device;

  const std::array<int64_t, 5> shape;
  const int element_bytes;
  const bool trainable;  // changes with every run of a training plan: such plans pack it into memory that all layers share

 private:
  const void* data_;
  std::shared_ptr<void> owner_;
  Buffer scale_;
  const std::optional<Layout> layout_;  // or T R S C/G K without gaps
  std::atomic<int64_t> version_{0};
  std::mutex mutex_;
  std::map<std::tuple<const void*, int64_t, int64_t, Form>, std::shared_ptr<Packed>> packed_;
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

  struct Kind {             // of plan
    bool float64 = false;   // on the reference kernels
    bool exact = false;     // no algorithm that changes the rounding beyond the order of sums
    bool lean = false;      // no enlarged weights
    bool strips = true;     // chains of row-local steps run strip by strip
    bool record = false;    // choose no kernels and pack nothing; the finished plan is run by a device (core/device.h)
    bool training = false;  // all images are one block; weights may change between runs
    bool bf16 = false;      // products in bfloat16 where the CPU has them
  };
  explicit Plan(const Kind& kind);

  int input(const Dims& dims);
  int buffer(const Dims& dims);
  int channel_slice(int t, int64_t first, int64_t count);
  int reshape(int x, const Dims& dims);
  int conv(int x, const std::shared_ptr<Parameter>& weight, Buffer bias, int residual, const ConvOptions& o, int out,
           const std::string& label, int live_bias = -1);
  std::pair<int, int> pool(int x, PoolProblem p, int target, const std::string& label);  // the sizes of the output are in p
  int norm(int x, NormProblem p, Buffer scale, Buffer shift, const std::string& op, const std::string& label, int live_scale = -1,
           int live_shift = -1);  // live: totals in place of the buffers
  int map(int a, int b, MapKind kind, Activation act, const std::string& op, const std::string& label);  // b < 0: unary
  int concat(const std::vector<int>& xs, int axis, const std::string& label);
  int pad(int x, const Dims& lo, const Dims& hi, Border border, double value, const std::string& label);
  int transpose(int x, const std::array<int, 4>& perm, const std::string& label);
  int resize(int x, ResizeProblem p, const std::string& label);

  // Training (plan_train.cpp). -1 stands for a tensor that is not there.
  int total_input(const Dims& dims);
  int index_input(const Dims& dims);
  int parameter(const std::shared_ptr<Parameter>& p);  // its values as a total, read at run time
  int conv_backward_data(int dy, const std::shared_ptr<Parameter>& weight, const Dims& in, int add, const ConvOptions& o,
                         const std::string& label);
  int conv_backward_weight(int x, int dy, const Triple& window, const ConvOptions& o, const std::string& label);
  int sum(int a, int times, const Dims& shape, bool total, double factor, bool mean, const std::string& label);
  int pool_backward(int dy, int index, const Dims& in, PoolProblem p, const std::string& label);
  struct BatchNorm {
    int y, mean, var;
  };
  BatchNorm batch_norm_train(int x, int gamma, int beta, int residual, double eps, Activation act, const std::string& label);
  struct NormGrad {
    int dx, dscale, dshift;
  };
  NormGrad batch_norm_backward(int dy, int x, int mean, int var, int gamma, int beta, double eps, Activation act, const std::string& label);
  NormGrad norm_backward(int dy, int saved, NormProblem p, int scale, const std::string& op, const std::string& label);
  NormGrad scale_shift_backward(int dy, int x, int scale, const std::string& label);
  int activation_backward(int dy, int saved, Activation act, const std::string& label);
  std::pair<int, int> binary_backward(int dy, int a, int b, MapKind kind, bool need_a, bool need_b, const std::string& label);
  int dropout(int x, int step, double rate, uint64_t seed, bool per_image, const std::string& label);
  std::pair<int, int> loss(int x, int target, int weight, LossProblem p, const std::string& label);
  int pad_backward(int dy, const Dims& in, const Dims& lo, const Dims& hi, Border border, const std::string& label);
  int resize_backward(int dy, const Dims& in, ResizeProblem p, const std::string& label);

  void finish(const std::vector<int>& outputs);
  void run(int64_t n, const std::vector<External>& inputs, const std::vector<void*>& outputs, bool channels_first, int threads,
           std::vector<double>* seconds = nullptr);

  const Dims& dims(int t) const { return tensor(t).dims; }
  bool is_index(int t) const { return roots_[tensor(t).root].is_index; }
  bool is_total(int t) const { return roots_[tensor(t).root].total; }
  const std::vector<int>& inputs() const { return inputs_; }
  const std::vector<int>& outputs() const { return outputs_; }
  const std::vector<Info>& infos() const { return infos_; }
  int64_t arena_elements() const { return arena_elements_; }
  int64_t total_elements() const { return total_elements_; }
  int element_bytes() const { return element_bytes_; }
  bool recorded() const { return record_ && finished_; }

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
    bool total = false;
    std::shared_ptr<Parameter> parameter{};  // whose memory it is, or null
    bool residual = false;                   // kernels step through it evenly: a caller's strided rows are staged
  };
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const std::vector<Root>& roots() const { return roots_; }

 private:
  struct Place {  // where a root is during a run
    char* base;
    int64_t image;
    int64_t depth = 0, row = 0, pixel = 0;  // a caller's channels-last strides, read in place; 0 = dense
  };
  struct Lease {
    Buffer arena, scratch, shared;
    Buffer packing, room;  // for weights packed for the step that runs, and weights in another order
    std::vector<Buffer> staging;
  };
  template <class K, class P>
  struct Call {
    const K* kernel;
    P problem;
  };
  struct Strips;
  // A step of a backward pass: a row that may have phases, any number of tensors (those it reads, then those it writes; -1: none).
  struct Training {
    std::vector<int> reads, writes;
    std::function<int64_t(int64_t images)> shared_bytes;
    std::function<void(const std::vector<View>& views, int64_t images, int threads, char* scratch, char* shared)> run;
  };
  struct Step {
    std::variant<Call<ConvKernel, ConvProblem>, Call<PoolKernel, PoolProblem>, Call<NormKernel, NormProblem>, Call<MapKernel, MapProblem>,
                 Call<MoveKernel, MoveProblem>, Call<ResizeKernel, ResizeProblem>, std::shared_ptr<const Strips>,
                 std::shared_ptr<const Training>>
        call;
    int x, x2, y, index;  // tensor ids, -1 = none
    std::shared_ptr<const Buffer> weights, shift;
    int live_scale = -1, live_shift = -1;    // totals in their place
    std::shared_ptr<Parameter> parameter{};  // whose packed form `weights` is; of a recorded convolution
    std::shared_ptr<Packed> packed{};
    Form form = Form::kForward;  // of a weight that is packed or read when the step runs
    std::string forced{};        // recorded: the row the caller asked for
  };
  // Row-local steps run strip by strip: rows of each intermediate result live in a thread's buffer, never in the arena (strips.cpp).
  struct Strips {
    std::vector<Step> parts;
    std::vector<char> kept;        // 1: the part's result lies in the arena, since later steps read it as well
    int64_t rows;                  // output rows of a strip
    std::vector<int64_t> buffers;  // bytes of each part's buffer (none for the last and for what is kept)
    int64_t scratch;               // bytes a thread needs in all
  };

  friend class DevicePlan;
  const Tensor& tensor(int t) const;
  int add_tensor(const Dims& dims, int root, int64_t offset, int64_t pixel);
  int new_tensor(const Dims& dims, bool is_index = false, bool total = false);
  ConvProblem conv_problem(const Dims& in, const std::array<int64_t, 5>& weight, const ConvOptions& o) const;
  void use_weight(Step& step, const std::shared_ptr<Parameter>& weight, Form form);
  void check_vector(int t, int64_t size, const char* what) const;
  template <class K, class P, class F>
  void add_training(const std::vector<const K*>& rows, const P& problem, std::vector<int> reads, std::vector<int> writes, Info info, F args,
                    const std::string& forced = "");
  template <class F>
  static void each_tensor(const Step& step, const F& f) {
    for (int t : {step.x, step.x2, step.y, step.index, step.live_scale, step.live_shift}) f(t);
    if (const auto* training = std::get_if<7>(&step.call)) {
      for (int t : (*training)->reads) f(t);
      for (int t : (*training)->writes) f(t);
    }
  }
  int target(int out, const Dims& dims);
  int move(int x, int y, MoveProblem p, const std::string& op, const std::string& label);
  template <class K, class P>
  void add_step(const std::vector<const K*>& rows, const P& problem, Step step, Info info, const std::string& forced = "");
  void use(int t, int step);
  void halve_global_pool(size_t i);
  void fuse_strips();
  bool can_strip(const Step& step) const;
  bool feeds(const Step& from, const Step& to, bool keep) const;
  void run_strips(const Strips& strips, const std::vector<Place>& places, int64_t images, int threads, Lease& memory) const;
  void count_uses(const std::vector<int>& outputs);
  void store_bf16();
  void spread_pixels();
  void merge_residuals();
  void plan_arena();
  int64_t place_roots(bool totals);
  int bytes_of(const Root& root) const { return root.is_index ? 8 : root.is_bf16 ? 2 : element_bytes_; }
  View view(const Tensor& t, const std::vector<Place>& places) const;
  void execute(const Step& step, const std::vector<Place>& places, int64_t images, int threads, Lease& memory) const;
  void fetch(const External& from, int t, const Place& to, int64_t images, int threads) const;
  void deliver(int t, const std::vector<Place>& places, void* to, int64_t first, int64_t images, bool channels_first, int threads) const;
  std::unique_ptr<Lease> lease(int64_t images, int threads);
  void give_back(std::unique_ptr<Lease> lease);

  const int element_bytes_;
  const bool exact_, lean_, strips_, record_, training_;
  const Bf16 bf16_;
  const Table& table_;
  std::vector<Tensor> tensors_;
  std::vector<Root> roots_;
  std::vector<Step> steps_;
  std::vector<Info> infos_;
  std::vector<int> inputs_, outputs_;
  bool finished_ = false;
  int64_t arena_elements_ = 0, total_elements_ = 0, block_ = 1, scratch_bytes_ = 0, packing_bytes_ = 0;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Lease>> leases_;
};

}  // namespace ck
