// plan_train.cpp: the steps of a backward pass, and weights that change between runs.
//
// A gradient is one row of a family of its own (conv_weight, pool_back, ...) or, where the forward kernels can do it, an ordinary step: the gradient
// of a convolution's input is a convolution with other weights. Rows may run in phases, see core/kernel.h.
#include <algorithm>
#include <limits>

#include "core/activation.h"
#include "core/parallel.h"
#include "core/recycled.h"
#include "plan/plan.h"
#include "plan/reorder.h"

namespace ck {
namespace {

std::string cost_text(double us) { return "cheapest by the cost model: " + std::to_string(us).substr(0, 8) + " us an image and core"; }

}  // namespace

const void* Parameter::in_order(Form form, int64_t groups, Buffer& room, int threads) const {
  const int64_t taps = shape[0] * shape[1] * shape[2], c = shape[3], k = shape[4] / groups;
  const Layout at = layout_ ? *layout_ : Layout{c * shape[4], shape[4], 1, k};
  const bool forward = form == Form::kForward, flip = form == Form::kSwappedFlipped && taps > 1;
  const int64_t rows = forward ? c : k, columns = forward ? k : c, row = groups * columns;
  const std::array<Axis4, 4> axes = {Axis4{taps, flip ? -at.tap : at.tap, rows * row}, Axis4{rows, forward ? at.channel : at.filter, row},
                                     Axis4{groups, at.group, columns}, Axis4{columns, forward ? at.filter : at.channel, 1}};
  if (std::all_of(axes.begin(), axes.end(), [](const Axis4& axis) { return axis.size == 1 || axis.from == axis.to; })) return data_;
  const int64_t bytes = taps * rows * row * element_bytes;
  if (room.bytes() < bytes) room = Buffer(), room = Recycled::instance().take(bytes);
  const char* first = static_cast<const char*>(data_) + (flip ? (taps - 1) * at.tap * element_bytes : 0);
  reorder(axes, first, room.data(), element_bytes, threads);
  return room.data();
}

void Parameter::pack(const ConvKernel& kernel, const ConvProblem& problem, Form form, void* to, Buffer& room, int threads) const {
  if (shape[0] * shape[1] * shape[2] * shape[3] * shape[4] < 65536) threads = 1;  // not worth waking the others
  if (form != Form::kForward && kernel.pack_swapped && !layout_) {
    parallel_ranges(kernel.pack_tasks(problem), threads, [&](int, int64_t first, int64_t last) {
      kernel.pack_swapped(problem, data_, form == Form::kSwappedFlipped, to, first, last);
    });
    return;
  }
  const void* const weights = in_order(form, problem.groups, room, threads);
  const void* scale = scale_.bytes() ? scale_.data() : nullptr;
  parallel_ranges(kernel.pack_tasks(problem), threads,
                  [&](int, int64_t first, int64_t last) { kernel.pack(problem, weights, scale, to, first, last); });
}

void Parameter::refresh(Packed& packed, int threads) {
  if (packed.version == version_) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  const int64_t version = version_;
  if (packed.version == version) return;
  Buffer room;
  pack(*packed.kernel, packed.problem, packed.form, packed.memory.data(), room, threads);
  if (room.bytes()) Recycled::instance().give_back(std::move(room));
  packed.version = version;
}

// `args` makes the row's arguments from the views of `reads`, then `writes`.
template <class K, class P, class F>
void Plan::add_training(const std::vector<const K*>& rows, const P& problem, std::vector<int> reads, std::vector<int> writes, Info info,
                        F args, const std::string& forced) {
  if (finished_) unsupported("a finished plan takes no more steps");
  if (!training_) unsupported(info.op + ": only a plan made with training=True has totals and backward steps");
  const Choice<K> choice = select(rows, problem, forced);
  const K& kernel = *choice.kernel;
  info.kernel = kernel.name, info.why = forced.empty() ? cost_text(choice.cost) : "forced", info.refused = choice.refused;
  info.workspace = kernel.scratch_bytes(problem);
  scratch_bytes_ = std::max(scratch_bytes_, info.workspace);
  info.in = tensor(reads[0]).dims, info.out = tensor(writes[0]).dims;
  for (const auto* ids : {&reads, &writes})
    for (int t : *ids)
      if (t >= 0) info.bytes += element_bytes_ * elements(tensor(t).dims);
  auto training = std::make_shared<Training>();
  training->shared_bytes = [&kernel, problem](int64_t images) { return kernel.shared_bytes(problem, images); };
  training->run = [&kernel, problem, args](const std::vector<View>& views, int64_t images, int threads, char* scratch, char* shared) {
    constexpr double kWorthAThread = 10.0;  // microseconds, as for the other steps
    const double worth = kernel.cost(problem) * static_cast<double>(images) / kWorthAThread;
    if (worth < threads) threads = worth < 1 ? 1 : static_cast<int>(worth);
    const auto a = args(views);
    const int64_t bytes = (kernel.scratch_bytes(problem) + 63) / 64 * 64;
    const int phases = static_cast<int>(kernel.phases(problem, images));
    for (int phase = 0; phase < phases; ++phase)
      parallel_ranges(kernel.tasks(problem, images, phase), threads, [&](int thread, int64_t first, int64_t last) {
        kernel.run(problem, a, images, phase, first, last, scratch + thread * bytes, shared);
      });
  };
  training->reads = std::move(reads), training->writes = std::move(writes);
  Step step{std::shared_ptr<const Training>(std::move(training)), -1, -1, -1, -1, nullptr, nullptr};
  const int index = static_cast<int>(steps_.size());
  each_tensor(step, [&](int t) { use(t, index); });
  steps_.push_back(std::move(step));
  infos_.push_back(std::move(info));
}

namespace {

// What a transposed convolution was told to add to its output, as it shows in the gradient.
Triple output_padding(const Dims& in, const Dims& out, const std::array<int64_t, 5>& w, const Plan::ConvOptions& o) {
  Triple extra{};
  for (int i = 0; i < 3; ++i) {
    extra[i] = out[i] - ((in[i] - 1) * o.stride[i] - o.pad_lo[i] - o.pad_hi[i] + o.dilation[i] * (w[i] - 1) + 1);
    if (extra[i] < 0 || extra[i] >= std::max<int64_t>({1, o.stride[i], o.dilation[i]}))
      shape_error("the gradient " + text(out) + " is not of the shape of a forward result of " + text(in));
  }
  return extra;
}

Plan::Info named(const char* op, const std::string& label, int64_t macs = 0) { return {op, label, "", "", {}, {}, {}, macs, 0, 0, 0}; }

}  // namespace

int Plan::total_input(const Dims& dims) {
  const int t = input(dims);
  roots_.back().total = true;
  return t;
}

int Plan::index_input(const Dims& dims) {
  const int t = input(dims);
  roots_.back().is_index = true;
  return t;
}

int Plan::parameter(const std::shared_ptr<Parameter>& p) {
  if (!training_) unsupported("only a plan made with training=True reads parameters when it runs");
  if (p->element_bytes != element_bytes_) dtype_error("the parameter's type is not the plan's");
  if (p->scaled() || p->laid_out()) unsupported("a weight with a folded scale or a layout of its own cannot be read as it is");
  const auto& s = p->shape;
  const int t = new_tensor({s[0], s[1], s[2], s[3] * s[4]}, false, true);
  roots_.back().is_input = true;
  roots_.back().parameter = p;
  return t;
}

int Plan::conv_backward_data(int dy, const std::shared_ptr<Parameter>& weight, const Dims& in, int add, const ConvOptions& options,
                             const std::string& label) {
  if (weight->element_bytes != element_bytes_) dtype_error("the weight's type is not the plan's");
  const Dims out = tensor(dy).dims;
  ConvOptions o = options;
  if (o.transposed) o.output_padding = output_padding(in, out, weight->shape, o);
  const ConvProblem f = conv_problem(in, weight->shape, o);
  const Dims want = {f.z, f.p, f.q, f.k};
  if (out != want) shape_error("the gradient " + text(out) + " is not of the shape of the forward result " + text(want));
  if (add >= 0 && tensor(add).dims != in)
    shape_error("what is added " + text(tensor(add).dims) + " is not of the input's shape " + text(in));
  if (add >= 0) roots_[tensor(add).root].residual = true;
  ConvProblem p = f;
  p.d = out[0], p.h = out[1], p.w = out[2], p.c = out[3];
  p.z = in[0], p.p = in[1], p.q = in[2], p.k = in[3];
  p.act = {Act::kNone, 0, 0}, p.residual = add >= 0, p.transposed = !f.transposed, p.swapped = !weight->filters_first();
  Form form = Form::kSwapped;
  if (p.transposed && p.stride_d == 1 && p.stride_h == 1 && p.stride_w == 1) {
    // With stride 1 the transposed convolution is an ordinary one with the taps in reverse order.
    const int64_t lo[3] = {p.dil_d * (p.t - 1) - p.pad_d_lo, p.dil_h * (p.r - 1) - p.pad_h_lo, p.dil_w * (p.s - 1) - p.pad_w_lo};
    const int64_t hi[3] = {p.dil_d * (p.t - 1) - p.pad_d_hi, p.dil_h * (p.r - 1) - p.pad_h_hi, p.dil_w * (p.s - 1) - p.pad_w_hi};
    ConvProblem flipped = p;
    flipped.transposed = 0;
    flipped.pad_d_lo = lo[0], flipped.pad_h_lo = lo[1], flipped.pad_w_lo = lo[2];
    flipped.pad_d_hi = hi[0], flipped.pad_h_hi = hi[1], flipped.pad_w_hi = hi[2];
    const auto cost = [&](const ConvProblem& problem) {
      try {
        return select(table_.Conv, problem, o.algo).cost;
      } catch (const Error&) {  // the forced row takes the other form only
        return std::numeric_limits<double>::infinity();
      }
    };
    if (std::min({lo[0], lo[1], lo[2], hi[0], hi[1], hi[2]}) >= 0 && cost(flipped) <= cost(p)) p = flipped, form = Form::kSwappedFlipped;
  }
  const int64_t taps = p.t * p.r * p.s;
  const int64_t macs = (f.transposed ? elements(in) * (f.k / f.groups) : elements(out) * (f.c / f.groups)) * taps;
  Info info = named("conv_backward_data", label, macs);
  info.bytes = taps * weight->shape[3] * weight->shape[4] * element_bytes_;
  const int dx = new_tensor(in);
  add_step(table_.Conv, p, Step{{}, dy, add, dx, -1, nullptr, nullptr}, std::move(info), o.algo);
  use_weight(steps_.back(), weight, form);
  return dx;
}

int Plan::conv_backward_weight(int x, int dy, const Triple& window, const ConvOptions& options, const std::string& label) {
  const Dims in = tensor(x).dims, out = tensor(dy).dims;
  if (options.groups < 1 || in[3] % options.groups || out[3] % options.groups)
    shape_error("groups=" + std::to_string(options.groups) + " must divide the channels " + std::to_string(in[3]) + " and the filters " +
                std::to_string(out[3]));
  ConvOptions o = options;
  const std::array<int64_t, 5> shape = {window[0], window[1], window[2], in[3] / o.groups, out[3]};
  if (o.transposed) o.output_padding = output_padding(in, out, shape, o);
  ConvProblem p = conv_problem(in, shape, o);
  p.act = {Act::kNone, 0, 0};
  const Dims want = {p.z, p.p, p.q, p.k};
  if (out != want) shape_error("the gradient " + text(out) + " is not of the shape of the forward result " + text(want));
  const int64_t taps = p.t * p.r * p.s, c_group = p.c / p.groups;
  const int dw = new_tensor({p.t, p.r, p.s, c_group * p.k}, false, true);
  const int64_t macs = (p.transposed ? elements(in) * (p.k / p.groups) : elements(out) * c_group) * taps;
  add_training(
      table_.ConvWeight, p, {x, dy}, {dw}, named("conv_backward_weight", label, macs),
      [](const std::vector<View>& v) { return ConvWeightArgs{v[0], v[1], v[2].data}; }, o.algo);
  return dw;
}

int Plan::sum(int a, int times, const Dims& shape, bool total, double factor, bool mean, const std::string& label) {
  const Dims in = tensor(a).dims;
  for (int i = 0; i < 4; ++i)
    if (shape[i] != 1 && shape[i] != in[i]) shape_error("the sum of " + text(in) + " cannot have the shape " + text(shape));
  if (times >= 0 && tensor(times).dims != in) shape_error("the factors " + text(in) + " and " + text(tensor(times).dims) + " differ");
  if (is_total(a) && (times < 0 || is_total(times)) && !total) unsupported("the sum of a total is a total");
  if (is_total(a) && (times < 0 || is_total(times)) && elements(in) != elements(shape))
    unsupported("the sum within a total: reduce before summing over the batch");
  const SumProblem p{in[0], in[1], in[2], in[3], shape[0], shape[1], shape[2], shape[3], total, times >= 0, mean, factor};
  const int y = new_tensor(shape, false, total);
  add_training(table_.Sum, p, {a, times}, {y}, named("sum", label), [](const std::vector<View>& v) { return SumArgs{v[0], v[1], v[2]}; });
  return y;
}

int Plan::pool_backward(int dy, int index, const Dims& in, PoolProblem p, const std::string& label) {
  const Dims out = tensor(dy).dims, want = {p.z, p.p, p.q, in[3]};
  p.d = in[0], p.h = in[1], p.w = in[2], p.c = in[3];
  if (out != want) shape_error("the gradient " + text(out) + " is not of the shape of the forward result " + text(want));
  if (elements(in) < 1 || elements(want) < 1) shape_error("pooling needs at least one pixel, got " + text(in) + " and " + text(want));
  if (p.kind == PoolKind::kMax && (index < 0 || !is_index(index) || tensor(index).dims != out))
    shape_error("the gradient of max pooling needs the positions of the maxima, of the shape " + text(out));
  const int dx = new_tensor(in);
  add_training(table_.PoolBack, p, {dy, p.kind == PoolKind::kMax ? index : -1}, {dx},
               named(p.kind == PoolKind::kMax ? "max_pool_backward" : "avg_pool_backward", label),
               [](const std::vector<View>& v) { return PoolBackArgs{v[0], v[1], v[2]}; });
  return dx;
}

namespace {

void check_batch_norm_activation(const Activation& act) {
  if (act.kind != Act::kNone && act.kind != Act::kClamp) unsupported("batch norm is fused with clamps (ReLU) only");
}

}  // namespace

Plan::BatchNorm Plan::batch_norm_train(int x, int gamma, int beta, int residual, double eps, Activation act, const std::string& label) {
  const Dims in = tensor(x).dims;
  check_batch_norm_activation(act);
  check_vector(gamma, in[3], "gamma");
  check_vector(beta, in[3], "beta");
  if (residual >= 0 && tensor(residual).dims != in)
    shape_error("the residual " + text(tensor(residual).dims) + " is not of the shape " + text(in));
  const BatchNormProblem p{in[0], in[1], in[2], in[3], 0, residual >= 0, eps, act};
  const int y = new_tensor(in), mean = new_tensor({1, 1, 1, in[3]}, false, true), var = new_tensor({1, 1, 1, in[3]}, false, true);
  add_training(table_.BatchNorm, p, {x, gamma, beta, residual}, {y, mean, var}, named("batch_norm", label), [](const std::vector<View>& v) {
    return BatchNormArgs{v[0], View{}, v[3], v[1].data, v[2].data, v[5].data, v[6].data, v[4], nullptr, nullptr};
  });
  return {y, mean, var};
}

Plan::NormGrad Plan::batch_norm_backward(int dy, int x, int mean, int var, int gamma, int beta, double eps, Activation act,
                                         const std::string& label) {
  const Dims in = tensor(x).dims;
  check_batch_norm_activation(act);
  if (tensor(dy).dims != in) shape_error("the gradient " + text(tensor(dy).dims) + " is not of the shape " + text(in));
  if (mean < 0 || var < 0) shape_error("the gradient of batch norm needs mean and variance");
  check_vector(mean, in[3], "the mean");
  check_vector(var, in[3], "the variance");
  check_vector(gamma, in[3], "gamma");
  check_vector(beta, in[3], "beta");
  const BatchNormProblem p{in[0], in[1], in[2], in[3], 1, 0, eps, act};
  const int dx = new_tensor(in), dgamma = new_tensor({1, 1, 1, in[3]}, false, true), dbeta = new_tensor({1, 1, 1, in[3]}, false, true);
  add_training(table_.BatchNorm, p, {dy, x, mean, var, gamma, beta}, {dx, dgamma, dbeta}, named("batch_norm_backward", label),
               [](const std::vector<View>& v) {
                 return BatchNormArgs{v[1], v[0], View{}, v[4].data, v[5].data, v[2].data, v[3].data, v[6], v[7].data, v[8].data};
               });
  return {dx, dgamma, dbeta};
}

Plan::NormGrad Plan::norm_backward(int dy, int saved, NormProblem p, int scale, const std::string& op, const std::string& label) {
  const Dims in = tensor(saved).dims;
  if (tensor(dy).dims != in) shape_error(op + ": the gradient " + text(tensor(dy).dims) + " is not of the shape " + text(in));
  check_vector(scale, in[3], "gamma");
  p.d = in[0], p.h = in[1], p.w = in[2], p.c = in[3];
  const int dx = new_tensor(in);
  int dscale = -1, dshift = -1;
  if (p.kind == NormKind::kLayerNorm)
    dscale = new_tensor({1, 1, 1, in[3]}, false, true), dshift = new_tensor({1, 1, 1, in[3]}, false, true);
  add_training(table_.NormBack, p, {dy, saved, scale}, {dx, dscale, dshift}, named(op.c_str(), label),
               [](const std::vector<View>& v) { return NormBackArgs{v[0], v[1], v[2].data, v[3], v[4].data, v[5].data}; });
  return {dx, dscale, dshift};
}

Plan::NormGrad Plan::scale_shift_backward(int dy, int x, int scale, const std::string& label) {
  const Dims in = tensor(x).dims, vector = {1, 1, 1, in[3]};
  check_vector(scale, in[3], "the scale");
  return {scale >= 0 ? map(dy, scale, MapKind::kMul, {Act::kNone, 0, 0}, "mul", label) : dy, sum(dy, x, vector, true, 1, false, label),
          sum(dy, -1, vector, true, 1, false, label)};
}

int Plan::activation_backward(int dy, int saved, Activation act, const std::string& label) {
  const Dims in = tensor(dy).dims;
  if (tensor(saved).dims != in) shape_error("the gradient " + text(in) + " is not of the shape " + text(tensor(saved).dims));
  MapBackProblem p{in[0], in[1], in[2], in[3], in[0], in[1], in[2], in[3], in[0], in[1], in[2], in[3], MapBackKind::kActivation, 0, act};
  p.from_output = slope_from_output(act);
  const int dx = new_tensor(in);
  add_training(table_.MapBack, p, {dy, saved}, {dx}, named("activation_backward", label),
               [](const std::vector<View>& v) { return MapBackArgs{v[0], v[1], View{}, v[2]}; });
  return dx;
}

std::pair<int, int> Plan::binary_backward(int dy, int a, int b, MapKind kind, bool need_a, bool need_b, const std::string& label) {
  const Activation none{Act::kNone, 0, 0};
  const Dims in = tensor(dy).dims, da = tensor(a).dims, db = tensor(b).dims;
  for (int i = 0; i < 4; ++i)
    if ((da[i] == 1 ? db[i] : da[i]) != in[i] || (db[i] != 1 && db[i] != in[i]))
      shape_error("the gradient " + text(in) + " is not of the shape of " + text(da) + " and " + text(db));
  const auto multiply = [&](int x, int y) { return map(x, y, MapKind::kMul, none, "mul", label); };
  const auto divide = [&](int x, int y) { return map(x, y, MapKind::kDiv, none, "div", label); };
  // What an operand repeats is summed, times the factor.
  const auto reduce = [&](int g, int operand, double factor) {
    const Dims& shape = tensor(operand).dims;
    const bool total = is_total(operand) && !is_total(g);
    return shape == in && !total && factor == 1 ? g : sum(g, -1, shape, is_total(operand), factor, false, label);
  };
  const auto winner = [&](int x, int y) {
    const Dims dx = tensor(x).dims, dims = tensor(y).dims;
    const MapBackProblem p{in[0],
                           in[1],
                           in[2],
                           in[3],
                           dx[0],
                           dx[1],
                           dx[2],
                           dx[3],
                           dims[0],
                           dims[1],
                           dims[2],
                           dims[3],
                           kind == MapKind::kMax ? MapBackKind::kMax : MapBackKind::kMin,
                           0,
                           none};
    const int g = new_tensor(in);
    add_training(table_.MapBack, p, {dy, x, y}, {g}, named("binary_backward", label),
                 [](const std::vector<View>& v) { return MapBackArgs{v[0], v[1], v[2], v[3]}; });
    return g;
  };
  int ga = -1, gb = -1;
  switch (kind) {
    case MapKind::kAdd:
    case MapKind::kSub:
      if (need_a) ga = reduce(dy, a, 1);
      if (need_b) gb = reduce(dy, b, kind == MapKind::kAdd ? 1 : -1);
      break;
    case MapKind::kMul:
      if (need_a) ga = reduce(multiply(dy, b), a, 1);
      if (need_b) gb = reduce(multiply(dy, a), b, 1);
      break;
    case MapKind::kDiv: {
      const int over = divide(dy, b);
      if (need_a) ga = reduce(over, a, 1);
      if (need_b) gb = reduce(divide(multiply(over, a), b), b, -1);
      break;
    }
    case MapKind::kMax:
    case MapKind::kMin:
      if (need_a) ga = reduce(winner(a, b), a, 1);
      if (need_b) gb = reduce(winner(b, a), b, 1);
      break;
    case MapKind::kUnary: unsupported("a unary operator has one operand");
  }
  return {ga, gb};
}

int Plan::dropout(int x, int step, double rate, uint64_t seed, bool per_image, const std::string& label) {
  const Dims in = tensor(x).dims;
  if (!(rate >= 0 && rate <= 1)) shape_error("the rate of a dropout lies between 0 and 1, got " + std::to_string(rate));
  check_vector(step, 1, "the step of a dropout");
  const DropoutProblem p{in[0], in[1], in[2], in[3], rate, seed, per_image};
  const int y = new_tensor(in);
  add_training(table_.Dropout, p, {x, step}, {y}, named("dropout", label),
               [](const std::vector<View>& v) { return DropoutArgs{v[0], v[2], v[1].data}; });
  return y;
}

std::pair<int, int> Plan::loss(int x, int target, int weight, LossProblem p, const std::string& label) {
  const Dims in = tensor(x).dims, pixel = {in[0], in[1], in[2], 1};
  const Dims want = p.kind == LossKind::kSparse ? pixel : in;
  if (in[3] < 1) shape_error("a loss needs at least one channel");
  if (tensor(target).dims != want)
    shape_error("the labels " + text(tensor(target).dims) + " of a prediction " + text(in) + " need the shape " + text(want));
  if (weight >= 0 && tensor(weight).dims != pixel)
    shape_error("the weights " + text(tensor(weight).dims) + " need the shape " + text(pixel));
  p.d = in[0], p.h = in[1], p.w = in[2], p.c = in[3], p.weighted = weight >= 0;
  const int loss = new_tensor(pixel), dx = new_tensor(in);
  add_training(table_.Loss, p, {x, target, weight}, {loss, dx}, named("loss", label),
               [](const std::vector<View>& v) { return LossArgs{v[0], v[1], v[2], v[3], v[4]}; });
  return {loss, dx};
}

int Plan::pad_backward(int dy, const Dims& in, const Dims& lo, const Dims& hi, Border border, const std::string& label) {
  const Dims out = tensor(dy).dims;
  MoveProblem p{};
  Dims want, back_lo, back_hi;
  for (int i = 0; i < 4; ++i) {
    want[i] = in[i] + lo[i] + hi[i], back_lo[i] = -lo[i], back_hi[i] = -hi[i];
    p.in[i] = in[i], p.out[i] = out[i], p.perm[i] = i, p.lo[i] = lo[i];
  }
  if (out != want) shape_error("the gradient " + text(out) + " is not of the shape of the forward result " + text(want));
  if (border == Border::kConstant) return pad(dy, back_lo, back_hi, border, 0, label);
  p.border = border;
  const int dx = new_tensor(in);
  add_training(table_.MoveBack, p, {dy}, {dx}, named("pad_backward", label),
               [](const std::vector<View>& v) { return MoveBackArgs{v[0], v[1]}; });
  return dx;
}

int Plan::resize_backward(int dy, const Dims& in, ResizeProblem p, const std::string& label) {
  const Dims out = tensor(dy).dims, want = {p.z, p.p, p.q, in[3]};
  p.d = in[0], p.h = in[1], p.w = in[2], p.c = in[3];
  if (out != want) shape_error("the gradient " + text(out) + " is not of the shape of the forward result " + text(want));
  if (elements(in) < 1) shape_error("resize of " + text(in));
  const int dx = new_tensor(in);
  add_training(table_.ResizeBack, p, {dy}, {dx}, named("resize_backward", label),
               [](const std::vector<View>& v) { return ResizeBackArgs{v[0], v[1]}; });
  return dx;
}

}  // namespace ck
