// plan.cpp: see plan.h.
#include "cuda/plan.h"

#include <algorithm>
#include <cstring>

#include "plan/layout.h"

namespace ck::cuda {
namespace {

constexpr int64_t kAlign = 256;
constexpr size_t kRecorded = 16;  // calls that are remembered; each with a graph keeps its arena ...
constexpr int64_t kStale = 64;    // after so many runs without it a graph may go
constexpr int64_t kHeld = 8;      // ... and all together one part in so many of the device's memory

int64_t rounded(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

int64_t elements(const int64_t (&dims)[4]) { return dims[0] * dims[1] * dims[2] * dims[3]; }

Memory upload(int device, const void* data, int64_t bytes) {
  if (!data || !bytes) return Memory();
  Memory m(device, bytes, nullptr);
  check(cudaMemcpyAsync(m.data(), data, static_cast<size_t>(bytes), cudaMemcpyDefault, nullptr), "cannot copy to the device");
  synchronize(nullptr);
  return m;
}

template <size_t... I, class Problem>
void read_problem(int family, const void* from, Problem& to, std::index_sequence<I...>) {
  ((family == static_cast<int>(I) ? (to = *static_cast<const std::variant_alternative_t<I, Problem>*>(from), 0) : 0), ...);
}

}  // namespace

Weight::Weight(int device, const void* data, bool on_device, Element type, const int64_t* sizes, const int64_t* strides, const float* scale)
    : device_(device), data_(data), on_device_(on_device), type_(type), scale_(upload(device, scale, 4 * sizes[4])) {
  std::copy_n(sizes, 5, sizes_);
  std::copy_n(strides, 5, strides_);
}

const void* Weight::packed(const ConvKernel& kernel, const ConvProblem& problem, const Context& ctx, cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const int64_t bytes = kernel.packed_bytes(problem, ctx);
  Memory& slot = packed_[{reinterpret_cast<const void*>(kernel.pack), ctx.precision, bytes, problem.groups}];  // rows may share a form
  if (slot.data()) return slot.data();
  if (capturing(stream)) unsupported("weights cannot be packed while a stream is captured: run once before the capture");
  int64_t count = 1, dense = 1;
  bool is_dense = type_ == Element::kF32;
  for (int i = 4; i >= 0; --i) {
    count *= sizes_[i];
    is_dense = is_dense && (sizes_[i] == 1 || strides_[i] == dense);
    dense *= sizes_[i];
  }
  Memory packed(device_, bytes, stream), floats;
  const float* weights = static_cast<const float*>(data_);
  if (!on_device_) {  // the host keeps floats, dense
    floats = Memory(device_, 4 * count, stream);
    check(cudaMemcpyAsync(floats.data(), data_, static_cast<size_t>(4 * count), cudaMemcpyHostToDevice, stream), "cannot copy weights");
    weights = reinterpret_cast<const float*>(floats.data());
  } else if (!is_dense) {
    floats = Memory(device_, 4 * count, stream);
    device::Relay r{data_, floats.data(), type_, Element::kF32, {1}, {0}};
    for (int i = 0; i < 5; ++i) r.sizes[i + 1] = sizes_[i], r.strides[i + 1] = strides_[i];
    relay(r, stream);
    weights = reinterpret_cast<const float*>(floats.data());
  }
  check(kernel.pack(problem, ctx, weights, packed.data(), stream), "cannot pack weights");
  synchronize(stream);
  slot = std::move(packed);
  return slot.data();
}

int64_t Weight::bytes() {
  const std::lock_guard<std::mutex> lock(mutex_);
  int64_t sum = scale_.bytes();
  for (const auto& [key, memory] : packed_) sum += memory.bytes();
  return sum;
}

Plan::Plan(int device, Precision precision, const device::Program& program)
    : device_(describe(device, nullptr)), precision_(precision), element_bytes_(element_bytes(precision)), graphs_(program.graphs) {
  for (int i = 0; i < program.root_count; ++i) {
    const auto& r = program.roots[i];
    roots_.push_back({r.size, r.is_input != 0, r.is_index != 0});
  }
  aliased_.resize(roots_.size());
  for (int i = 0; i < program.tensor_count; ++i) {
    const auto& t = program.tensors[i];
    tensors_.push_back({{t.dims[0], t.dims[1], t.dims[2], t.dims[3]}, t.offset, t.pixel, t.root});
    const Tensor& own = tensors_.back();
    if (t.offset || t.pixel != t.dims[3]) aliased_[static_cast<size_t>(t.root)] = true;
    for (const Tensor& other : tensors_)  // a reshape: another tensor of the same root
      if (other.root == own.root && std::memcmp(other.dims, own.dims, sizeof own.dims) != 0) aliased_[static_cast<size_t>(own.root)] = true;
  }
  for (int i = 0; i < program.step_count; ++i) {
    const auto& s = program.steps[i];
    Step step{{},
              s.x,
              s.x2,
              s.y,
              s.index,
              static_cast<Weight*>(s.weight),
              upload(device, s.scale, 4 * s.channels),
              upload(device, s.shift, 4 * s.channels),
              s.forced ? s.forced : ""};
    read_problem(static_cast<int>(s.family), s.problem, step.problem, std::make_index_sequence<std::variant_size_v<Problem>>());
    steps_.push_back(std::move(step));
  }
  inputs_.assign(program.inputs, program.inputs + program.input_count);
  outputs_.assign(program.outputs, program.outputs + program.output_count);
  direct_ = direct_outputs();
  for (const int channels_first : {0, 1}) {
    std::vector<bool> elsewhere(roots_.size(), false);
    for (size_t i = 0; i < outputs_.size() && !channels_first; ++i)
      if (direct_[i]) elsewhere[static_cast<size_t>(tensors_[static_cast<size_t>(outputs_[i])].root)] = true;
    std::vector<Span> spans;
    std::vector<size_t> owners;
    for (size_t r = 0; r < roots_.size(); ++r) {
      const auto& root = program.roots[r];
      if (root.is_input || root.last < 0 || elsewhere[r]) continue;
      spans.push_back({rounded(root.size * (root.is_index ? 8 : element_bytes_)), root.first, root.last});
      owners.push_back(r);
    }
    arena_bytes_[channels_first] = lay_out(spans);
    for (size_t i = 0; i < spans.size(); ++i) roots_[owners[i]].offset[channels_first] = spans[i].offset;
  }
}

// An output that owns a whole root is written in place by the step that makes it.
std::vector<bool> Plan::direct_outputs() const {
  std::vector<bool> direct(outputs_.size(), false), owned(roots_.size(), false);
  for (size_t i = 0; i < outputs_.size(); ++i) {
    const Tensor& t = tensors_[static_cast<size_t>(outputs_[i])];
    const Root& root = roots_[static_cast<size_t>(t.root)];
    if (root.is_input || t.offset || t.pixel != t.dims[3] || root.size != elements(t.dims) || owned[static_cast<size_t>(t.root)]) continue;
    direct[i] = owned[static_cast<size_t>(t.root)] = true;
  }
  return direct;
}

bool Plan::Call::operator==(const Call& o) const {
  return n == o.n && channels_first == o.channels_first && outputs == o.outputs && inputs.size() == o.inputs.size() &&
         std::equal(inputs.begin(), inputs.end(), o.inputs.begin(), [](const device::Array& a, const device::Array& b) {
           return a.data == b.data && a.image == b.image && a.depth == b.depth && a.row == b.row && a.pixel == b.pixel &&
                  a.channel == b.channel;
         });
}

Plan::Call Plan::call_of(int64_t n, const device::Array* inputs, void* const* outputs, bool channels_first) const {
  return {n, {inputs, inputs + inputs_.size()}, {outputs, outputs + outputs_.size()}, channels_first};
}

// As many images at once as fit a quarter of the device's memory: the arena of a whole batch, as a rule.
int64_t Plan::block_of(int64_t n, bool channels_first) const {
  const int64_t fit = device_.memory_bytes / 4 / std::max<int64_t>(arena_bytes_[channels_first], 1);
  return std::min(n, std::max<int64_t>(fit, 1));
}

bool Plan::reads_in_place(const device::Array& a, const Tensor& t) const {
  const int64_t* d = t.dims;
  if (a.channel != 1 || a.image <= 0 || a.depth <= 0 || a.row <= 0)
    return false;  // an image that stands for many (expand): no tensor map is like that
  if (a.pixel == d[3] && a.row == d[2] * d[3] && a.depth == d[1] * d[2] * d[3]) return true;
  return a.pixel > 0 && !aliased_[static_cast<size_t>(t.root)];
}

std::vector<Plan::Place> Plan::places(const Call& call, char* memory, int64_t first, int64_t images) const {
  std::vector<Place> places(roots_.size());
  for (size_t r = 0; r < roots_.size(); ++r)
    if (!roots_[r].is_input) places[r] = {memory + roots_[r].offset[call.channels_first] * images, roots_[r].size};
  for (size_t i = 0; i < outputs_.size() && !call.channels_first; ++i) {
    if (!direct_[i]) continue;
    const size_t r = static_cast<size_t>(tensors_[static_cast<size_t>(outputs_[i])].root);
    const int64_t bytes = roots_[r].size * (roots_[r].is_index ? 8 : element_bytes_);
    places[r] = {static_cast<char*>(call.outputs[i]) + first * bytes, roots_[r].size};
  }
  char* staging = memory + arena_bytes_[call.channels_first] * images;
  for (size_t i = 0; i < inputs_.size(); ++i) {
    const Tensor& t = tensors_[static_cast<size_t>(inputs_[i])];
    const device::Array& a = call.inputs[i];
    Place& place = places[static_cast<size_t>(t.root)];
    if (reads_in_place(a, t)) {
      place = {static_cast<char*>(a.data) + first * a.image * element_bytes_, a.image};
      if (a.pixel != t.dims[3] || a.row != t.dims[2] * t.dims[3] || a.depth != t.dims[1] * t.dims[2] * t.dims[3])
        place.depth = a.depth, place.row = a.row, place.pixel = a.pixel;
    } else {
      place = {staging, roots_[static_cast<size_t>(t.root)].size};
      staging += rounded(place.image * element_bytes_ * images);
    }
  }
  return places;
}

View Plan::view(const Tensor& t, const std::vector<Place>& places) const {
  const Place& place = places[static_cast<size_t>(t.root)];
  if (place.pixel) return {place.base, place.image, place.depth, place.row, place.pixel};
  const int bytes = roots_[static_cast<size_t>(t.root)].is_index ? 8 : element_bytes_;
  const int64_t row = t.dims[2] * t.pixel;
  return {place.base + t.offset * bytes, place.image, t.dims[1] * row, row, t.pixel};
}

int Plan::align(const View& v, int bytes) const {
  const uint64_t all = reinterpret_cast<uint64_t>(v.data) | static_cast<uint64_t>(v.image * bytes) |
                       static_cast<uint64_t>(v.depth * bytes) | static_cast<uint64_t>(v.row * bytes) |
                       static_cast<uint64_t>(v.pixel * bytes);
  return static_cast<int>(std::min<uint64_t>(16, all & (~all + 1) ? all & (~all + 1) : 16));
}

Context Plan::context(const Step& step, int64_t images, const std::vector<Place>& places) const {
  Context ctx = context(images);
  auto align_of = [&](int t) { return t < 0 ? 16 : align(view(tensors_[static_cast<size_t>(t)], places), element_bytes_); };
  ctx.x_align = align_of(step.x), ctx.residual_align = align_of(step.x2), ctx.y_align = align_of(step.y);
  auto flat = [&](int i) {
    if (i < 0) return true;
    const Tensor& t = tensors_[static_cast<size_t>(i)];
    const View v = view(t, places);
    const int64_t* d = t.dims;
    return (d[1] == 1 || v.row == d[2] * v.pixel) && (d[0] == 1 || v.depth == d[1] * d[2] * v.pixel) &&
           (images == 1 || v.image == d[0] * d[1] * d[2] * v.pixel);
  };
  ctx.x_flat = flat(step.x), ctx.y_flat = flat(step.y), ctx.residual_flat = flat(step.x2);
  return ctx;
}

std::shared_ptr<const Plan::Choices> Plan::choose(int64_t images, const std::vector<Place>& places) {
  std::vector<int64_t> key{images};
  for (const Step& s : steps_) {
    const Context ctx = context(s, images, places);
    key.push_back(ctx.x_align | ctx.residual_align << 8 | ctx.y_align << 16 | ctx.x_flat << 24 | ctx.y_flat << 25 |
                  ctx.residual_flat << 26);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  auto& slot = choices_[key];
  if (slot) return slot;
  auto made = std::make_shared<Choices>();
  for (const Step& s : steps_) {
    const Context ctx = context(s, images, places);
    auto pick = [&](const auto& list, const auto& problem) {
      const auto chosen = select(list, problem, ctx, s.forced);
      const int64_t workspace = chosen.kernel->workspace_bytes(problem, ctx);
      made->steps.push_back({chosen.kernel, chosen.cost, chosen.refused, workspace});
      made->workspace = std::max(made->workspace, workspace);
    };
    switch (s.problem.index()) {
      case 0: pick(rows().Conv, std::get<0>(s.problem)); break;
      case 1: pick(rows().Pool, std::get<1>(s.problem)); break;
      case 2: pick(rows().Norm, std::get<2>(s.problem)); break;
      case 3: pick(rows().Map, std::get<3>(s.problem)); break;
      case 4: pick(rows().Move, std::get<4>(s.problem)); break;
      default: pick(rows().Resize, std::get<5>(s.problem));
    }
  }
  if (choices_.size() > 64) choices_.clear();
  choices_[key] = made;
  return made;
}

void Plan::execute(const Step& s, const Chosen& chosen, const std::vector<Place>& places, int64_t images, void* workspace,
                   cudaStream_t stream) {
  auto seen = [&](int t) { return t < 0 ? View{} : view(tensors_[static_cast<size_t>(t)], places); };
  const View x = seen(s.x), x2 = seen(s.x2), y = seen(s.y);
  const float* scale = reinterpret_cast<const float*>(s.scale.data());
  const float* shift = reinterpret_cast<const float*>(s.shift.data());
  const Context ctx = context(s, images, places);
  auto go = [&](const auto* kernel, const auto& problem, const auto& args) {
    check(kernel->run(problem, args, ctx, workspace, stream), kernel->name);
  };
  switch (s.problem.index()) {
    case 0: {
      const auto& p = std::get<0>(s.problem);
      const ConvKernel* kernel = std::get<0>(chosen.kernel);
      go(kernel, p, ConvArgs{x, y, x2, s.weight->packed(*kernel, p, ctx, stream), s.weight->scale(), shift});
      break;
    }
    case 1: go(std::get<1>(chosen.kernel), std::get<1>(s.problem), PoolArgs{x, y, seen(s.index)}); break;
    case 2: go(std::get<2>(chosen.kernel), std::get<2>(s.problem), NormArgs{x, y, scale, shift}); break;
    case 3: go(std::get<3>(chosen.kernel), std::get<3>(s.problem), MapArgs{x, x2, y}); break;
    case 4: go(std::get<4>(chosen.kernel), std::get<4>(s.problem), MoveArgs{x, y, 1, 1}); break;
    default: go(std::get<5>(chosen.kernel), std::get<5>(s.problem), ResizeArgs{x, y});
  }
}

void Plan::copy(const Tensor& t, const MoveArgs& args, int64_t images, cudaStream_t stream) const {
  MoveProblem p{};
  for (int i = 0; i < 4; ++i) p.in[i] = p.out[i] = t.dims[i], p.perm[i] = i;
  Context ctx = context(images);
  ctx.x_align = align(args.x, element_bytes_), ctx.y_align = align(args.y, element_bytes_);
  ctx.x_channel = args.x_channel, ctx.y_channel = args.y_channel;
  const MoveKernel& row = *select(rows().Move, p, ctx).kernel;
  check(row.run(p, args, ctx, nullptr, stream), row.name);
}

// The choices of a whole block and of what is left over; weights are packed on the way.
std::vector<std::shared_ptr<const Plan::Choices>> Plan::prepare(const Call& call, int64_t block, cudaStream_t stream) {
  std::vector<std::shared_ptr<const Choices>> all;
  char* const nowhere = reinterpret_cast<char*>(uintptr_t{1} << 12);  // alignments only
  for (int64_t images : {block, call.n % block}) {
    if (!images) continue;
    all.push_back(choose(images, places(call, nowhere, 0, images)));
    for (size_t i = 0; i < steps_.size(); ++i)
      if (const auto* kernel = std::get_if<0>(&all.back()->steps[i].kernel))
        steps_[i].weight->packed(**kernel, std::get<0>(steps_[i].problem), context(images), stream);
  }
  return all;
}

int64_t Plan::memory_bytes(const Call& call, int64_t block, const Choices& choices) const {
  int64_t staging = 0;
  for (size_t i = 0; i < inputs_.size(); ++i) {
    const Tensor& t = tensors_[static_cast<size_t>(inputs_[i])];
    if (!reads_in_place(call.inputs[i], t)) staging += rounded(roots_[static_cast<size_t>(t.root)].size * element_bytes_ * block);
  }
  return arena_bytes_[call.channels_first] * block + staging + choices.workspace;
}

// Queues everything; `memory` holds the arena, staged inputs and the workspace, in this order.
void Plan::queue(const Call& call, char* memory, int64_t block, const std::vector<std::shared_ptr<const Choices>>& choices,
                 cudaStream_t stream, std::vector<Timer>* timers) {
  for (int64_t first = 0; first < call.n; first += block) {
    const int64_t images = std::min(block, call.n - first);
    const Choices& chosen = *(images == block ? choices.front() : choices.back());
    const std::vector<Place> at = places(call, memory, first, images);
    char* const workspace = memory + memory_bytes(call, images, chosen) - chosen.workspace;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const Tensor& t = tensors_[static_cast<size_t>(inputs_[i])];
      const device::Array& a = call.inputs[i];
      if (reads_in_place(a, t)) continue;
      const View x{static_cast<char*>(a.data) + first * a.image * element_bytes_, a.image, a.depth, a.row, a.pixel};
      copy(t, MoveArgs{x, view(t, at), a.channel, 1}, images, stream);
    }
    if (timers) (*timers)[0].mark(stream);
    for (size_t i = 0; i < steps_.size(); ++i) {
      execute(steps_[i], chosen.steps[i], at, images, workspace, stream);
      if (timers) (*timers)[i + 1].mark(stream);
    }
    for (size_t i = 0; i < outputs_.size(); ++i) {
      if (direct_[i] && !call.channels_first) continue;
      const Tensor& t = tensors_[static_cast<size_t>(outputs_[i])];
      const int64_t (&d)[4] = t.dims;
      const int64_t size = elements(d), plane = d[0] * d[1] * d[2];
      const View x = view(t, at);
      if (roots_[static_cast<size_t>(t.root)].is_index) {
        device::Relay r{x.data,
                        static_cast<char*>(call.outputs[i]) + first * size * 8,
                        Element::kI64,
                        Element::kI64,
                        {1, images, d[0], d[1], d[2], d[3]},
                        {0, x.image, x.depth, x.row, x.pixel, 1}};
        if (call.channels_first)
          for (int64_t* list : {r.sizes, r.strides}) std::rotate(list + 2, list + 5, list + 6);
        relay(r, stream);
        continue;
      }
      const int64_t pixel = call.channels_first ? 1 : d[3];
      const View y{static_cast<char*>(call.outputs[i]) + first * size * element_bytes_, size, d[1] * d[2] * pixel, d[2] * pixel, pixel};
      copy(t, MoveArgs{x, y, 1, call.channels_first ? plane : 1}, images, stream);
    }
  }
}

void Plan::run(int64_t n, const device::Array* inputs, void* const* outputs, bool channels_first, cudaStream_t stream) {
  if (n == 0) return;
  const DeviceScope scope(device_.id);
  const Call call = call_of(n, inputs, outputs, channels_first);
  auto find = [&] { return std::find_if(recorded_.begin(), recorded_.end(), [&](const Recorded& r) { return r.call == call; }); };
  int64_t now = 0;
  const bool graphs = graphs_ && !capturing(stream);  // inside of a caller's capture the steps go into its graph
  if (graphs) {
    const std::lock_guard<std::mutex> lock(mutex_);
    now = ++runs_;
    const auto it = find();
    if (it != recorded_.end()) {
      it->seen = now;
      if (it->graph) return it->graph->launch(stream);
    }
  }
  const int64_t block = block_of(n, channels_first);
  const auto choices = prepare(call, block, stream);
  const int64_t bytes =
      memory_bytes(call, block, *choices.front()) + std::max(choices.back()->workspace - choices.front()->workspace, int64_t{0});
  if (graphs) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto it = find();
    if (it != recorded_.end()) {
      auto fits = [&] {
        int64_t held = bytes;
        for (const Recorded& r : recorded_) held += r.memory.bytes();
        return held <= device_.memory_bytes / kHeld;
      };
      for (auto r = recorded_.begin(); !it->graph && r != recorded_.end() && !fits();)
        r = r->graph && now - r->seen > kStale ? recorded_.erase(r) : std::next(r);
      if (!it->graph && fits()) {
        if (bytes) {
          it->memory = Memory(device_.id, bytes, stream);
          synchronize(stream);  // the memory belongs to every stream from now on
        }
        it->graph = std::make_unique<Graph>([&](cudaStream_t s) { queue(call, it->memory.data(), block, choices, s, nullptr); });
      }
      if (it->graph) return it->graph->launch(stream);
    } else if (recorded_.size() >= kRecorded) {
      // The least recently seen goes; a graph only if it has not been used for long, so that many pointers in turn do not capture for ever.
      auto oldest = recorded_.end();
      for (auto r = recorded_.begin(); r != recorded_.end(); ++r)
        if ((!r->graph || now - r->seen > kStale) && (oldest == recorded_.end() || r->seen < oldest->seen)) oldest = r;
      if (oldest != recorded_.end()) recorded_.erase(oldest);
    }
    if (it == recorded_.end() && recorded_.size() < kRecorded) recorded_.push_back({call, now, Memory(), nullptr});
  }
  if (!bytes)
    return queue(call, nullptr, block, choices, stream, nullptr);  // one layer, as a rule: no nodes for memory in a caller's graph
  char* const memory = static_cast<char*>(allocate(device_.id, bytes, stream));
  try {
    queue(call, memory, block, choices, stream, nullptr);
  } catch (...) {
    release(device_.id, memory, stream);
    throw;
  }
  release(device_.id, memory, stream);
}

void Plan::profile(int64_t n, const device::Array* inputs, void* const* outputs, int repeat, cudaStream_t stream, double* seconds) {
  if (n == 0) return;
  const DeviceScope scope(device_.id);
  const Call call = call_of(n, inputs, outputs, false);
  const int64_t block = block_of(n, false);
  if (block < n)
    unsupported("profiling " + std::to_string(n) + " images, which the device's memory takes in blocks of " + std::to_string(block));
  const auto choices = prepare(call, block, stream);
  const Memory memory(device_.id, memory_bytes(call, block, *choices.front()), stream);
  for (int i = 0; i <= repeat; ++i) {  // the first one warms up
    std::vector<Timer> timers(steps_.size() + 1);
    queue(call, memory.data(), block, choices, stream, &timers);
    synchronize(stream);
    for (size_t s = 0; s < steps_.size(); ++s) {
      const double took = Timer::seconds(timers[s], timers[s + 1]);
      seconds[s] = i == 1 || i == 0 ? took : std::min(seconds[s], took);
    }
  }
}

void Plan::choice(int64_t n, int step, device::Choice* out) {
  static thread_local std::string refused;
  if (step < 0 || step >= static_cast<int>(steps_.size())) shape_error("no step has the number " + std::to_string(step));
  Call call{n, std::vector<device::Array>(inputs_.size()), std::vector<void*>(outputs_.size(), reinterpret_cast<void*>(kAlign)), false};
  for (size_t i = 0; i < inputs_.size(); ++i) {  // dense and aligned arrays
    const int64_t* d = tensors_[static_cast<size_t>(inputs_[i])].dims;
    call.inputs[i] = {reinterpret_cast<void*>(kAlign),
                      elements(tensors_[static_cast<size_t>(inputs_[i])].dims),
                      d[1] * d[2] * d[3],
                      d[2] * d[3],
                      d[3],
                      1};
  }
  char* const nowhere = reinterpret_cast<char*>(uintptr_t{1} << 12);
  const auto choices = choose(n, places(call, nowhere, 0, n));
  const Chosen& c = choices->steps[static_cast<size_t>(step)];
  refused = c.refused;
  const char* name = std::visit([](const auto* kernel) { return kernel->name; }, c.kernel);
  int64_t packed = 0;
  if (const auto* kernel = std::get_if<0>(&c.kernel))
    packed = (*kernel)->packed_bytes(std::get<0>(steps_[static_cast<size_t>(step)].problem), context(n));
  *out = {name, refused.c_str(), c.cost, c.workspace, packed};
}

void Plan::memory(int64_t n, int64_t* arena, int64_t* workspace) {
  const int64_t block = block_of(n, false);
  *arena = arena_bytes_[0] * block, *workspace = 0;
  for (int i = 0; i < static_cast<int>(steps_.size()); ++i) {
    device::Choice c{};
    choice(block, i, &c);
    *workspace = std::max(*workspace, c.workspace_bytes);
  }
}

}  // namespace ck::cuda
