// plan.cpp: building and running a plan. See plan.h for the life of a plan, arena.cpp for its memory.
#include "plan/plan.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "core/parallel.h"
#include "core/recycled.h"
#include "dispatch/tuning.h"

namespace ck {
namespace {

// Networks run this many images at a time: weights are read once per block, activations stay bounded.
// Tried     one or two images at a time for the wide early layers, so that they stay in the last-level cache: no gain (ResNet-50, DenseNet-121),
//           a loss where weights are large (VGG-16, N=8: 0.8); Zen 4, November 2026
constexpr int64_t kBlockImages = 8;

int64_t multiply(int64_t a, int64_t b) {
  int64_t product;
  if (a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product) || product > (int64_t{1} << 60))
    shape_error("a size overflows: " + std::to_string(a) + " x " + std::to_string(b));
  return product;
}

int64_t conv_size(const char* name, int64_t in, int64_t filter, int64_t stride, int64_t lo, int64_t hi, int64_t dil) {
  const int64_t span = multiply(dil, filter - 1) + 1, padded = in + lo + hi;
  if (padded < span)
    shape_error(std::string("the filter (") + std::to_string(span) + " pixels with dilation) is larger than the padded input (" +
                std::to_string(padded) + ") along " + name);
  return (padded - span) / stride + 1;
}

int64_t transposed_size(const char* name, int64_t in, int64_t filter, int64_t stride, int64_t lo, int64_t hi, int64_t dil, int64_t extra) {
  const int64_t out = multiply(in - 1, stride) - lo - hi + multiply(dil, filter - 1) + extra + 1;
  if (out < 1) shape_error(std::string("the transposed convolution has no output along ") + name + ": size " + std::to_string(out));
  return out;
}

// Float32 plans do not hear of the rows for bfloat16, unless one is forced.
template <class K>
std::vector<const K*> heard(std::vector<const K*> rows, Bf16 bf16) {
  if (bf16 == Bf16::kOff) rows.erase(std::remove_if(rows.begin(), rows.end(), [](const K* k) { return k->bf16; }), rows.end());
  return rows;
}

std::string cost_text(double us) { return "cheapest by the cost model: " + std::to_string(us).substr(0, 8) + " us an image and core"; }

}  // namespace

int64_t elements(const Dims& dims) { return multiply(multiply(multiply(dims[0], dims[1]), dims[2]), dims[3]); }

std::string text(const Dims& dims) {
  return "(" + std::to_string(dims[0]) + ", " + std::to_string(dims[1]) + ", " + std::to_string(dims[2]) + ", " + std::to_string(dims[3]) +
         ")";
}

std::shared_ptr<Packed> Parameter::packed(const ConvKernel& kernel, const ConvProblem& problem, Form form) {
  if (form != Form::kForward && scaled()) unsupported("a weight with a folded scale has no gradient");
  const std::lock_guard<std::mutex> lock(mutex_);
  const int64_t bytes = kernel.packed_bytes(problem);
  auto& slot = packed_[{&kernel, bytes, problem.groups, form}];
  if (!slot) {
    slot = std::make_shared<Packed>();
    slot->kernel = &kernel, slot->problem = problem, slot->form = form;
    slot->memory = Buffer(bytes);
  }
  return slot;
}

int64_t Parameter::packed_bytes() {
  const std::lock_guard<std::mutex> lock(mutex_);
  int64_t sum = 0;
  for (const auto& [key, packed] : packed_) sum += packed->memory.bytes();
  return sum;
}

Plan::Plan(const Kind& kind)
    : element_bytes_(kind.float64 ? 8 : 4),
      exact_(kind.exact),
      lean_(kind.lean),
      strips_(kind.strips && !kind.float64 && !kind.record && !kind.training),
      record_(kind.record),
      training_(kind.training),
      bf16_(kind.bf16 ? ck::bf16() : Bf16::kOff),
      table_(kind.float64 ? reference64() : table()) {
  if (record_ && training_) unsupported("a recorded plan trains nothing: gradients run on the CPU");
  if (kind.bf16 && (kind.float64 || record_ || training_))
    unsupported("bfloat16 is for inference with float32 sums: no plan of float64, of a device or of training has it");
  if (kind.bf16 && bf16_ == Bf16::kOff)
    unsupported("bfloat16 needs a CPU with AVX512_BF16; this one is used as " + std::string(table_.isa) +
                (std::string(table_.isa) == "avx512" ? " without it" : ""));
}

const Plan::Tensor& Plan::tensor(int t) const {
  if (t < 0 || t >= static_cast<int>(tensors_.size())) shape_error("no tensor has the id " + std::to_string(t));
  return tensors_[t];
}

int Plan::add_tensor(const Dims& dims, int root, int64_t offset, int64_t pixel) {
  tensors_.push_back({dims, root, offset, pixel});
  return static_cast<int>(tensors_.size()) - 1;
}

int Plan::new_tensor(const Dims& dims, bool is_index, bool total) {
  roots_.push_back({elements(dims), false, is_index, false, 1 << 30, -1, 0, 0, total});
  return add_tensor(dims, static_cast<int>(roots_.size()) - 1, 0, dims[3]);
}

int Plan::input(const Dims& dims) {
  const int t = new_tensor(dims);
  roots_.back().is_input = true;
  inputs_.push_back(t);
  return t;
}

int Plan::buffer(const Dims& dims) { return new_tensor(dims); }

int Plan::channel_slice(int t, int64_t first, int64_t count) {
  const Tensor base = tensor(t);
  if (first < 0 || count < 1 || first + count > base.dims[3])
    shape_error("channels [" + std::to_string(first) + ", " + std::to_string(first + count) + ") of a tensor " + text(base.dims));
  ++roots_[base.root].aliases;
  return add_tensor({base.dims[0], base.dims[1], base.dims[2], count}, base.root, base.offset + first, base.pixel);
}

int Plan::reshape(int x, const Dims& dims) {
  Tensor base = tensor(x);
  if (elements(dims) != elements(base.dims)) shape_error("cannot reshape " + text(base.dims) + " to " + text(dims));
  if (base.pixel != base.dims[3]) {  // a channel slice has gaps
    x = move(x, new_tensor(base.dims, false, is_total(x)), {}, "copy", "reshape");
    base = tensor(x);
  }
  ++roots_[base.root].aliases;
  return add_tensor(dims, base.root, base.offset, dims[3]);
}

int Plan::target(int out, const Dims& dims) {
  if (out < 0) return new_tensor(dims);
  if (tensor(out).dims != dims) shape_error("the result " + text(dims) + " does not fit its target " + text(tensor(out).dims));
  return out;
}

void Plan::use(int t, int step) {
  if (t < 0) return;
  Root& root = roots_[tensor(t).root];
  root.first = std::min(root.first, step);
  root.last = std::max(root.last, step);
}

template <class K, class P>
void Plan::add_step(const std::vector<const K*>& rows, const P& problem, Step step, Info info, const std::string& forced) {
  if (finished_) unsupported("a finished plan takes no more steps");
  Choice<K> choice = record_ ? Choice<K>{} : select(rows, problem, forced);
  if (!record_) {
    info.why = forced.empty() ? cost_text(choice.cost) : "forced";
    if constexpr (std::is_same_v<K, ConvKernel>) {
      info.key = tuning_key(problem, table_.isa);
      if (const auto row = forced.empty() ? tuned(info.key) : std::nullopt)
        for (const K* kernel : rows)
          if (row->kernel == kernel->name && !kernel->refuse(problem)) {
            if (kernel != choice.kernel) info.why = std::string("tuned: measured faster than ") + choice.kernel->name;
            else info.why += ", and by the table";
            choice.kernel = kernel, choice.cost = kernel->cost(problem), info.tuned_us = row->us;
          }
    }
    info.kernel = choice.kernel->name;
    info.refused = choice.refused;
    info.cost = choice.cost;
    info.workspace = choice.kernel->scratch_bytes(problem);
    scratch_bytes_ = std::max(scratch_bytes_, info.workspace);
  }
  step.forced = forced;
  info.in = tensor(step.x).dims;
  info.out = tensor(step.y).dims;
  info.bytes += element_bytes_ * (elements(info.in) + elements(info.out) + (step.x2 >= 0 ? elements(tensor(step.x2).dims) : 0));
  step.call = Call<K, P>{choice.kernel, problem};
  const int index = static_cast<int>(steps_.size());
  each_tensor(step, [&](int t) { use(t, index); });
  steps_.push_back(std::move(step));
  infos_.push_back(std::move(info));
}

// The problem of a convolution without its epilogue; checks the options.
ConvProblem Plan::conv_problem(const Dims& in, const std::array<int64_t, 5>& w, const ConvOptions& o) const {
  if (o.groups < 1 || in[3] % o.groups || w[4] % o.groups)
    shape_error("groups=" + std::to_string(o.groups) + " must divide the channels " + std::to_string(in[3]) + " and the filters " +
                std::to_string(w[4]));
  if (w[3] != in[3] / o.groups)
    shape_error("the filters take " + std::to_string(w[3]) + " channels x " + std::to_string(o.groups) + " groups, the input has " +
                std::to_string(in[3]));
  for (int i = 0; i < 3; ++i) {
    if (o.stride[i] < 1 || o.dilation[i] < 1) shape_error("stride and dilation must be positive");
    if (w[i] < 1) shape_error("a filter needs at least one pixel");
  }
  if (w[4] < 1 || w[3] < 1) shape_error("a convolution needs at least one channel and one filter");
  ConvProblem p{};
  p.d = in[0], p.h = in[1], p.w = in[2], p.c = in[3], p.k = w[4];
  p.t = w[0], p.r = w[1], p.s = w[2];
  p.stride_d = o.stride[0], p.stride_h = o.stride[1], p.stride_w = o.stride[2];
  p.pad_d_lo = o.pad_lo[0], p.pad_h_lo = o.pad_lo[1], p.pad_w_lo = o.pad_lo[2];
  p.pad_d_hi = o.pad_hi[0], p.pad_h_hi = o.pad_hi[1], p.pad_w_hi = o.pad_hi[2];
  p.dil_d = o.dilation[0], p.dil_h = o.dilation[1], p.dil_w = o.dilation[2];
  p.groups = o.groups, p.transposed = o.transposed, p.exact = exact_, p.lean = lean_, p.training = training_;
  p.bf16 = bf16_, p.act = o.act;
  int64_t* const sizes[3] = {&p.z, &p.p, &p.q};
  const char* const names[3] = {"depth", "height", "width"};
  for (int i = 0; i < 3; ++i)
    *sizes[i] = o.transposed
                    ? transposed_size(names[i], in[i], w[i], o.stride[i], o.pad_lo[i], o.pad_hi[i], o.dilation[i], o.output_padding[i])
                    : conv_size(names[i], in[i], w[i], o.stride[i], o.pad_lo[i], o.pad_hi[i], o.dilation[i]);
  elements({p.z, p.p, p.q, p.k});  // overflow check
  return p;
}

// The step that was added last reads this weight. A training plan packs it when it runs.
void Plan::use_weight(Step& step, const std::shared_ptr<Parameter>& weight, Form form) {
  const auto& call = std::get<Call<ConvKernel, ConvProblem>>(step.call);
  step.parameter = weight, step.form = form;
  if (!call.kernel->pack) return;  // read as it is
  if (training_ && weight->trainable) {
    if (weight->scaled()) unsupported("a weight with a folded scale is not trainable");
    infos_.back().packed = call.kernel->packed_bytes(call.problem);
    packing_bytes_ = std::max(packing_bytes_, infos_.back().packed);
    return;
  }
  step.packed = weight->packed(*call.kernel, call.problem, form);
  if (!training_) weight->refresh(*step.packed, num_threads());
  step.weights = std::shared_ptr<const Buffer>(step.packed, &step.packed->memory);
  infos_.back().packed = step.weights->bytes();
  if (!training_) step.parameter = nullptr, step.packed = nullptr;  // the plan lives on what is packed, the caller's array may go
}

void Plan::check_vector(int t, int64_t size, const char* what) const {
  if (t >= 0 && (!is_total(t) || elements(tensor(t).dims) != size))
    shape_error(std::string(what) + " needs " + std::to_string(size) + " values, one for the batch, got " + text(tensor(t).dims));
}

int Plan::conv(int x, const std::shared_ptr<Parameter>& weight, Buffer bias, int residual, const ConvOptions& o, int out,
               const std::string& label, int live_bias) {
  const Dims in = tensor(x).dims;
  if (weight->element_bytes != element_bytes_) dtype_error("the weight's type is not the plan's");
  ConvProblem p = conv_problem(in, weight->shape, o);
  p.residual = residual >= 0, p.swapped = weight->filters_first();
  const Dims shape = {p.z, p.p, p.q, p.k};
  if (residual >= 0 && tensor(residual).dims != shape)
    shape_error("the residual " + text(tensor(residual).dims) + " is not of the result's shape " + text(shape));
  if (bias.bytes() && bias.bytes() != p.k * element_bytes_) shape_error("the bias needs " + std::to_string(p.k) + " values");
  check_vector(live_bias, p.k, "the bias");
  if (residual >= 0) roots_[tensor(residual).root].residual = true;
  const int y = target(out, shape);
  const int64_t taps = p.t * p.r * p.s * (p.c / p.groups);
  Info info{
      "conv", label, "", "", {}, {}, {}, (o.transposed ? elements(in) / p.c * p.k : elements(shape)) * taps, taps * p.k * element_bytes_,
      0,      0};
  Step step{{}, x, residual, y, -1, nullptr, bias.bytes() ? std::make_shared<const Buffer>(std::move(bias)) : nullptr};
  step.live_shift = live_bias;
  std::vector<const ConvKernel*> rows = o.algo.empty() ? heard(table_.Conv, bf16_) : table_.Conv;
  if (weight->scaled() && o.algo.empty())  // by packing alone
    rows.erase(std::remove_if(rows.begin(), rows.end(), [](const ConvKernel* k) { return !k->pack; }), rows.end());
  add_step(rows, p, std::move(step), std::move(info), o.algo);
  if (!record_ && weight->device_data.data) unsupported("the weight lies on a device, the plan runs on the CPU");
  if (record_) {
    steps_.back().parameter = weight;
    return y;
  }
  use_weight(steps_.back(), weight, Form::kForward);
  return y;
}

std::pair<int, int> Plan::pool(int x, PoolProblem p, int out, const std::string& label) {
  const Dims in = tensor(x).dims;
  p.d = in[0], p.h = in[1], p.w = in[2], p.c = in[3];
  if (p.z < 1 || p.p < 1 || p.q < 1) shape_error("pooling " + text(in) + " leaves no output: " + text({p.z, p.p, p.q, p.c}));
  if (elements(in) < 1) shape_error("pooling needs at least one pixel, got " + text(in));
  const Dims shape = {p.z, p.p, p.q, p.c};
  const int y = target(out, shape);
  const int index = p.indices ? new_tensor(shape, true) : -1;
  const char* op = p.kind == PoolKind::kMax ? "max_pool" : "avg_pool";
  p.bf16 = bf16_;
  add_step(heard(table_.Pool, bf16_), p, Step{{}, x, -1, y, index, nullptr, nullptr}, Info{op, label, "", "", {}, {}, {}, 0, 0, 0, 0});
  return {y, index};
}

int Plan::norm(int x, NormProblem p, Buffer scale, Buffer shift, const std::string& op, const std::string& label, int live_scale,
               int live_shift) {
  const Dims in = tensor(x).dims;
  p.d = in[0], p.h = in[1], p.w = in[2], p.c = in[3];
  for (const Buffer* b : {&scale, &shift})
    if (b->bytes() && b->bytes() != p.c * element_bytes_)
      shape_error(op + " of " + std::to_string(p.c) + " channels needs as many parameters");
  check_vector(live_scale, p.c, "the scale");
  check_vector(live_shift, p.c, "the shift");
  const int y = new_tensor(in, false, is_total(x));
  auto share = [](Buffer b) { return b.bytes() ? std::make_shared<const Buffer>(std::move(b)) : nullptr; };
  Step step{{}, x, -1, y, -1, share(std::move(scale)), share(std::move(shift))};
  step.live_scale = live_scale, step.live_shift = live_shift;
  add_step(table_.Norm, p, std::move(step), Info{op, label, "", "", {}, {}, {}, 0, 0, 0, 0});
  return y;
}

int Plan::map(int a, int b, MapKind kind, Activation act, const std::string& op, const std::string& label) {
  const Dims da = tensor(a).dims, db = b >= 0 ? tensor(b).dims : da;
  Dims shape;
  for (int i = 0; i < 4; ++i) {
    if (da[i] != db[i] && da[i] != 1 && db[i] != 1) shape_error(op + ": " + text(da) + " and " + text(db) + " do not broadcast");
    shape[i] = da[i] == 1 ? db[i] : da[i];
  }
  MapProblem p{shape[0], shape[1], shape[2], shape[3], da[0], da[1], da[2], da[3], db[0], db[1], db[2], db[3], kind, act, bf16_, 0, 0, 0};
  const int y = new_tensor(shape, false, is_total(a) && (b < 0 || is_total(b)));
  add_step(heard(table_.Map, bf16_), p, Step{{}, a, b, y, -1, nullptr, nullptr}, Info{op, label, "", "", {}, {}, {}, 0, 0, 0, 0});
  return y;
}

// A copy with the defaults of a plain one; `p.out` all zero means: the shape of x, not permuted.
int Plan::move(int x, int y, MoveProblem p, const std::string& op, const std::string& label) {
  const Dims in = tensor(x).dims;
  for (int i = 0; i < 4; ++i) p.in[i] = in[i];
  if (!p.out[0] && !p.out[1] && !p.out[2] && !p.out[3])
    for (int i = 0; i < 4; ++i) p.out[i] = in[i], p.perm[i] = i;
  add_step(table_.Move, p, Step{{}, x, -1, y, -1, nullptr, nullptr}, Info{op, label, "", "", {}, {}, {}, 0, 0, 0, 0});
  return y;
}

int Plan::concat(const std::vector<int>& xs, int axis, const std::string& label) {
  if (xs.empty() || axis < 0 || axis > 3) shape_error("concat needs tensors and an axis from 0 to 3");
  Dims shape = tensor(xs[0]).dims;
  shape[axis] = 0;
  for (int x : xs) {
    const Dims& d = tensor(x).dims;
    for (int i = 0; i < 4; ++i)
      if (i != axis && d[i] != shape[i])
        shape_error("concat: " + text(d) + " does not fit " + text(tensor(xs[0]).dims) + " along axis " + std::to_string(axis));
    shape[axis] += d[axis];
  }
  for (int x : xs)
    if (is_total(x) != is_total(xs[0])) shape_error("concat: either all tensors are totals or none");
  const int y = new_tensor(shape, false, is_total(xs[0]));
  const int64_t pixel = shape[3];
  const int64_t step[4] = {shape[1] * shape[2] * pixel, shape[2] * pixel, pixel, 1};
  // A slice along depth, height or width keeps y's row and depth strides, which a Tensor does not carry unless it is a whole number of slices:
  // so the outer dimensions are handled as one window per tensor with the strides of y.
  int64_t at = 0;
  for (int x : xs) {
    const Dims d = tensor(x).dims;
    if (axis == 3) {
      move(x, channel_slice(y, at, d[3]), {}, "concat", label);
    } else {
      // Fold what lies inside the axis into channels and what lies outside into width: (outer, axis * inner) rows.
      int64_t outer = 1, inner = 1;
      for (int i = 0; i < axis; ++i) outer *= d[i];
      for (int i = axis; i < 4; ++i) inner *= d[i];
      const int flat_x = reshape(x, {1, 1, outer, inner});
      const int flat_y = reshape(y, {1, 1, outer, elements(shape) / std::max<int64_t>(outer, 1)});
      if (inner) move(flat_x, channel_slice(flat_y, at * step[axis], inner), {}, "concat", label);
    }
    at += d[axis];
  }
  return y;
}

int Plan::pad(int x, const Dims& lo, const Dims& hi, Border border, double value, const std::string& label) {
  const Dims in = tensor(x).dims;
  MoveProblem p{};
  Dims shape;
  for (int i = 0; i < 4; ++i) {
    shape[i] = in[i] + lo[i] + hi[i];
    if (shape[i] < 0) shape_error("padding " + text(in) + " by " + text(lo) + " and " + text(hi) + " leaves nothing");
    if ((border == Border::kReflect && (lo[i] >= in[i] || hi[i] >= in[i]) && (lo[i] > 0 || hi[i] > 0)) ||
        (border == Border::kCircular && (lo[i] > in[i] || hi[i] > in[i])))
      shape_error("padding " + text(lo) + " and " + text(hi) + " is too large for " + text(in) + " in this mode");
    p.out[i] = shape[i], p.perm[i] = i, p.lo[i] = lo[i];
  }
  p.border = border, p.value = value;
  return move(x, new_tensor(shape, false, is_total(x)), p, "pad", label);
}

int Plan::transpose(int x, const std::array<int, 4>& perm, const std::string& label) {
  const Dims in = tensor(x).dims;
  MoveProblem p{};
  Dims shape;
  int seen = 0;
  for (int i = 0; i < 4; ++i) {
    if (perm[i] < 0 || perm[i] > 3) shape_error("a permutation has entries from 0 to 3");
    seen |= 1 << perm[i];
    p.perm[i] = perm[i], p.out[i] = shape[i] = in[perm[i]];
  }
  if (seen != 15) shape_error("a permutation names each dimension once");
  return move(x, new_tensor(shape, false, is_total(x)), p, "transpose", label);
}

int Plan::resize(int x, ResizeProblem p, const std::string& label) {
  const Dims in = tensor(x).dims;
  p.d = in[0], p.h = in[1], p.w = in[2], p.c = in[3];
  if (p.z < 1 || p.p < 1 || p.q < 1 || elements(in) < 1) shape_error("resize of " + text(in) + " to " + text({p.z, p.p, p.q, p.c}));
  const int y = new_tensor({p.z, p.p, p.q, p.c});
  add_step(table_.Resize, p, Step{{}, x, -1, y, -1, nullptr, nullptr}, Info{"resize", label, "", "", {}, {}, {}, 0, 0, 0, 0});
  return y;
}

void Plan::finish(const std::vector<int>& outputs) {
  if (finished_) unsupported("the plan is finished already");
  count_uses(outputs);
  outputs_ = outputs;
  if (bf16_ != Bf16::kOff) store_bf16();
  if (strips_ && steps_.size() > 1) {
    fuse_strips();
    count_uses(outputs);
  }
  if (bf16_ == Bf16::kOff && !lean_) spread_pixels();
  merge_residuals();
  plan_arena();
  block_ = steps_.size() <= 1 || training_ ? int64_t{1} << 40 : kBlockImages;
  finished_ = true;
}

View Plan::view(const Tensor& t, const std::vector<Place>& places) const {
  const Place& place = places[t.root];
  const int bytes = bytes_of(roots_[t.root]);
  if (place.pixel) return {place.base, place.image, place.depth, place.row, place.pixel};
  const int64_t row = t.dims[2] * t.pixel;
  return {place.base + t.offset * bytes, place.image, t.dims[1] * row, row, t.pixel};
}

namespace {

// A thread is worth waking for some ten microseconds of work.
constexpr double kWorthAThread = 10.0;

template <class K, class P, class A>
void launch(const K& kernel, const P& problem, const A& args, int64_t images, int threads, const Buffer& scratch) {
  const double worth = kernel.cost(problem) * static_cast<double>(images) / kWorthAThread;
  if (worth < threads) threads = worth < 1 ? 1 : static_cast<int>(worth);
  const int64_t bytes = (kernel.scratch_bytes(problem) + 63) / 64 * 64;
  parallel_ranges(kernel.tasks(problem, images), threads, [&](int thread, int64_t first, int64_t last) {
    kernel.run(problem, args, images, first, last, scratch.data() + thread * bytes);
  });
}

const void* data_or_null(const std::shared_ptr<const Buffer>& b) { return b ? b->data() : nullptr; }

}  // namespace

void Plan::execute(const Step& step, const std::vector<Place>& places, int64_t images, int threads, Lease& memory) const {
  const Buffer& scratch = memory.scratch;
  if (const auto* training = std::get_if<7>(&step.call)) {
    std::vector<View> views;
    for (const auto* ids : {&(*training)->reads, &(*training)->writes})
      for (int t : *ids) views.push_back(t >= 0 ? view(tensors_[t], places) : View{});
    return (*training)->run(views, images, threads, scratch.data(), memory.shared.data());
  }
  if (is_total(step.y)) images = 1;
  if (step.packed) step.parameter->refresh(*step.packed, threads);
  const auto vector = [&](int live, const std::shared_ptr<const Buffer>& copy) {
    return live >= 0 ? view(tensors_[live], places).data : data_or_null(copy);
  };
  const View x = view(tensors_[step.x], places), y = view(tensors_[step.y], places);
  const View none{};
  const View x2 = step.x2 >= 0 ? view(tensors_[step.x2], places) : none;
  switch (step.call.index()) {
    case 0: {
      const auto& c = *std::get_if<0>(&step.call);
      const void* weights = nullptr;
      if (step.weights) {
        weights = step.weights->data();
      } else if (!c.kernel->pack) {
        // Rows that read [c][k], or of `swapped` weights [k][c].
        const bool forward = (step.form == Form::kForward) != (c.problem.swapped != 0);
        weights = step.parameter->in_order(forward ? Form::kForward : Form::kSwapped, c.problem.groups, memory.room, threads);
      } else {
        step.parameter->pack(*c.kernel, c.problem, step.form, memory.packing.data(), memory.room, threads);
        weights = memory.packing.data();
      }
      launch(*c.kernel, c.problem, ConvArgs{x, y, x2, weights, vector(step.live_shift, step.shift)}, images, threads, scratch);
      break;
    }
    case 1: {
      const auto& c = *std::get_if<1>(&step.call);
      launch(*c.kernel, c.problem, PoolArgs{x, y, step.index >= 0 ? view(tensors_[step.index], places) : none}, images, threads, scratch);
      break;
    }
    case 2: {
      const auto& c = *std::get_if<2>(&step.call);
      launch(*c.kernel, c.problem, NormArgs{x, y, vector(step.live_scale, step.weights), vector(step.live_shift, step.shift)}, images,
             threads, scratch);
      break;
    }
    case 3: {
      const auto& c = *std::get_if<3>(&step.call);
      launch(*c.kernel, c.problem, MapArgs{x, x2, y}, images, threads, scratch);
      break;
    }
    case 4: {
      const auto& c = *std::get_if<4>(&step.call);
      launch(*c.kernel, c.problem, MoveArgs{x, y, 1, 1}, images, threads, scratch);
      break;
    }
    case 6: run_strips(**std::get_if<6>(&step.call), places, images, threads, memory); break;
    default: {
      const auto& c = *std::get_if<5>(&step.call);
      launch(*c.kernel, c.problem, ResizeArgs{x, y}, images, threads, scratch);
    }
  }
}

namespace {

MoveProblem plain_copy(const Dims& dims) {
  MoveProblem p{};
  for (int i = 0; i < 4; ++i) p.in[i] = p.out[i] = dims[i], p.perm[i] = i;
  return p;
}

void copy(const std::vector<const MoveKernel*>& rows, const Dims& dims, const MoveArgs& args, int64_t images, int threads) {
  const MoveProblem p = plain_copy(dims);
  const MoveKernel& kernel = *select(rows, p).kernel;
  const Buffer scratch((kernel.scratch_bytes(p) + 63) / 64 * 64 * threads);
  launch(kernel, p, args, images, threads, scratch);
}

}  // namespace

void Plan::fetch(const External& from, int t, const Place& to, int64_t images, int threads) const {
  const Dims& d = tensor(t).dims;
  const View x{from.data, from.image, from.depth, from.row, from.pixel};
  const View y{to.base, to.image, d[1] * d[2] * d[3], d[2] * d[3], d[3]};
  copy(table_.Move, d, MoveArgs{x, y, from.channel, 1}, images, threads);
}

void Plan::deliver(int t, const std::vector<Place>& places, void* to, int64_t first, int64_t images, bool channels_first,
                   int threads) const {
  const Tensor& source = tensor(t);
  const Dims& d = source.dims;
  const int64_t size = elements(d), plane = d[0] * d[1] * d[2];
  const View x = view(source, places);
  if (roots_[source.root].is_index) {  // int64: rare and small, a plain loop
    for (int64_t n = 0; n < images; ++n)
      for (int64_t i = 0; i < plane; ++i) {
        const int64_t* from = static_cast<const int64_t*>(x.data) + n * x.image + i * x.pixel;
        int64_t* out = static_cast<int64_t*>(to) + (first + n) * size;
        for (int64_t c = 0; c < d[3]; ++c) out[channels_first ? c * plane + i : i * d[3] + c] = from[c];
      }
    return;
  }
  char* out = static_cast<char*>(to) + first * size * element_bytes_;
  const int64_t pixel = channels_first ? 1 : d[3];
  const View y{out, size, d[1] * d[2] * pixel, d[2] * pixel, pixel};
  copy(table_.Move, d, MoveArgs{x, y, 1, channels_first ? plane : 1}, images, threads);
}

std::unique_ptr<Plan::Lease> Plan::lease(int64_t images, int threads) {
  std::unique_ptr<Lease> l;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!leases_.empty()) l = std::move(leases_.back()), leases_.pop_back();
  }
  if (!l) l = std::make_unique<Lease>(), l->staging.resize(inputs_.size());
  const int64_t arena = multiply(multiply(arena_elements_, images) + total_elements_, element_bytes_),
                scratch = (scratch_bytes_ + 63) / 64 * 64 * threads;
  if (l->arena.bytes() < arena) l->arena = Buffer(), l->arena = Buffer(arena);
  if (l->scratch.bytes() < scratch) l->scratch = Buffer(), l->scratch = Buffer(scratch);
  if (l->packing.bytes() < packing_bytes_) l->packing = Recycled::instance().take(packing_bytes_);
  int64_t shared = 0;
  for (const Step& step : steps_)
    if (const auto* training = std::get_if<7>(&step.call)) shared = std::max(shared, (*training)->shared_bytes(images));
  if (l->shared.bytes() < shared) l->shared = Recycled::instance().take(shared);
  return l;
}

void Plan::give_back(std::unique_ptr<Lease> l) {
  // What lives within a step serves all plans: layers that are a plan each, as PyTorch's, would add up.
  for (Buffer* b : {&l->packing, &l->room, &l->shared})
    if (b->bytes()) Recycled::instance().give_back(std::move(*b));
  const std::lock_guard<std::mutex> lock(mutex_);
  leases_.push_back(std::move(l));
}

void Plan::run(int64_t n, const std::vector<External>& inputs, const std::vector<void*>& outputs, bool channels_first, int threads,
               std::vector<double>* seconds) {
  if (!finished_) unsupported("call finish() before run()");
  if (record_) unsupported("a recorded plan is run by a device");
  if (inputs.size() != inputs_.size() || outputs.size() != outputs_.size())
    shape_error("the number of inputs or outputs does not fit the plan");
  if (n == 0) {
    for (size_t i = 0; i < outputs_.size(); ++i)  // the sum over no images
      if (is_total(outputs_[i])) std::memset(outputs[i], 0, static_cast<size_t>(elements(dims(outputs_[i])) * element_bytes_));
    return;
  }
  const int64_t block = std::min(n, block_);
  std::unique_ptr<Lease> memory = lease(block, threads);
  std::vector<Place> places(roots_.size());
  // An output that owns a whole root of the arena is written in place by the step that makes it.
  std::vector<bool> direct(outputs_.size(), false);
  std::vector<int> owner(roots_.size(), -1);
  for (size_t i = 0; i < outputs_.size(); ++i) {
    const Tensor& t = tensor(outputs_[i]);
    const Root& root = roots_[t.root];
    if ((!channels_first || root.total) && !root.is_input && t.offset == 0 && t.pixel == t.dims[3] && root.size == elements(t.dims) &&
        owner[t.root] < 0)
      direct[i] = true, owner[t.root] = static_cast<int>(i);
  }
  if (seconds) seconds->assign(steps_.size(), 0);
  for (int64_t first = 0; first < n; first += block) {
    const int64_t images = std::min(block, n - first);
    for (size_t r = 0; r < roots_.size(); ++r) {
      const Root& root = roots_[r];
      if (root.parameter) places[r] = {static_cast<char*>(const_cast<void*>(root.parameter->data())), 0};
      if (root.is_input) continue;
      if (root.total)
        places[r] = {owner[r] >= 0 ? static_cast<char*>(outputs[owner[r]])
                                   : memory->arena.data() + (arena_elements_ * images + root.offset) * element_bytes_,
                     0};
      else if (owner[r] >= 0) places[r] = {static_cast<char*>(outputs[owner[r]]) + first * root.size * bytes_of(root), root.size};
      else places[r] = {memory->arena.data() + root.offset * images * element_bytes_, root.size};
    }
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Tensor& t = tensor(inputs_[i]);
      const External& e = inputs[i];
      const Dims& d = t.dims;
      const bool total = roots_[t.root].total;
      char* base = static_cast<char*>(e.data) + first * e.image * (roots_[t.root].is_index ? 8 : element_bytes_);
      const bool dense = e.channel == 1 && e.pixel == d[3] && e.row == d[2] * d[3] && e.depth == d[1] * d[2] * d[3];
      if (dense) {
        places[t.root] = {base, total ? 0 : e.image};
        continue;
      }
      if (e.channel == 1 && e.pixel > 0 && !roots_[t.root].aliases && !roots_[t.root].residual) {
        places[t.root] = {base, total ? 0 : e.image, e.depth, e.row, e.pixel};
        continue;
      }
      if (roots_[t.root].is_index) unsupported("an input of positions must be contiguous");
      const int64_t bytes = multiply(multiply(roots_[t.root].size, images), element_bytes_);
      if (memory->staging[i].bytes() < bytes) memory->staging[i] = Buffer(), memory->staging[i] = Buffer(bytes);
      places[t.root] = {memory->staging[i].data(), total ? 0 : roots_[t.root].size};
      fetch({base, e.image, e.depth, e.row, e.pixel, e.channel}, inputs_[i], places[t.root], total ? 1 : images, threads);
    }
    for (size_t i = 0; i < steps_.size(); ++i) {
      const auto start = std::chrono::steady_clock::now();
      execute(steps_[i], places, images, threads, *memory);
      if (seconds) (*seconds)[i] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    for (size_t i = 0; i < outputs_.size(); ++i)
      if (!direct[i]) {
        const bool total = is_total(outputs_[i]);
        deliver(outputs_[i], places, outputs[i], total ? 0 : first, total ? 1 : images, channels_first && !total, threads);
      }
  }
  give_back(std::move(memory));
}

}  // namespace ck
