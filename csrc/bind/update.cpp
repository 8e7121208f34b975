// update.cpp (binding): steps of optimizers on lists of arrays, in place. One call serves all tensors of a model.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>

#include "bind/bind.h"
#include "core/parallel.h"
#include "dispatch/tables.h"

namespace py = pybind11;

namespace ck {
namespace {

struct Operand {
  void* data = nullptr;
  int64_t count = 0;
  int bytes = 0;
};

// A dense array of float32 or float64; None where it may be missing.
Operand operand(const py::object& o, bool written, const char* what) {
  if (o.is_none()) return {};
  if (!py::isinstance<py::array>(o)) dtype_error(std::string(what) + " must be a numpy array");
  py::array a = py::reinterpret_borrow<py::array>(o);
  const bool single = a.dtype().equal(py::dtype::of<float>());
  if (!single && !a.dtype().equal(py::dtype::of<double>()))
    dtype_error(std::string(what) + " must be float32 or float64, got " + py::str(a.dtype()).cast<std::string>());
  if (!(a.flags() & py::array::c_style)) unsupported(std::string(what) + " must be C-contiguous");
  if (written && !a.writeable()) unsupported(std::string(what) + " is read-only");
  return {const_cast<void*>(a.data()), a.size(), single ? 4 : 8};
}

using Arrays = std::vector<py::object>;

void update(UpdateProblem p, const Arrays& params, const Arrays& grads, const Arrays& first, const Arrays& second, int threads) {
  struct Job {
    const UpdateKernel* kernel;
    UpdateProblem problem;
    UpdateArgs args;
    int64_t tasks;
  };
  if (threads < 0) shape_error("threads must be positive, or 0 for the default, got " + std::to_string(threads));
  if (grads.size() != params.size() || (!first.empty() && first.size() != params.size()) ||
      (!second.empty() && second.size() != params.size()))
    shape_error("an optimizer needs as many gradients and states as parameters: " + std::to_string(params.size()) + ", got " +
                std::to_string(grads.size()));
  std::vector<Job> jobs;
  int64_t total = 0;
  for (size_t i = 0; i < params.size(); ++i) {
    const Operand w = operand(params[i], true, "a parameter"), g = operand(grads[i], false, "a gradient");
    const Operand m = first.empty() ? Operand{} : operand(first[i], true, "a state"),
                  v = second.empty() ? Operand{} : operand(second[i], true, "a state");
    for (const Operand* o : {&w, &g, &m, &v}) {
      if (!o->data && o->count == 0 && (o == &m || o == &v || w.count == 0)) continue;
      if (o->count != w.count)
        shape_error("a parameter has " + std::to_string(w.count) + " values, its gradient or state " + std::to_string(o->count));
      if (o->bytes != w.bytes) dtype_error("a parameter, its gradient and its state must be of one type");
    }
    p.count = w.count;
    const UpdateKernel* kernel = select(w.bytes == 8 ? reference64().Update : table().Update, p).kernel;
    jobs.push_back({kernel, p, {w.data, g.data, m.data, v.data}, kernel->tasks(p, 1, 0)});
    total += jobs.back().tasks;
  }
  const py::gil_scoped_release release;
  parallel_ranges(total, threads ? threads : num_threads(), [&](int, int64_t from, int64_t to) {
    int64_t at = 0;
    for (const Job& job : jobs) {
      const int64_t lo = std::max(from - at, int64_t{0}), hi = std::min(to - at, job.tasks);
      if (lo < hi) job.kernel->run(job.problem, job.args, 1, 0, lo, hi, nullptr, nullptr);
      at += job.tasks;
    }
  });
}

}  // namespace

void register_update(py::module_& m) {
  using namespace pybind11::literals;  // NOLINT: the argument names below
  m.def(
      "sgd_step",
      [](const Arrays& params, const Arrays& grads, const Arrays& momenta, double rate, double momentum, double dampening, bool nesterov,
         double decay, bool decoupled, bool first, double scale, int threads) {
        UpdateProblem p{};
        p.kind = UpdateKind::kSgd, p.rate = rate, p.momentum = momentum, p.dampening = dampening, p.nesterov = nesterov, p.decay = decay;
        p.decoupled = decoupled, p.first = first, p.scale = scale, p.correction1 = p.correction2 = 1;
        update(p, params, grads, momenta, {}, threads);
      },
      "params"_a, "grads"_a, "momenta"_a = Arrays{}, py::kw_only(), "rate"_a, "momentum"_a = 0.0, "dampening"_a = 0.0, "nesterov"_a = false,
      "decay"_a = 0.0, "decoupled"_a = false, "first"_a = false, "scale"_a = 1.0, "threads"_a = 0,
      "torch.optim.SGD in place; momenta: [] without momentum; first: they start as the gradients.");
  m.def(
      "adam_step",
      [](const Arrays& params, const Arrays& grads, const Arrays& first_moments, const Arrays& second_moments, int64_t step, double rate,
         double beta1, double beta2, double eps, double decay, bool decoupled, bool eps_inside, double scale, int threads) {
        if (step < 1) shape_error("the steps of Adam count from 1, got " + std::to_string(step));
        if (first_moments.size() != params.size() || second_moments.size() != params.size())
          shape_error("Adam needs two moments for each parameter");
        UpdateProblem p{};
        p.kind = UpdateKind::kAdam, p.rate = rate, p.beta1 = beta1, p.beta2 = beta2, p.eps = eps, p.decay = decay, p.decoupled = decoupled;
        p.eps_inside = eps_inside, p.scale = scale;
        p.correction1 = 1 - std::pow(beta1, static_cast<double>(step)), p.correction2 = 1 - std::pow(beta2, static_cast<double>(step));
        update(p, params, grads, first_moments, second_moments, threads);
      },
      "params"_a, "grads"_a, "first_moments"_a, "second_moments"_a, py::kw_only(), "step"_a, "rate"_a, "beta1"_a = 0.9, "beta2"_a = 0.999,
      "eps"_a = 1e-8, "decay"_a = 0.0, "decoupled"_a = false, "eps_inside"_a = false, "scale"_a = 1.0, "threads"_a = 0,
      "torch.optim.Adam in place (decoupled: AdamW); step counts from 1.");
  m.def(
      "rmsprop_step",
      [](const Arrays& params, const Arrays& grads, const Arrays& squares, const Arrays& momenta, double rate, double alpha, double eps,
         double momentum, double decay, bool eps_inside, double scale, int threads) {
        if (squares.size() != params.size()) shape_error("RMSprop needs a mean of squares for each parameter");
        UpdateProblem p{};
        p.kind = UpdateKind::kRmsprop, p.rate = rate, p.beta2 = alpha, p.eps = eps, p.momentum = momentum, p.decay = decay;
        p.eps_inside = eps_inside, p.scale = scale, p.correction1 = p.correction2 = 1;
        update(p, params, grads, momenta, squares, threads);
      },
      "params"_a, "grads"_a, "squares"_a, "momenta"_a = Arrays{}, py::kw_only(), "rate"_a, "alpha"_a = 0.99, "eps"_a = 1e-8,
      "momentum"_a = 0.0, "decay"_a = 0.0, "eps_inside"_a = false, "scale"_a = 1.0, "threads"_a = 0, "torch.optim.RMSprop in place.");
}

}  // namespace ck
