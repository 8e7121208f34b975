// plan.cpp (binding): Plan and Parameter for Python. Checks types and copies small things; all decisions are in plan/.
#include "plan/plan.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>
#include <limits>

#include "bind/bind.h"
#include "core/activation.h"
#include "core/parallel.h"
#include "core/recycled.h"

namespace py = pybind11;

namespace ck {
namespace {

Activation activation(const std::string& name, double a, double b) {
  static const std::map<std::string, Act> kinds = {
      {"none", Act::kNone}, {"clamp", Act::kClamp},          {"silu", Act::kSilu},         {"sigmoid", Act::kSigmoid},
      {"gelu", Act::kGelu}, {"hard_swish", Act::kHardSwish}, {"tanh", Act::kTanh},         {"gelu_tanh", Act::kGeluTanh},
      {"elu", Act::kElu},   {"leaky_relu", Act::kLeakyRelu}, {"softplus", Act::kSoftplus}, {"hard_sigmoid", Act::kHardSigmoid},
      {"exp", Act::kExp},
  };
  if (name == "relu") return {Act::kClamp, 0.f, std::numeric_limits<float>::infinity()};
  if (name == "relu6") return {Act::kClamp, 0.f, 6.f};
  const auto it = kinds.find(name);
  if (it == kinds.end()) unsupported("no activation is called '" + name + "'");
  return {it->second, a, b};
}

int dtype_bytes(const py::array& a, const char* what) {
  if (a.dtype().is(py::dtype::of<float>())) return 4;
  if (a.dtype().is(py::dtype::of<double>())) return 8;
  if (a.dtype().equal(py::dtype::of<float>())) return 4;
  if (a.dtype().equal(py::dtype::of<double>())) return 8;
  dtype_error(std::string(what) + " must be float32 or float64, got " + py::str(a.dtype()).cast<std::string>());
}

// A vector of a plan's type, copied; empty for None.
Buffer vector(const py::object& o, int bytes, const char* what) {
  if (o.is_none()) return Buffer();
  if (!py::isinstance<py::array>(o)) dtype_error(std::string(what) + " must be a numpy array");
  const py::array a = py::reinterpret_borrow<py::array>(o);
  if (dtype_bytes(a, what) != bytes)
    dtype_error(std::string(what) + " is " + py::str(a.dtype()).cast<std::string>() + ", the plan wants another type");
  if (a.ndim() != 1) shape_error(std::string(what) + " must have one dimension, got " + std::to_string(a.ndim()));
  if (a.size() == 0) shape_error(std::string(what) + " has no values");  // an empty buffer would mean None
  Buffer out(a.size() * bytes);
  const char* from = static_cast<const char*>(a.data());
  for (py::ssize_t i = 0; i < a.size(); ++i) __builtin_memcpy(out.data() + i * bytes, from + i * a.strides(0), static_cast<size_t>(bytes));
  return out;
}

std::shared_ptr<Parameter> make_parameter(const py::array& a, const py::object& scale, bool trainable) {
  const int bytes = dtype_bytes(a, "a weight");
  if (a.ndim() != 5 && a.ndim() != 1)
    shape_error("a weight has five dimensions (T, R, S, C/groups, K), a vector one, got " + std::to_string(a.ndim()));
  if (!(a.flags() & py::array::c_style)) shape_error("a weight must be C-contiguous");
  std::array<int64_t, 5> shape{1, 1, 1, 1, 1};
  for (int i = 0; i < a.ndim(); ++i) shape[5 - a.ndim() + i] = a.shape(i);
  Buffer s = vector(scale, bytes, "scale");
  if (s.bytes() && s.bytes() != shape[4] * bytes) shape_error("scale needs " + std::to_string(shape[4]) + " values");
  // The array is released under the GIL, wherever the last plan that packs it dies.
  auto owner = std::shared_ptr<void>(new py::array(a), [](void* p) {
    const py::gil_scoped_acquire gil;
    delete static_cast<py::array*>(p);
  });
  return std::make_shared<Parameter>(shape, bytes, a.data(), std::move(owner), std::move(s), trainable);
}

std::shared_ptr<Parameter> strided_parameter(uintptr_t pointer, std::array<int64_t, 5> shape, std::array<int64_t, 4> strides,
                                             const std::string& dtype, bool trainable) {
  if (dtype != "float32" && dtype != "float64") dtype_error("a weight must be float32 or float64, got " + dtype);
  return std::make_shared<Parameter>(shape, dtype == "float32" ? 4 : 8, reinterpret_cast<const void*>(pointer), nullptr,
                                     Buffer(),  // NOLINT
                                     trainable, Layout{strides[0], strides[1], strides[2], strides[3]});
}

// How a caller's arrays are shaped: as plans see them, (N, D, H, W, C) and totals of four dimensions, or as torch has them, (N, C, ...) of that many
// dimensions and totals as vectors.
constexpr int kPlanShaped = 0;

External external(const Plan& plan, const py::object& o, int64_t& n, size_t i, int torch_axes) {
  const std::string what = "input " + std::to_string(i);
  const int id = plan.inputs()[i], bytes = plan.is_index(id) ? 8 : plan.element_bytes();
  const Dims& dims = plan.dims(id);
  if (!py::isinstance<py::array>(o)) dtype_error(what + " must be a numpy array");
  const py::array a = py::reinterpret_borrow<py::array>(o);
  if (plan.is_index(id)) {
    if (!a.dtype().equal(py::dtype::of<int64_t>())) dtype_error(what + " is " + py::str(a.dtype()).cast<std::string>() + ", wanted int64");
  } else if (dtype_bytes(a, what.c_str()) != bytes) {
    dtype_error(what + " is " + py::str(a.dtype()).cast<std::string>() + ", wanted " + (bytes == 4 ? "float32" : "float64"));
  }
  if (plan.is_total(id)) {
    const int rank = torch_axes == kPlanShaped ? 4 : 1;
    bool fits = a.ndim() == rank && (rank == 4 || dims[0] * dims[1] * dims[2] == 1);
    for (int d = 4 - rank; fits && d < 4; ++d) fits = a.shape(d - (4 - rank)) == dims[d];
    if (!fits) shape_error(what + " has the shape " + py::str(a.attr("shape")).cast<std::string>() + ", wanted " + text(dims));
    if (!(a.flags() & py::array::c_style)) unsupported(what + ", one for the batch, must be C-contiguous");
    return {const_cast<void*>(a.data()), 0, dims[1] * dims[2] * dims[3], dims[2] * dims[3], dims[3], 1};
  }
  // The array's axis of each of n d h w c; -1: there is none.
  int axis[5] = {0, 1, 2, 3, 4};
  if (torch_axes != kPlanShaped) {
    for (int d = 1; d < 4; ++d) axis[d] = d - 4 + torch_axes > 1 ? d - 4 + torch_axes : -1;
    axis[4] = 1;
  }
  const auto size = [&](int d) { return axis[d] < 0 ? py::ssize_t{1} : a.shape(axis[d]); };
  bool fits = a.ndim() == (torch_axes == kPlanShaped ? 5 : torch_axes);
  for (int d = 0; fits && d < 4; ++d) fits = size(d + 1) == dims[d];
  if (!fits) shape_error(what + " has the shape " + py::str(a.attr("shape")).cast<std::string>() + ", wanted (N,) + " + text(dims));
  if (n < 0) n = a.shape(0);
  if (a.shape(0) != n) shape_error(what + " has " + std::to_string(a.shape(0)) + " images, the inputs before have " + std::to_string(n));
  int64_t stride[5];
  const int64_t dense[5] = {dims[0] * dims[1] * dims[2] * dims[3], dims[1] * dims[2] * dims[3], dims[2] * dims[3], dims[3], 1};
  for (int d = 0; d < 5; ++d) {
    // A dimension of one element is never stepped over: its stride may be anything.
    if (size(d) <= 1) stride[d] = dense[d];
    else if (a.strides(axis[d]) % bytes) unsupported(what + " has strides that are not a multiple of its elements");
    else stride[d] = a.strides(axis[d]) / bytes;
  }
  return {const_cast<void*>(a.data()), stride[0], stride[1], stride[2], stride[3], stride[4]};
}

struct Inputs {
  int64_t n = -1;
  std::vector<External> externals;
};

Inputs read_inputs(const Plan& plan, const std::vector<py::object>& arrays, int torch_axes = kPlanShaped) {
  if (arrays.size() != plan.inputs().size())
    shape_error("got " + std::to_string(arrays.size()) + " inputs, wanted " + std::to_string(plan.inputs().size()));
  Inputs in;
  for (size_t i = 0; i < arrays.size(); ++i) in.externals.push_back(external(plan, arrays[i], in.n, i, torch_axes));
  if (in.n < 0) shape_error("a plan needs an input that says how many images there are");
  return in;
}

// A new array; a large one lives in recycled memory, which it gives back when it dies.
py::array new_array(const py::dtype& type, const std::vector<py::ssize_t>& shape, const std::vector<py::ssize_t>& strides) {
  int64_t bytes = type.itemsize();
  for (py::ssize_t n : shape) bytes *= n;
  if (bytes < Recycled::kRecycleFrom) return py::array(type, shape, strides);
  auto owned = std::make_unique<Buffer>(Recycled::instance().take(bytes));
  void* data = owned->data();
  const py::capsule keeper(owned.get(), [](void* p) {
    const std::unique_ptr<Buffer> b(static_cast<Buffer*>(p));
    Recycled::instance().give_back(std::move(*b));
  });
  owned.release();
  return py::array(type, shape, strides, data, keeper);
}

std::vector<py::array> make_outputs(const Plan& plan, int64_t n, bool channels_first, int torch_axes, std::vector<void*>& pointers) {
  std::vector<py::array> arrays;
  for (int t : plan.outputs()) {
    const Dims& d = plan.dims(t);
    const py::dtype type = plan.is_index(t)            ? py::dtype::of<int64_t>()
                           : plan.element_bytes() == 4 ? py::dtype::of<float>()
                                                       : py::dtype::of<double>();
    // In the order of memory; then, for torch, the axes (N, C, ...) of it, without the dimensions before the last ones.
    std::vector<py::ssize_t> shape, strides;
    if (plan.is_total(t)) shape = {d[0], d[1], d[2], d[3]};
    else if (channels_first) shape = {n, d[3], d[0], d[1], d[2]};
    else shape = {n, d[0], d[1], d[2], d[3]};
    strides.assign(shape.size(), type.itemsize());
    for (size_t i = shape.size() - 1; i-- > 0;) strides[i] = strides[i + 1] * std::max<py::ssize_t>(shape[i + 1], 1);
    if (torch_axes != kPlanShaped && plan.is_total(t)) {
      if (d[0] * d[1] * d[2] == 1) shape = {shape[3]}, strides = {strides[3]};
    } else if (torch_axes != kPlanShaped) {
      const int c = channels_first ? 1 : 4, first = (channels_first ? 7 : 6) - torch_axes, last = channels_first ? 5 : 4;
      std::vector<py::ssize_t> s = {shape[0], shape[c]}, st = {strides[0], strides[c]};
      for (int i = first; i < last; ++i) s.push_back(shape[i]), st.push_back(strides[i]);
      shape = s, strides = st;
    }
    arrays.push_back(new_array(type, shape, strides));
    pointers.push_back(arrays.back().mutable_data());
  }
  return arrays;
}

int threads_or_default(int threads) {
  if (threads < 0) shape_error("threads must be positive, or 0 for the default, got " + std::to_string(threads));
  return threads ? threads : num_threads();
}

PoolProblem pool_problem(const std::string& kind, const Triple& out, bool indices) {
  PoolProblem p{};
  if (kind != "max" && kind != "avg") unsupported("a pooling is 'max' or 'avg', got '" + kind + "'");
  p.kind = kind == "max" ? PoolKind::kMax : PoolKind::kAvg;
  if (indices && p.kind != PoolKind::kMax) unsupported("only max pooling gives indices");
  p.z = out[0], p.p = out[1], p.q = out[2];
  p.indices = indices;
  p.t = p.r = p.s = p.stride_d = p.stride_h = p.stride_w = p.dil_d = p.dil_h = p.dil_w = 1;
  return p;
}

py::object pool_result(std::pair<int, int> ids, bool indices) {
  if (indices) return py::make_tuple(ids.first, ids.second);
  return py::int_(ids.first);
}

MapKind map_kind(const std::string& name) {
  static const std::map<std::string, MapKind> kinds = {{"add", MapKind::kAdd}, {"sub", MapKind::kSub}, {"mul", MapKind::kMul},
                                                       {"div", MapKind::kDiv}, {"max", MapKind::kMax}, {"min", MapKind::kMin}};
  const auto it = kinds.find(name);
  if (it == kinds.end()) unsupported("no elementwise operator is called '" + name + "'");
  return it->second;
}

Border border(const std::string& mode) {
  static const std::map<std::string, Border> kinds = {
      {"constant", Border::kConstant}, {"reflect", Border::kReflect}, {"replicate", Border::kReplicate}, {"circular", Border::kCircular}};
  const auto it = kinds.find(mode);
  if (it == kinds.end()) unsupported("no padding mode is called '" + mode + "'");
  return it->second;
}

ResizeKind resize_kind(const std::string& mode) {
  static const std::map<std::string, ResizeKind> kinds = {{"nearest", ResizeKind::kNearest},
                                                          {"nearest-exact", ResizeKind::kNearestExact},
                                                          {"linear", ResizeKind::kLinear},
                                                          {"cubic", ResizeKind::kCubic}};
  const auto it = kinds.find(mode);
  if (it == kinds.end()) unsupported("no resize mode is called '" + mode + "'");
  return it->second;
}

// A vector that a plan copies when it is built, or (training) one that it reads when it runs: a Parameter, or the id of a total.
struct Vector {
  Buffer copy;
  int live = -1;
};

int live_vector(Plan& plan, const py::object& o) {
  if (o.is_none()) return -1;
  if (py::isinstance<Parameter>(o)) return plan.parameter(o.cast<std::shared_ptr<Parameter>>());
  if (py::isinstance<py::int_>(o)) return o.cast<int>();
  dtype_error("wanted a Parameter, the id of a total, or None, got " + py::str(py::type::of(o)).cast<std::string>());
}

Vector any_vector(Plan& plan, const py::object& o, const char* what) {
  if (py::isinstance<Parameter>(o) || py::isinstance<py::int_>(o)) return {Buffer(), live_vector(plan, o)};
  return {vector(o, plan.element_bytes(), what), -1};
}

PoolProblem window_problem(const std::string& kind, const Triple& out, const Triple& window, const Triple& stride, const Triple& pad_lo,
                           const Triple& pad_hi, const Triple& dilation, bool count_include_pad, int64_t divisor, bool indices) {
  PoolProblem p = pool_problem(kind, out, indices);
  p.t = window[0], p.r = window[1], p.s = window[2];
  p.stride_d = stride[0], p.stride_h = stride[1], p.stride_w = stride[2];
  p.pad_d_lo = pad_lo[0], p.pad_h_lo = pad_lo[1], p.pad_w_lo = pad_lo[2];
  p.pad_d_hi = pad_hi[0], p.pad_h_hi = pad_hi[1], p.pad_w_hi = pad_hi[2];
  p.dil_d = dilation[0], p.dil_h = dilation[1], p.dil_w = dilation[2];
  for (int i = 0; i < 3; ++i) {
    if (window[i] < 1 || stride[i] < 1 || dilation[i] < 1) shape_error("window, stride and dilation of a pooling must be positive");
    if (pad_lo[i] < 0 || pad_hi[i] < 0) shape_error("the padding of a pooling must not be negative");
  }
  p.count_include_pad = count_include_pad, p.divisor = divisor;
  return p;
}

ResizeProblem resize_problem(const Dims& in, const Triple& out, const std::string& mode, bool align_corners,
                             const std::array<double, 3>& scales) {
  ResizeProblem p{};
  p.z = out[0], p.p = out[1], p.q = out[2];
  p.kind = resize_kind(mode), p.align_corners = align_corners;
  double* const scale[3] = {&p.scale_d, &p.scale_h, &p.scale_w};
  for (int i = 0; i < 3; ++i) {
    if (out[i] < 1) shape_error("a resized image needs at least one pixel, got " + std::to_string(out[i]));
    *scale[i] = align_corners   ? (out[i] > 1 ? static_cast<double>(in[i] - 1) / static_cast<double>(out[i] - 1) : 0.0)
                : scales[i] > 0 ? scales[i]
                                : static_cast<double>(in[i]) / static_cast<double>(out[i]);
  }
  return p;
}

LossKind loss_kind(const std::string& name) {
  static const std::map<std::string, LossKind> kinds = {{"softmax_sparse", LossKind::kSparse},
                                                        {"softmax_dense", LossKind::kDense},
                                                        {"sigmoid", LossKind::kSigmoid},
                                                        {"squared", LossKind::kSquared},
                                                        {"absolute", LossKind::kAbsolute}};
  const auto it = kinds.find(name);
  if (it == kinds.end()) unsupported("no loss is called '" + name + "'");
  return it->second;
}

py::list steps(const Plan& plan) {
  py::list out;
  for (const Plan::Info& i : plan.infos()) {
    py::dict d;
    d["label"] = i.label, d["op"] = i.op, d["kernel"] = i.kernel, d["why"] = i.why, d["refused"] = i.refused;
    d["shape_in"] = py::make_tuple(i.in[0], i.in[1], i.in[2], i.in[3]);
    d["shape_out"] = py::make_tuple(i.out[0], i.out[1], i.out[2], i.out[3]);
    d["macs"] = i.macs, d["bytes"] = i.bytes, d["workspace_bytes"] = i.workspace, d["packed_bytes"] = i.packed, d["cost_us"] = i.cost,
    d["key"] = i.key, d["tuned_us"] = i.tuned_us;
    out.append(d);
  }
  return out;
}

}  // namespace

void register_plan(py::module_& m) {
  using namespace pybind11::literals;  // NOLINT: the argument names below
  py::class_<Parameter, std::shared_ptr<Parameter>>(m, "Parameter",
                                                    "A weight (T, R, S, C/groups, K), kept by reference, and its packed forms.")
      .def(py::init(&make_parameter), "array"_a, "scale"_a = py::none(), "trainable"_a = false,
           "trainable: training plans pack it on every run, into memory that all layers share.")
      .def_static(
          "from_device",
          [](uint64_t pointer, std::array<int64_t, 5> shape, std::array<int64_t, 5> strides, int element, const py::object& owner) {
            auto kept = std::shared_ptr<void>(new py::object(owner), [](void* p) {
              const py::gil_scoped_acquire gil;
              delete static_cast<py::object*>(p);
            });
            auto parameter = std::make_shared<Parameter>(shape, 4, nullptr, std::move(kept), Buffer());
            parameter->device_data = {reinterpret_cast<const void*>(pointer), strides, element};
            return parameter;
          },
          "pointer"_a, "shape"_a, "strides"_a, "element"_a, "owner"_a, "A weight that lies on a device already, for recorded plans.")
      .def_static("strided", &strided_parameter, "pointer"_a, "shape"_a, "strides"_a, "dtype"_a, "trainable"_a = false,
                  "A weight in the caller's memory, in another order: steps from tap, channel, filter, group to the next.")
      .def_property_readonly("shape", [](const Parameter& p) { return py::tuple(py::cast(p.shape)); })
      .def("touch", &Parameter::touch, "The values were changed in place: the next run packs them again.")
      .def_property_readonly("packed_bytes", &Parameter::packed_bytes);

  m.def(
      "slope_from_output", [](const std::string& act, double a, double b) { return slope_from_output(activation(act, a, b)); }, "act"_a,
      "act_a"_a = 0.0, "act_b"_a = 0.0, "Whether the gradient of an activation needs its output (else its input).");

  py::class_<Plan, std::shared_ptr<Plan>>(
      m, "Plan", "A network as steps over one arena. Shapes are (D, H, W, C) of one image; methods that add a step return a tensor id.")
      .def(py::init([](const std::string& dtype, bool exact, bool lean, bool strips, bool record, bool training, bool bf16) {
             if (dtype != "float32" && dtype != "float64") dtype_error("a plan computes in float32 or float64, got " + dtype);
             Plan::Kind kind;
             kind.float64 = dtype == "float64", kind.exact = exact, kind.lean = lean, kind.strips = strips, kind.record = record;
             kind.training = training, kind.bf16 = bf16;
             return std::make_shared<Plan>(kind);
           }),
           "dtype"_a = "float32", "exact"_a = false, "lean"_a = false, "strips"_a = true, "record"_a = false, "training"_a = false,
           "bf16"_a = false)
      .def("input", &Plan::input, "shape"_a)
      .def("buffer", &Plan::buffer, "shape"_a)
      .def("channel_slice", &Plan::channel_slice, "x"_a, "first"_a, "count"_a)
      .def("reshape", &Plan::reshape, "x"_a, "shape"_a)
      .def(
          "conv",
          [](Plan& plan, int x, const std::shared_ptr<Parameter>& weight, const py::object& bias, int residual, Triple stride,
             Triple pad_lo, Triple pad_hi, Triple dilation, int64_t groups, bool transposed, Triple output_padding, const std::string& act,
             double act_a, double act_b, const std::string& algo, int out, const std::string& label) {
            const Plan::ConvOptions o{stride, pad_lo, pad_hi, dilation, output_padding, groups, transposed, activation(act, act_a, act_b),
                                      algo};
            Vector b = any_vector(plan, bias, "bias");
            return plan.conv(x, weight, std::move(b.copy), residual, o, out, label, b.live);
          },
          "x"_a, "weight"_a, "bias"_a = py::none(), "residual"_a = -1, py::kw_only(), "stride"_a = Triple{1, 1, 1},
          "pad_lo"_a = Triple{0, 0, 0}, "pad_hi"_a = Triple{0, 0, 0}, "dilation"_a = Triple{1, 1, 1}, "groups"_a = 1,
          "transposed"_a = false, "output_padding"_a = Triple{0, 0, 0}, "act"_a = "none", "act_a"_a = 0.0, "act_b"_a = 0.0, "algo"_a = "",
          "out"_a = -1, "label"_a = "")
      .def(
          "pool",
          [](Plan& plan, int x, const std::string& kind, Triple window, Triple stride, Triple pad_lo, Triple pad_hi, Triple dilation,
             Triple out, bool count_include_pad, int64_t divisor, bool indices, int target, const std::string& label) {
            const PoolProblem p =
                window_problem(kind, out, window, stride, pad_lo, pad_hi, dilation, count_include_pad, divisor, indices);
            return pool_result(plan.pool(x, p, target, label), indices);
          },
          "x"_a, "kind"_a, py::kw_only(), "window"_a, "stride"_a, "pad_lo"_a = Triple{0, 0, 0}, "pad_hi"_a = Triple{0, 0, 0},
          "dilation"_a = Triple{1, 1, 1}, "out"_a, "count_include_pad"_a = true, "divisor"_a = 0, "indices"_a = false, "target"_a = -1,
          "label"_a = "")
      .def(
          "adaptive_pool",
          [](Plan& plan, int x, const std::string& kind, Triple out, bool indices, int target, const std::string& label) {
            PoolProblem p = pool_problem(kind, out, indices);
            p.adaptive = 1;
            return pool_result(plan.pool(x, p, target, label), indices);
          },
          "x"_a, "kind"_a, py::kw_only(), "out"_a, "indices"_a = false, "target"_a = -1, "label"_a = "")
      .def(
          "scale_shift",
          [](Plan& plan, int x, const py::object& scale, const py::object& shift, const std::string& act, double a, double b,
             const std::string& label) {
            NormProblem p{};
            p.kind = NormKind::kScaleShift, p.act = activation(act, a, b);
            Vector a1 = any_vector(plan, scale, "scale"), b1 = any_vector(plan, shift, "shift");
            return plan.norm(x, p, std::move(a1.copy), std::move(b1.copy), "scale_shift", label, a1.live, b1.live);
          },
          "x"_a, "scale"_a, "shift"_a, "act"_a = "none", "act_a"_a = 0.0, "act_b"_a = 0.0, "label"_a = "")
      .def(
          "layer_norm",
          [](Plan& plan, int x, const py::object& gamma, const py::object& beta, double eps, const std::string& label) {
            NormProblem p{};
            p.kind = NormKind::kLayerNorm, p.eps = eps;
            Vector g = any_vector(plan, gamma, "gamma"), b = any_vector(plan, beta, "beta");
            return plan.norm(x, p, std::move(g.copy), std::move(b.copy), "layer_norm", label, g.live, b.live);
          },
          "x"_a, "gamma"_a, "beta"_a, "eps"_a, "label"_a = "")
      .def(
          "lrn",
          [](Plan& plan, int x, int64_t size, double alpha, double beta, double k, const std::string& label) {
            if (size < 1) shape_error("the size of a local response norm must be positive, got " + std::to_string(size));
            NormProblem p{};
            p.kind = NormKind::kLrn, p.size = size, p.alpha = alpha, p.beta = beta, p.k = k;
            return plan.norm(x, p, Buffer(), Buffer(), "lrn", label);
          },
          "x"_a, "size"_a, "alpha"_a, "beta"_a, "k"_a, "label"_a = "")
      .def(
          "softmax",
          [](Plan& plan, int x, bool log, const std::string& label) {
            NormProblem p{};
            p.kind = log ? NormKind::kLogSoftmax : NormKind::kSoftmax;
            return plan.norm(x, p, Buffer(), Buffer(), log ? "log_softmax" : "softmax", label);
          },
          "x"_a, "log"_a = false, "label"_a = "")
      .def(
          "activation",
          [](Plan& plan, int x, const std::string& act, double a, double b, const std::string& label) {
            return plan.map(x, -1, MapKind::kUnary, activation(act, a, b), act, label);
          },
          "x"_a, "act"_a, "act_a"_a = 0.0, "act_b"_a = 0.0, "label"_a = "")
      .def(
          "binary",
          [](Plan& plan, int a, int b, const std::string& op, const std::string& act, double act_a, double act_b,
             const std::string& label) { return plan.map(a, b, map_kind(op), activation(act, act_a, act_b), op, label); },
          "a"_a, "b"_a, "op"_a, "act"_a = "none", "act_a"_a = 0.0, "act_b"_a = 0.0, "label"_a = "")
      .def("concat", &Plan::concat, "xs"_a, "axis"_a, "label"_a = "")
      .def(
          "pad",
          [](Plan& plan, int x, Dims lo, Dims hi, const std::string& mode, double value, const std::string& label) {
            return plan.pad(x, lo, hi, border(mode), value, label);
          },
          "x"_a, "lo"_a, "hi"_a, "mode"_a = "constant", "value"_a = 0.0, "label"_a = "")
      .def("transpose", &Plan::transpose, "x"_a, "perm"_a, "label"_a = "")
      .def(
          "resize",
          [](Plan& plan, int x, Triple out, const std::string& mode, bool align_corners, std::array<double, 3> scales,
             const std::string& label) {
            const ResizeProblem p = resize_problem(plan.dims(x), out, mode, align_corners, scales);
            return plan.resize(x, p, label);
          },
          "x"_a, "out"_a, "mode"_a = "nearest", "align_corners"_a = false, "scales"_a = std::array<double, 3>{0, 0, 0}, "label"_a = "")
      .def("total_input", &Plan::total_input, "shape"_a, "An input without the image dimension: one for the batch.")
      .def("index_input", &Plan::index_input, "shape"_a, "An input of int64 positions, as max pooling writes them.")
      .def("parameter", &Plan::parameter, "parameter"_a, "The values of a Parameter (T,R,S,C/G*K) as a total, read when the plan runs.")
      .def(
          "conv_backward_data",
          [](Plan& plan, int dy, const std::shared_ptr<Parameter>& weight, Dims in_shape, Triple stride, Triple pad_lo, Triple pad_hi,
             Triple dilation, int64_t groups, bool transposed, int add, const std::string& algo, const std::string& label) {
            const Plan::ConvOptions o{stride, pad_lo, pad_hi, dilation, {0, 0, 0}, groups, transposed, {Act::kNone, 0, 0}, algo};
            return plan.conv_backward_data(dy, weight, in_shape, add, o, label);
          },
          "dy"_a, "weight"_a, "in_shape"_a, py::kw_only(), "stride"_a = Triple{1, 1, 1}, "pad_lo"_a = Triple{0, 0, 0},
          "pad_hi"_a = Triple{0, 0, 0}, "dilation"_a = Triple{1, 1, 1}, "groups"_a = 1, "transposed"_a = false, "add"_a = -1,
          "algo"_a = "", "label"_a = "")
      .def(
          "conv_backward_weight",
          [](Plan& plan, int x, int dy, Triple kernel, Triple stride, Triple pad_lo, Triple pad_hi, Triple dilation, int64_t groups,
             bool transposed, const std::string& algo, const std::string& label) {
            const Plan::ConvOptions o{stride, pad_lo, pad_hi, dilation, {0, 0, 0}, groups, transposed, {Act::kNone, 0, 0}, algo};
            return plan.conv_backward_weight(x, dy, kernel, o, label);
          },
          "x"_a, "dy"_a, py::kw_only(), "kernel"_a, "stride"_a = Triple{1, 1, 1}, "pad_lo"_a = Triple{0, 0, 0},
          "pad_hi"_a = Triple{0, 0, 0}, "dilation"_a = Triple{1, 1, 1}, "groups"_a = 1, "transposed"_a = false, "algo"_a = "",
          "label"_a = "")
      .def("sum", &Plan::sum, "x"_a, "times"_a = -1, py::kw_only(), "shape"_a, "total"_a = true, "factor"_a = 1.0, "mean"_a = false,
           "label"_a = "")
      .def(
          "max_pool_backward",
          [](Plan& plan, int dy, int index, Dims in_shape, Triple window, Triple stride, Triple pad_lo, Triple pad_hi, Triple dilation,
             const std::string& label) {
            const Dims out = plan.dims(dy);
            return plan.pool_backward(
                dy, index, in_shape,
                window_problem("max", {out[0], out[1], out[2]}, window, stride, pad_lo, pad_hi, dilation, true, 0, true), label);
          },
          "dy"_a, "index"_a, "in_shape"_a, py::kw_only(), "window"_a, "stride"_a, "pad_lo"_a = Triple{0, 0, 0},
          "pad_hi"_a = Triple{0, 0, 0}, "dilation"_a = Triple{1, 1, 1}, "label"_a = "")
      .def(
          "avg_pool_backward",
          [](Plan& plan, int dy, Dims in_shape, Triple window, Triple stride, Triple pad_lo, Triple pad_hi, Triple dilation,
             bool count_include_pad, int64_t divisor, const std::string& label) {
            const Dims out = plan.dims(dy);
            return plan.pool_backward(dy, -1, in_shape,
                                      window_problem("avg", {out[0], out[1], out[2]}, window, stride, pad_lo, pad_hi, dilation,
                                                     count_include_pad, divisor, false),
                                      label);
          },
          "dy"_a, "in_shape"_a, py::kw_only(), "window"_a, "stride"_a, "pad_lo"_a = Triple{0, 0, 0}, "pad_hi"_a = Triple{0, 0, 0},
          "dilation"_a = Triple{1, 1, 1}, "count_include_pad"_a = true, "divisor"_a = 0, "label"_a = "")
      .def(
          "adaptive_pool_backward",
          [](Plan& plan, int dy, Dims in_shape, const std::string& kind, int index, const std::string& label) {
            const Dims out = plan.dims(dy);
            PoolProblem p = pool_problem(kind, {out[0], out[1], out[2]}, kind == "max");
            p.adaptive = 1;
            return plan.pool_backward(dy, index, in_shape, p, label);
          },
          "dy"_a, "in_shape"_a, "kind"_a, "index"_a = -1, "label"_a = "")
      .def(
          "batch_norm_train",
          [](Plan& plan, int x, const py::object& gamma, const py::object& beta, double eps, int residual, const std::string& act,
             double act_a, double act_b, const std::string& label) {
            const Plan::BatchNorm r = plan.batch_norm_train(x, live_vector(plan, gamma), live_vector(plan, beta), residual, eps,
                                                            activation(act, act_a, act_b), label);
            return py::make_tuple(r.y, r.mean, r.var);
          },
          "x"_a, "gamma"_a, "beta"_a, "eps"_a, py::kw_only(), "residual"_a = -1, "act"_a = "none", "act_a"_a = 0.0, "act_b"_a = 0.0,
          "label"_a = "", "(y, mean, biased variance)")
      .def(
          "batch_norm_backward",
          [](Plan& plan, int dy, int x, int mean, int var, const py::object& gamma, const py::object& beta, double eps,
             const std::string& act, double act_a, double act_b, const std::string& label) {
            const Plan::NormGrad r = plan.batch_norm_backward(dy, x, mean, var, live_vector(plan, gamma), live_vector(plan, beta), eps,
                                                              activation(act, act_a, act_b), label);
            return py::make_tuple(r.dx, r.dscale, r.dshift);
          },
          "dy"_a, "x"_a, "mean"_a, "var"_a, "gamma"_a, "beta"_a, "eps"_a, py::kw_only(), "act"_a = "none", "act_a"_a = 0.0,
          "act_b"_a = 0.0, "label"_a = "", "(dx, dgamma, dbeta); beta matters only to an activation")
      .def(
          "scale_shift_backward",
          [](Plan& plan, int dy, int x, const py::object& scale, const std::string& label) {
            const Plan::NormGrad r = plan.scale_shift_backward(dy, x, live_vector(plan, scale), label);
            return py::make_tuple(r.dx, r.dscale, r.dshift);
          },
          "dy"_a, "x"_a, "scale"_a, "label"_a = "")
      .def(
          "layer_norm_backward",
          [](Plan& plan, int dy, int x, const py::object& gamma, double eps, const std::string& label) {
            NormProblem p{};
            p.kind = NormKind::kLayerNorm, p.eps = eps;
            const Plan::NormGrad r = plan.norm_backward(dy, x, p, live_vector(plan, gamma), "layer_norm_backward", label);
            return py::make_tuple(r.dx, r.dscale, r.dshift);
          },
          "dy"_a, "x"_a, "gamma"_a, "eps"_a, "label"_a = "")
      .def(
          "lrn_backward",
          [](Plan& plan, int dy, int x, int64_t size, double alpha, double beta, double k, const std::string& label) {
            if (size < 1) shape_error("the size of a local response norm must be positive, got " + std::to_string(size));
            NormProblem p{};
            p.kind = NormKind::kLrn, p.size = size, p.alpha = alpha, p.beta = beta, p.k = k;
            return plan.norm_backward(dy, x, p, -1, "lrn_backward", label).dx;
          },
          "dy"_a, "x"_a, "size"_a, "alpha"_a, "beta"_a, "k"_a, "label"_a = "")
      .def(
          "softmax_backward",
          [](Plan& plan, int dy, int y, bool log, const std::string& label) {
            NormProblem p{};
            p.kind = log ? NormKind::kLogSoftmax : NormKind::kSoftmax;
            return plan.norm_backward(dy, y, p, -1, log ? "log_softmax_backward" : "softmax_backward", label).dx;
          },
          "dy"_a, "y"_a, "log"_a = false, "label"_a = "")
      .def(
          "activation_backward",
          [](Plan& plan, int dy, int saved, const std::string& act, double a, double b, const std::string& label) {
            return plan.activation_backward(dy, saved, activation(act, a, b), label);
          },
          "dy"_a, "saved"_a, "act"_a, "act_a"_a = 0.0, "act_b"_a = 0.0, "label"_a = "",
          "`saved` is the activation's output where slope_from_output() says so, else its input.")
      .def(
          "binary_backward",
          [](Plan& plan, int dy, int a, int b, const std::string& op, bool need_a, bool need_b, const std::string& label) {
            return plan.binary_backward(dy, a, b, map_kind(op), need_a, need_b, label);
          },
          "dy"_a, "a"_a, "b"_a, "op"_a, "need_a"_a = true, "need_b"_a = true, "label"_a = "")
      .def("dropout", &Plan::dropout, "x"_a, "step"_a = -1, py::kw_only(), "rate"_a, "seed"_a = 0, "per_image"_a = false, "label"_a = "",
           "The mask depends on the seed, the step (a total of one number) and the element; on dy it is the gradient.")
      .def(
          "loss",
          [](Plan& plan, int x, int target, const std::string& kind, int weight, double smoothing, bool mean, double scale,
             const std::string& label) {
            LossProblem p{};
            p.kind = loss_kind(kind), p.smoothing = smoothing, p.mean = mean, p.scale = scale;
            return plan.loss(x, target, weight, p, label);
          },
          "x"_a, "target"_a, "kind"_a, "weight"_a = -1, py::kw_only(), "smoothing"_a = 0.0, "mean"_a = true, "scale"_a = 1.0, "label"_a = "",
          "(the loss of each pixel, dx): softmax_sparse, softmax_dense, sigmoid (of logits), squared, absolute.")
      .def(
          "pad_backward",
          [](Plan& plan, int dy, Dims in_shape, Dims lo, Dims hi, const std::string& mode, const std::string& label) {
            return plan.pad_backward(dy, in_shape, lo, hi, border(mode), label);
          },
          "dy"_a, "in_shape"_a, "lo"_a, "hi"_a, "mode"_a = "constant", "label"_a = "")
      .def(
          "resize_backward",
          [](Plan& plan, int dy, Dims in_shape, const std::string& mode, bool align_corners, std::array<double, 3> scales,
             const std::string& label) {
            const Dims out = plan.dims(dy);
            return plan.resize_backward(dy, in_shape, resize_problem(in_shape, {out[0], out[1], out[2]}, mode, align_corners, scales), label);
          },
          "dy"_a, "in_shape"_a, "mode"_a = "nearest", "align_corners"_a = false, "scales"_a = std::array<double, 3>{0, 0, 0}, "label"_a = "")
      .def("is_total", &Plan::is_total, "x"_a)
      .def("finish", &Plan::finish, "outputs"_a)
      .def(
          "run",
          [](Plan& plan, const std::vector<py::object>& arrays, int threads, bool channels_first, int torch_axes) {
            threads = threads_or_default(threads);
            if (torch_axes != kPlanShaped && (torch_axes < 2 || torch_axes > 5))
              shape_error("torch_axes is 0 or from 2 to 5, got " + std::to_string(torch_axes));
            const Inputs in = read_inputs(plan, arrays, torch_axes);
            std::vector<void*> pointers;
            std::vector<py::array> out = make_outputs(plan, in.n, channels_first, torch_axes, pointers);
            {
              const py::gil_scoped_release release;
              plan.run(in.n, in.externals, pointers, channels_first, threads);
            }
            return out;
          },
          "inputs"_a, "threads"_a = 0, "channels_first"_a = false, "torch_axes"_a = kPlanShaped,
          "torch_axes: inputs and results are (N, C, ...) of so many dimensions, and totals vectors.")
      .def(
          "profile",
          [](Plan& plan, const std::vector<py::object>& arrays, int threads, int repeat) {
            threads = threads_or_default(threads);
            const Inputs in = read_inputs(plan, arrays);
            std::vector<void*> pointers;
            const std::vector<py::array> out = make_outputs(plan, in.n, false, kPlanShaped, pointers);
            std::vector<double> best, seconds;
            const py::gil_scoped_release release;
            for (int i = 0; i < repeat; ++i) {
              plan.run(in.n, in.externals, pointers, false, threads, &seconds);
              if (best.empty()) best = seconds;
              for (size_t s = 0; s < best.size(); ++s) best[s] = std::min(best[s], seconds[s]);
            }
            return best;
          },
          "inputs"_a, "threads"_a = 0, "repeat"_a = 1)
      .def("steps", &steps)
      .def("shape", &Plan::dims, "x"_a)
      .def_property_readonly("arena_bytes", [](const Plan& plan) { return plan.arena_elements() * plan.element_bytes(); })
      .def_property_readonly("total_bytes", [](const Plan& plan) { return plan.total_elements() * plan.element_bytes(); },
                             "Memory for totals, whatever the number of images.");
}

}  // namespace ck
