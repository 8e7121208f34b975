// device.cpp (binding): device modules for Python: memory, DLPack, and a recorded Plan handed to a device. All through core/device.h's table; nothing
// here knows CUDA.
#include "core/device.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>

#include "bind/bind.h"
#include "bind/dlpack.h"
#include "plan/plan.h"

namespace py = pybind11;

namespace ck {

namespace {

void check(const device::Table& table, device::Status status) {
  if (status == device::kOk) return;
  const std::string what = table.last_error();
  if (status == device::kShape) shape_error(what);
  if (status == device::kDType) dtype_error(what);
  if (status == device::kUnsupported) unsupported(what);
  throw Error(ErrorKind::kDevice, what);
}

const device::Table& read_table(const void* pointer) {
  const auto* table = static_cast<const device::Table*>(pointer);
  const uint32_t sizes[6] = {sizeof(ConvProblem), sizeof(PoolProblem), sizeof(NormProblem),
                             sizeof(MapProblem),  sizeof(MoveProblem), sizeof(ResizeProblem)};
  if (table->version != device::kVersion || table->bytes != sizeof(device::Table) ||
      std::memcmp(table->problem_bytes, sizes, sizeof sizes) != 0)
    unsupported("the device module was built for another version of convkern (its table is " + std::to_string(table->version) + ", want " +
                std::to_string(device::kVersion) + "): build both from one source");
  return *table;
}

device::Element element(const std::string& dtype) {
  if (dtype == "float32") return device::Element::kF32;
  if (dtype == "float16") return device::Element::kF16;
  if (dtype == "bfloat16") return device::Element::kBF16;
  if (dtype == "int64") return device::Element::kI64;
  dtype_error("a device has float32, float16, bfloat16 and int64, got " + dtype);
}

// Memory of a device, in the order of a stream.
class DeviceMemory {
 public:
  DeviceMemory(const device::Table& table, int id, int64_t bytes, uint64_t stream) : table_(table), id_(id), stream_(stream) {
    check(table_, table_.allocate(id, bytes, stream, &data_));
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() {
    if (shared_ && PyGILState_Check()) {  // waits for the device, whose callbacks may want the interpreter
      const py::gil_scoped_release release;
      table_.release(id_, data_, device::kAnyStream);
    } else {
      table_.release(id_, data_, shared_ ? device::kAnyStream : stream_);
    }
  }
  uint64_t pointer() const { return reinterpret_cast<uint64_t>(data_); }
  uint64_t stream() const { return stream_; }
  void share(uint64_t stream) { shared_ = shared_ || stream != stream_; }

 private:
  const device::Table& table_;
  int id_;
  uint64_t stream_;
  bool shared_ = false;  // another stream may use it: it is freed when all are done
  void* data_ = nullptr;
};

struct DeviceModule {
  const device::Table& table;
};

}  // namespace

// A recorded plan on a device; keeps the plan (its parameters and constants) alive.
class DevicePlan {
 public:
  DevicePlan(const device::Table& table, std::shared_ptr<Plan> plan, int id, int precision, bool graphs,
             const std::map<int, std::string>& forced)
      : table_(table), plan_(std::move(plan)) {
    if (!plan_->recorded()) unsupported("a device runs finished plans that were recorded: Plan(record=True)");
    if (plan_->element_bytes() != 4) dtype_error("a device computes in float32 or less, got a float64 plan");
    std::vector<device::ProgramRoot> roots;
    std::vector<device::ProgramTensor> tensors;
    std::vector<device::ProgramStep> steps;
    for (const auto& r : plan_->roots()) roots.push_back({r.size, r.is_input, r.is_index, r.first, r.last});
    for (const auto& t : plan_->tensors()) tensors.push_back({{t.dims[0], t.dims[1], t.dims[2], t.dims[3]}, t.offset, t.pixel, t.root, 0});
    for (const auto& s : plan_->steps_) {
      device::ProgramStep step{};
      step.x = s.x, step.x2 = s.x2, step.y = s.y, step.index = s.index;
      step.channels = plan_->dims(s.y)[3];
      step.scale = s.weights ? reinterpret_cast<const float*>(s.weights->data()) : nullptr;
      step.shift = s.shift ? reinterpret_cast<const float*>(s.shift->data()) : nullptr;
      step.forced = s.forced.c_str();
      const auto name = forced.find(static_cast<int>(steps.size()));
      if (name != forced.end()) step.forced = name->second.c_str();
      step.family = static_cast<device::Family>(s.call.index());
      std::visit(
          [&](const auto& call) {
            using Kind = std::decay_t<decltype(call)>;  // strips and gradients are never recorded
            if constexpr (!std::is_same_v<Kind, std::shared_ptr<const Plan::Strips>> &&
                          !std::is_same_v<Kind, std::shared_ptr<const Plan::Training>>)
              step.problem = &call.problem;
          },
          s.call);
      if (s.parameter) step.weight = weight_of(*s.parameter, id);
      steps.push_back(step);
    }
    const device::Program program{roots.data(),
                                  tensors.data(),
                                  steps.data(),
                                  plan_->inputs().data(),
                                  plan_->outputs().data(),
                                  static_cast<int32_t>(roots.size()),
                                  static_cast<int32_t>(tensors.size()),
                                  static_cast<int32_t>(steps.size()),
                                  static_cast<int32_t>(plan_->inputs().size()),
                                  static_cast<int32_t>(plan_->outputs().size()),
                                  graphs};
    check(table_, table_.plan_create(id, precision, &program, &handle_));
  }
  DevicePlan(const DevicePlan&) = delete;
  DevicePlan& operator=(const DevicePlan&) = delete;
  ~DevicePlan() {
    if (handle_) table_.plan_destroy(handle_);
  }

  // An array is (pointer, strides of n d h w c).
  using Arrays = std::vector<std::array<int64_t, 6>>;
  void run(int64_t n, const Arrays& inputs, const std::vector<uint64_t>& outputs, bool channels_first, uint64_t stream) {
    const auto [in, out] = arguments(inputs, outputs);
    check(table_, table_.plan_run(handle_, n, in.data(), out.data(), channels_first, stream));
  }
  std::vector<double> profile(int64_t n, const Arrays& inputs, const std::vector<uint64_t>& outputs, int repeat, uint64_t stream) {
    const auto [in, out] = arguments(inputs, outputs);
    std::vector<double> seconds(plan_->steps_.size());
    check(table_, table_.plan_profile(handle_, n, in.data(), out.data(), repeat, stream, seconds.data()));
    return seconds;
  }
  py::list steps(int64_t n) {
    py::list list;
    int index = 0;
    for (const Plan::Info& i : plan_->infos()) {
      device::Choice c{};
      check(table_, table_.plan_choice(handle_, n, index, &c));
      std::vector<std::pair<std::string, std::string>> refused;
      std::string rest = c.refused;
      for (size_t end = rest.find('\n'); end != std::string::npos; rest.erase(0, end + 1), end = rest.find('\n')) {
        const std::string line = rest.substr(0, end);
        refused.emplace_back(line.substr(0, line.find(": ")), line.substr(line.find(": ") + 2));
      }
      py::dict d;
      d["label"] = i.label, d["op"] = i.op, d["kernel"] = std::string(c.kernel);
      const bool forced = !plan_->steps_[static_cast<size_t>(index)].forced.empty();
      d["why"] = forced ? std::string("forced")
                        : "cheapest by the cost model: " + std::to_string(c.cost).substr(0, 8) + " us for " + std::to_string(n) + " images";
      d["refused"] = refused;
      d["shape_in"] = py::make_tuple(i.in[0], i.in[1], i.in[2], i.in[3]);
      d["shape_out"] = py::make_tuple(i.out[0], i.out[1], i.out[2], i.out[3]);
      d["macs"] = i.macs, d["bytes"] = i.bytes, d["workspace_bytes"] = c.workspace_bytes, d["packed_bytes"] = c.packed_bytes;
      list.append(d);
      ++index;
    }
    return list;
  }
  std::pair<int64_t, int64_t> memory(int64_t n) {
    int64_t arena = 0, workspace = 0;
    check(table_, table_.plan_memory(handle_, n, &arena, &workspace));
    return {arena, workspace};
  }
  const Plan& plan() const { return *plan_; }

 private:
  std::pair<std::vector<device::Array>, std::vector<void*>> arguments(const Arrays& inputs, const std::vector<uint64_t>& outputs) const {
    if (inputs.size() != plan_->inputs().size() || outputs.size() != plan_->outputs().size())
      shape_error("the number of inputs or outputs does not fit the plan");
    std::vector<device::Array> in;
    for (const auto& a : inputs) in.push_back({reinterpret_cast<void*>(a[0]), a[1], a[2], a[3], a[4], a[5]});
    std::vector<void*> out;
    for (uint64_t p : outputs) out.push_back(reinterpret_cast<void*>(p));
    return {std::move(in), std::move(out)};
  }
  void* weight_of(Parameter& parameter, int id) {
    const std::lock_guard<std::mutex> lock(parameter.device_mutex);
    auto& slot = parameter.on_device[id];
    if (!slot) {
      const auto& s = parameter.shape;
      const auto& there = parameter.device_data;
      const int64_t dense[5] = {s[1] * s[2] * s[3] * s[4], s[2] * s[3] * s[4], s[3] * s[4], s[4], 1};
      void* weight = nullptr;
      check(table_, table_.weight_create(id, there.data ? there.data : parameter.data(), there.data != nullptr,
                                         static_cast<device::Element>(there.element), s.data(), there.data ? there.strides.data() : dense,
                                         static_cast<const float*>(parameter.scale()), &weight));
      slot = std::shared_ptr<void>(weight, table_.weight_destroy);
    }
    weights_.push_back(slot);
    return slot.get();
  }

  const device::Table& table_;
  std::shared_ptr<Plan> plan_;
  std::vector<std::shared_ptr<void>> weights_;
  void* handle_ = nullptr;
};

namespace {

struct Exported {  // what a DLPack consumer keeps
  dlpack::Managed managed;
  std::vector<int64_t> shape, strides;
  py::object owner;
};

void delete_exported(dlpack::Managed* m) {
  if (!Py_IsInitialized()) return;  // a consumer that outlives Python: the process' end frees the memory
  const py::gil_scoped_acquire gil;
  delete static_cast<Exported*>(m->manager);
}

py::capsule dlpack_export(uint64_t pointer, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides,
                          const std::string& dtype, int device_type, int device_id, const py::object& owner) {
  auto e = std::make_unique<Exported>();
  e->shape = shape, e->strides = strides, e->owner = owner;
  const device::Element type = element(dtype);
  const uint8_t code = type == device::Element::kI64 ? 0 : type == device::Element::kBF16 ? 4 : 2;
  const uint8_t bits = type == device::Element::kI64 ? 64 : type == device::Element::kF32 ? 32 : 16;
  e->managed = {{reinterpret_cast<void*>(pointer),
                 {device_type, device_id},
                 static_cast<int32_t>(shape.size()),
                 {code, bits, 1},
                 e->shape.data(),
                 e->strides.data(),
                 0},
                e.get(),
                delete_exported};
  PyObject* capsule = PyCapsule_New(&e->managed, "dltensor", [](PyObject* o) {
    if (!PyCapsule_IsValid(o, "dltensor")) return;  // consumed: its new owner deletes it
    auto* m = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(o, "dltensor"));
    m->deleter(m);
  });
  if (!capsule) throw py::error_already_set();
  e.release();
  return py::reinterpret_steal<py::capsule>(capsule);
}

// (pointer, shape, strides, dtype, device type, device id, owner); the capsule is consumed.
py::tuple dlpack_import(const py::object& capsule) {
  PyObject* o = capsule.ptr();
  const dlpack::Tensor* tensor = nullptr;
  py::object owner;
  if (PyCapsule_IsValid(o, "dltensor")) {
    auto* m = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(o, "dltensor"));
    tensor = &m->tensor;
    PyCapsule_SetName(o, "used_dltensor");
    owner = py::capsule(m, [](void* p) {
      auto* managed = static_cast<dlpack::Managed*>(p);
      if (managed->deleter) managed->deleter(managed);
    });
  } else if (PyCapsule_IsValid(o, "dltensor_versioned")) {
    auto* m = static_cast<dlpack::Versioned*>(PyCapsule_GetPointer(o, "dltensor_versioned"));
    if (m->major != 1) unsupported("a DLPack tensor of version " + std::to_string(m->major) + ", want 1");
    tensor = &m->tensor;
    PyCapsule_SetName(o, "used_dltensor_versioned");
    owner = py::capsule(m, [](void* p) {
      auto* managed = static_cast<dlpack::Versioned*>(p);
      if (managed->deleter) managed->deleter(managed);
    });
  } else {
    dtype_error("want a DLPack capsule that nobody has consumed");
  }
  std::vector<int64_t> shape(tensor->shape, tensor->shape + tensor->ndim), strides(shape.size());
  int64_t dense = 1;
  for (size_t i = shape.size(); i-- > 0; dense *= shape[i]) strides[i] = tensor->strides ? tensor->strides[i] : dense;
  const auto [code, bits, lanes] = tensor->type;
  static const char* const codes[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
  std::string dtype = (code < 7 ? codes[code] : "type " + std::to_string(code) + "/") + std::to_string(bits);
  if (lanes != 1) dtype += "x" + std::to_string(lanes);
  return py::make_tuple(reinterpret_cast<uint64_t>(tensor->data) + tensor->byte_offset, py::tuple(py::cast(shape)),
                        py::tuple(py::cast(strides)), dtype, tensor->device.type, tensor->device.id, owner);
}

}  // namespace

void register_device(py::module_& m) {
  using namespace pybind11::literals;  // NOLINT: the argument names below
  py::class_<DeviceMemory, std::shared_ptr<DeviceMemory>>(m, "DeviceMemory", "Memory of a device, freed in the order of its stream.")
      .def_property_readonly("pointer", &DeviceMemory::pointer)
      .def_property_readonly("stream", &DeviceMemory::stream)
      .def("share", &DeviceMemory::share, "stream"_a, "Another stream uses it: it will be freed when all streams are done.");

  py::class_<DeviceModule>(m, "DeviceModule", "The functions of a device module, from its capsule.")
      .def(py::init([](const py::object& capsule) {
             void* pointer = PyCapsule_GetPointer(capsule.ptr(), device::kCapsule);
             if (!pointer) throw py::error_already_set();
             return DeviceModule{read_table(pointer)};
           }),
           "capsule"_a)
      .def_property_readonly("emulated", [](const DeviceModule& d) { return d.table.emulated != 0; })
      .def_property_readonly("dlpack_type", [](const DeviceModule& d) { return d.table.dlpack_type; })
      .def("count",
           [](const DeviceModule& d) {
             int32_t n = 0;
             check(d.table, d.table.count(&n));
             return n;
           })
      .def(
          "info",
          [](const DeviceModule& d, int id) {
            device::Info i{};
            check(d.table, d.table.info(id, &i));
            py::dict out;
            out["name"] = std::string(i.name), out["capability"] = py::make_tuple(i.capability / 10, i.capability % 10);
            out["multiprocessors"] = i.multiprocessors, out["memory_bytes"] = i.memory_bytes;
            return out;
          },
          "device"_a)
      .def("kernels",
           [](const DeviceModule& d) {
             static const char* const families[] = {"conv", "pool", "norm", "map", "move", "resize"};
             std::vector<std::pair<std::string, std::string>> all;
             device::Family family{};
             const char* name = nullptr;
             for (int32_t i = 0; d.table.kernel(i, &family, &name) == device::kOk; ++i)
               all.emplace_back(families[static_cast<int>(family)], name);
             return all;
           })
      .def(
          "allocate",
          [](const DeviceModule& d, int id, int64_t bytes, uint64_t stream) {
            return std::make_shared<DeviceMemory>(d.table, id, bytes, stream);
          },
          "device"_a, "bytes"_a, "stream"_a)
      .def(
          "copy",
          [](const DeviceModule& d, int id, uint64_t to, uint64_t from, int64_t bytes, uint64_t stream) {
            const py::gil_scoped_release release;
            check(d.table, d.table.copy(id, reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes, stream));
          },
          "device"_a, "to"_a, "source"_a, "bytes"_a, "stream"_a)
      .def(
          "synchronize",
          [](const DeviceModule& d, int id, uint64_t stream) {
            const py::gil_scoped_release release;
            check(d.table, d.table.synchronize(id, stream));
          },
          "device"_a, "stream"_a)
      .def(
          "order", [](const DeviceModule& d, int id, uint64_t before, uint64_t after) { check(d.table, d.table.order(id, before, after)); },
          "device"_a, "before"_a, "after"_a)
      .def(
          "relay",
          [](const DeviceModule& d, int id, uint64_t to, const std::string& to_type, uint64_t from, const std::string& from_type,
             const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, uint64_t stream) {
            if (sizes.size() > 6 || sizes.size() != strides.size())
              unsupported("a copy on a device takes up to six dimensions, got " + std::to_string(sizes.size()));
            device::Relay r{reinterpret_cast<const void*>(from),
                            reinterpret_cast<void*>(to),
                            element(from_type),
                            element(to_type),
                            {1, 1, 1, 1, 1, 1},
                            {0, 0, 0, 0, 0, 0}};
            for (size_t i = 0; i < sizes.size(); ++i)
              r.sizes[6 - sizes.size() + i] = sizes[i], r.strides[6 - sizes.size() + i] = strides[i];
            check(d.table, d.table.relay(id, &r, stream));
          },
          "device"_a, "to"_a, "to_type"_a, "source"_a, "source_type"_a, "sizes"_a, "strides"_a, "stream"_a);

  py::class_<DevicePlan>(m, "DevicePlan", "A recorded plan on a device. Arrays are (pointer, strides of n d h w c in elements).")
      .def(py::init([](const DeviceModule& d, std::shared_ptr<Plan> plan, int id, int precision, bool graphs,
                       const std::map<int, std::string>& forced) {
             return std::make_unique<DevicePlan>(d.table, std::move(plan), id, precision, graphs, forced);
           }),
           "module"_a, "plan"_a, "device"_a, "precision"_a, "graphs"_a = true, "forced"_a = std::map<int, std::string>{})
      .def("run", &DevicePlan::run, "n"_a, "inputs"_a, "outputs"_a, "channels_first"_a, "stream"_a,
           py::call_guard<py::gil_scoped_release>())
      .def("profile", &DevicePlan::profile, "n"_a, "inputs"_a, "outputs"_a, "repeat"_a, "stream"_a,
           py::call_guard<py::gil_scoped_release>())
      .def("steps", &DevicePlan::steps, "n"_a)
      .def("memory", &DevicePlan::memory, "n"_a)
      .def_property_readonly("outputs", [](const DevicePlan& p) {  // (shape, whether int64)
        std::vector<std::pair<Dims, bool>> all;
        for (int t : p.plan().outputs()) all.emplace_back(p.plan().dims(t), p.plan().is_index(t));
        return all;
      });

  m.def("dlpack_export", &dlpack_export, "pointer"_a, "shape"_a, "strides"_a, "dtype"_a, "device_type"_a, "device"_a, "owner"_a);
  m.def("dlpack_import", &dlpack_import, "capsule"_a);
}

}  // namespace ck
