// plan.cpp (binding): Plan and Parameter for Python. Checks types and copies small things; all decisions are in plan/.
#include "plan/plan.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>
#include <limits>

#include "bind/bind.h"
#include "bind/outputs.h"
#include "core/parallel.h"

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

std::shared_ptr<Parameter> make_parameter(const py::array& a, const py::object& scale) {
  const int bytes = dtype_bytes(a, "a weight");
  if (a.ndim() != 5) shape_error("a weight has five dimensions (T, R, S, C/groups, K), got " + std::to_string(a.ndim()));
  if (!(a.flags() & py::array::c_style)) shape_error("a weight must be C-contiguous");
  std::array<int64_t, 5> shape{};
  for (int i = 0; i < 5; ++i) shape[i] = a.shape(i);
  Buffer s = vector(scale, bytes, "scale");
  if (s.bytes() && s.bytes() != shape[4] * bytes) shape_error("scale needs " + std::to_string(shape[4]) + " values");
  // The array is released under the GIL, wherever the last plan that packs it dies.
  auto owner = std::shared_ptr<void>(new py::array(a), [](void* p) {
    const py::gil_scoped_acquire gil;
    delete static_cast<py::array*>(p);
  });
  return std::make_shared<Parameter>(shape, bytes, a.data(), std::move(owner), std::move(s));
}

External external(const py::object& o, const Dims& dims, int bytes, int64_t& n, size_t i) {
  const std::string what = "input " + std::to_string(i);
  if (!py::isinstance<py::array>(o)) dtype_error(what + " must be a numpy array");
  const py::array a = py::reinterpret_borrow<py::array>(o);
  if (dtype_bytes(a, what.c_str()) != bytes)
    dtype_error(what + " is " + py::str(a.dtype()).cast<std::string>() + ", wanted " + (bytes == 4 ? "float32" : "float64"));
  bool fits = a.ndim() == 5;
  for (int d = 0; fits && d < 4; ++d) fits = a.shape(d + 1) == dims[d];
  if (!fits) shape_error(what + " has the shape " + py::str(a.attr("shape")).cast<std::string>() + ", wanted (N,) + " + text(dims));
  if (i == 0) n = a.shape(0);
  if (a.shape(0) != n) shape_error(what + " has " + std::to_string(a.shape(0)) + " images, input 0 has " + std::to_string(n));
  int64_t stride[5];
  const int64_t dense[5] = {dims[0] * dims[1] * dims[2] * dims[3], dims[1] * dims[2] * dims[3], dims[2] * dims[3], dims[3], 1};
  for (int d = 0; d < 5; ++d) {
    // A dimension of one element is never stepped over: its stride may be anything.
    if (a.shape(d) <= 1) stride[d] = dense[d];
    else if (a.strides(d) % bytes) unsupported(what + " has strides that are not a multiple of its elements");
    else stride[d] = a.strides(d) / bytes;
  }
  return {const_cast<void*>(a.data()), stride[0], stride[1], stride[2], stride[3], stride[4]};
}

struct Inputs {
  int64_t n = 0;
  std::vector<External> externals;
};

Inputs read_inputs(const Plan& plan, const std::vector<py::object>& arrays) {
  if (arrays.size() != plan.inputs().size())
    shape_error("got " + std::to_string(arrays.size()) + " inputs, wanted " + std::to_string(plan.inputs().size()));
  Inputs in;
  for (size_t i = 0; i < arrays.size(); ++i)
    in.externals.push_back(external(arrays[i], plan.dims(plan.inputs()[i]), plan.element_bytes(), in.n, i));
  return in;
}

// A new array; a large one lives in recycled memory, which it gives back when it dies.
py::array new_array(const py::dtype& type, const std::vector<py::ssize_t>& shape) {
  int64_t bytes = type.itemsize();
  for (py::ssize_t n : shape) bytes *= n;
  if (bytes < Outputs::kRecycleFrom) return py::array(type, shape);
  auto owned = std::make_unique<Buffer>(Outputs::instance().take(bytes));
  void* data = owned->data();
  const py::capsule keeper(owned.get(), [](void* p) {
    const std::unique_ptr<Buffer> b(static_cast<Buffer*>(p));
    Outputs::instance().give_back(std::move(*b));
  });
  owned.release();
  return py::array(type, shape, data, keeper);
}

std::vector<py::array> make_outputs(const Plan& plan, int64_t n, bool channels_first, std::vector<void*>& pointers) {
  std::vector<py::array> arrays;
  for (int t : plan.outputs()) {
    const Dims& d = plan.dims(t);
    const std::vector<py::ssize_t> shape =
        channels_first ? std::vector<py::ssize_t>{n, d[3], d[0], d[1], d[2]} : std::vector<py::ssize_t>{n, d[0], d[1], d[2], d[3]};
    const py::dtype type = plan.is_index(t)            ? py::dtype::of<int64_t>()
                           : plan.element_bytes() == 4 ? py::dtype::of<float>()
                                                       : py::dtype::of<double>();
    arrays.push_back(new_array(type, shape));
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
      .def(py::init(&make_parameter), "array"_a, "scale"_a = py::none())
      .def_property_readonly("shape", [](const Parameter& p) { return py::tuple(py::cast(p.shape)); })
      .def_property_readonly("packed_bytes", &Parameter::packed_bytes);

  py::class_<Plan>(m, "Plan",
                   "A network as steps over one arena. Shapes are (D, H, W, C) of one image; methods that add a step return a tensor id.")
      .def(py::init([](const std::string& dtype, bool exact, bool lean, bool strips, bool bf16) {
             if (dtype != "float32" && dtype != "float64") dtype_error("a plan computes in float32 or float64, got " + dtype);
             return std::make_unique<Plan>(dtype == "float64", exact, lean, strips, bf16);
           }),
           "dtype"_a = "float32", "exact"_a = false, "lean"_a = false, "strips"_a = true, "bf16"_a = false)
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
            return plan.conv(x, weight, vector(bias, plan.element_bytes(), "bias"), residual, o, out, label);
          },
          "x"_a, "weight"_a, "bias"_a = py::none(), "residual"_a = -1, py::kw_only(), "stride"_a = Triple{1, 1, 1},
          "pad_lo"_a = Triple{0, 0, 0}, "pad_hi"_a = Triple{0, 0, 0}, "dilation"_a = Triple{1, 1, 1}, "groups"_a = 1,
          "transposed"_a = false, "output_padding"_a = Triple{0, 0, 0}, "act"_a = "none", "act_a"_a = 0.0, "act_b"_a = 0.0, "algo"_a = "",
          "out"_a = -1, "label"_a = "")
      .def(
          "pool",
          [](Plan& plan, int x, const std::string& kind, Triple window, Triple stride, Triple pad_lo, Triple pad_hi, Triple dilation,
             Triple out, bool count_include_pad, int64_t divisor, bool indices, int target, const std::string& label) {
            PoolProblem p = pool_problem(kind, out, indices);
            p.t = window[0], p.r = window[1], p.s = window[2];
            p.stride_d = stride[0], p.stride_h = stride[1], p.stride_w = stride[2];
            p.pad_d_lo = pad_lo[0], p.pad_h_lo = pad_lo[1], p.pad_w_lo = pad_lo[2];
            p.pad_d_hi = pad_hi[0], p.pad_h_hi = pad_hi[1], p.pad_w_hi = pad_hi[2];
            p.dil_d = dilation[0], p.dil_h = dilation[1], p.dil_w = dilation[2];
            for (int i = 0; i < 3; ++i) {
              if (window[i] < 1 || stride[i] < 1 || dilation[i] < 1)
                shape_error("window, stride and dilation of a pooling must be positive");
              if (pad_lo[i] < 0 || pad_hi[i] < 0) shape_error("the padding of a pooling must not be negative");
            }
            p.count_include_pad = count_include_pad, p.divisor = divisor;
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
            const int bytes = plan.element_bytes();
            return plan.norm(x, p, vector(scale, bytes, "scale"), vector(shift, bytes, "shift"), "scale_shift", label);
          },
          "x"_a, "scale"_a, "shift"_a, "act"_a = "none", "act_a"_a = 0.0, "act_b"_a = 0.0, "label"_a = "")
      .def(
          "layer_norm",
          [](Plan& plan, int x, const py::object& gamma, const py::object& beta, double eps, const std::string& label) {
            NormProblem p{};
            p.kind = NormKind::kLayerNorm, p.eps = eps;
            const int bytes = plan.element_bytes();
            return plan.norm(x, p, vector(gamma, bytes, "gamma"), vector(beta, bytes, "beta"), "layer_norm", label);
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
            ResizeProblem p{};
            p.z = out[0], p.p = out[1], p.q = out[2];
            p.kind = resize_kind(mode), p.align_corners = align_corners;
            const Dims in = plan.dims(x);
            double* const scale[3] = {&p.scale_d, &p.scale_h, &p.scale_w};
            for (int i = 0; i < 3; ++i) {
              if (out[i] < 1) shape_error("a resized image needs at least one pixel, got " + std::to_string(out[i]));
              *scale[i] = align_corners   ? (out[i] > 1 ? static_cast<double>(in[i] - 1) / static_cast<double>(out[i] - 1) : 0.0)
                          : scales[i] > 0 ? scales[i]
                                          : static_cast<double>(in[i]) / static_cast<double>(out[i]);
            }
            return plan.resize(x, p, label);
          },
          "x"_a, "out"_a, "mode"_a = "nearest", "align_corners"_a = false, "scales"_a = std::array<double, 3>{0, 0, 0}, "label"_a = "")
      .def("finish", &Plan::finish, "outputs"_a)
      .def(
          "run",
          [](Plan& plan, const std::vector<py::object>& arrays, int threads, bool channels_first) {
            threads = threads_or_default(threads);
            const Inputs in = read_inputs(plan, arrays);
            std::vector<void*> pointers;
            std::vector<py::array> out = make_outputs(plan, in.n, channels_first, pointers);
            {
              const py::gil_scoped_release release;
              plan.run(in.n, in.externals, pointers, channels_first, threads);
            }
            return out;
          },
          "inputs"_a, "threads"_a = 0, "channels_first"_a = false)
      .def(
          "profile",
          [](Plan& plan, const std::vector<py::object>& arrays, int threads, int repeat) {
            threads = threads_or_default(threads);
            const Inputs in = read_inputs(plan, arrays);
            std::vector<void*> pointers;
            const std::vector<py::array> out = make_outputs(plan, in.n, false, pointers);
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
      .def_property_readonly("arena_bytes", [](const Plan& plan) { return plan.arena_elements() * plan.element_bytes(); });
}

}  // namespace ck
