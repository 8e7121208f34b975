// info.cpp: errors, ISA, threads, the kernel list and the measured peak.
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>

#include "bind/bind.h"
#include "core/parallel.h"
#include "dispatch/tables.h"
#include "dispatch/tuning.h"

#ifndef CK_VERSION
#error "the build passes CK_VERSION"
#endif

namespace py = pybind11;

namespace ck {
namespace {

const char* class_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kShape: return "ShapeError";
    case ErrorKind::kDType: return "DTypeError";
    case ErrorKind::kDevice: return "DeviceError";
    default: return "Unsupported";
  }
}

// Best of several short runs on `threads` threads at once: the FMA ceiling of the ISA in use, in GFLOP/s.
double peak_gflops(int threads, double seconds) {
  const Table& t = table();
  using clock = std::chrono::steady_clock;
  const auto elapsed = [](clock::time_point from) { return std::chrono::duration<double>(clock::now() - from).count(); };
  constexpr int64_t iterations = 200000;  // about a millisecond: long against waking a thread
  double best = 0;
  const auto begin = clock::now();
  do {
    std::vector<double> flops(static_cast<size_t>(threads));
    const auto start = clock::now();
    parallel_ranges(threads, threads, [&](int thread, int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) flops[static_cast<size_t>(thread)] += t.fma_loop(iterations);
    });
    double sum = 0;
    for (double f : flops) sum += f;
    best = std::max(best, sum / elapsed(start) * 1e-9);
  } while (elapsed(begin) < seconds);
  return best;
}

template <class K>
void list_kernels(py::list& out, const char* family, const std::vector<const K*>& rows, const char* isa) {
  for (const K* row : rows) {
    py::dict d;
    d["family"] = family, d["name"] = row->name, d["isa"] = isa, d["bf16"] = false;
    if constexpr (std::is_same_v<K, ConvKernel> || std::is_same_v<K, PoolKernel> || std::is_same_v<K, MapKernel>) d["bf16"] = row->bf16;
    out.append(d);
  }
}

}  // namespace

void register_errors() {
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const Error& e) {
      py::set_error(py::module_::import("convkern.errors").attr(class_name(e.kind)), e.what());
    }
  });
}

void register_info(py::module_& m) {
  m.def("version", [] { return CK_VERSION; });
  m.def("isa", [] { return table().isa; }, "The instruction set in use.");
  m.def(
      "isas",
      [] {
        std::vector<std::string> names;
        for (const Table* t : tables()) names.emplace_back(t->isa);
        return names;
      },
      "The instruction sets this machine can run, best first.");
  m.def("set_isa", &set_isa, py::arg("name"), "Lower (or restore) the instruction set of plans made from now on.");
  m.def(
      "bf16",
      [] {
        switch (bf16()) {
          case Bf16::kTiles: return "amx";
          case Bf16::kPairs: return "avx512bf16";
          default: return "";
        }
      },
      "What the instruction set in use can do in bfloat16: 'amx', 'avx512bf16', or '' for nothing.");
  m.def(
      "set_tuning",
      [](const std::map<std::string, std::pair<std::string, double>>& rows) {
        std::map<std::string, Tuned> table;
        for (const auto& [key, row] : rows) table[key] = {row.first, row.second};
        set_tuning(std::move(table));
      },
      py::arg("rows"), "Measured choices, key -> (kernel, microseconds), for plans made from now on; keys as in Plan.steps().");
  m.def("num_threads", &num_threads);
  m.def(
      "set_num_threads",
      [](int n) {
        if (n < 1) shape_error("the number of threads must be at least 1, got " + std::to_string(n));
        set_num_threads(n);
      },
      py::arg("n"));
  m.def(
      "peak_gflops",
      [](int threads, double seconds) {
        if (threads < 1) shape_error("the number of threads must be at least 1, got " + std::to_string(threads));
        return peak_gflops(threads, seconds);
      },
      py::arg("threads"), py::arg("seconds") = 0.05, py::call_guard<py::gil_scoped_release>(), "Measured float32 FMA ceiling in GFLOP/s.");
  m.def(
      "kernels",
      [] {
        py::list out;
        for (const Table* t : tables()) {
          list_kernels(out, "conv", t->Conv, t->isa);
          list_kernels(out, "pool", t->Pool, t->isa);
          list_kernels(out, "norm", t->Norm, t->isa);
          list_kernels(out, "map", t->Map, t->isa);
          list_kernels(out, "move", t->Move, t->isa);
          list_kernels(out, "resize", t->Resize, t->isa);
          list_kernels(out, "conv_weight", t->ConvWeight, t->isa);
          list_kernels(out, "pool_back", t->PoolBack, t->isa);
          list_kernels(out, "norm_back", t->NormBack, t->isa);
          list_kernels(out, "sum", t->Sum, t->isa);
          list_kernels(out, "batch_norm", t->BatchNorm, t->isa);
          list_kernels(out, "map_back", t->MapBack, t->isa);
          list_kernels(out, "dropout", t->Dropout, t->isa);
          list_kernels(out, "loss", t->Loss, t->isa);
          list_kernels(out, "move_back", t->MoveBack, t->isa);
          list_kernels(out, "resize_back", t->ResizeBack, t->isa);
          list_kernels(out, "update", t->Update, t->isa);
        }
        return out;
      },
      "Every kernel of every ISA: family, name, isa, and whether it computes in bfloat16.");
}

}  // namespace ck
