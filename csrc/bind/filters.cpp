// filters.cpp: what a framework's weights need beside a plan: gradients in their order of axes, and whether they changed.
#include <pybind11/numpy.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "bind/bind.h"
#include "core/error.h"
#include "core/parallel.h"
#include "plan/reorder.h"

namespace py = pybind11;

namespace ck {
namespace {

// target[...] = source[...], arrays of the same shape of up to four dimensions and any strides.
void copy_strided(const py::array& source, py::array& target, int threads) {
  const auto describe = [](const py::array& a) {
    return py::str(a.dtype()).cast<std::string>() + " " + py::str(a.attr("shape")).cast<std::string>();
  };
  const py::ssize_t bytes = source.itemsize(), rank = source.ndim();
  bool fits =
      rank <= 4 && target.ndim() == rank && target.writeable() && source.dtype().equal(target.dtype()) && (bytes == 4 || bytes == 8);
  std::array<Axis4, 4> axes;
  axes.fill({1, 1, 1});
  for (int i = 0; fits && i < rank; ++i) {
    fits = source.shape(i) == target.shape(i) && source.strides(i) % bytes == 0 && target.strides(i) % bytes == 0 && target.strides(i) > 0;
    axes[i] = {source.shape(i), source.strides(i) / bytes, target.strides(i) / bytes};
  }
  if (!fits)
    shape_error("wanted arrays of one shape of up to four dimensions and one type of 4 or 8 bytes, got " + describe(source) + " and " +
                describe(target));
  const auto step = [](const Axis4& a) { return a.size > 1 ? a.to : std::numeric_limits<int64_t>::max(); };
  std::stable_sort(axes.begin(), axes.end(), [&](const Axis4& a, const Axis4& b) { return step(a) > step(b); });
  const void* const from = source.data();
  void* const to = target.mutable_data();
  threads = threads > 0 ? threads : num_threads();
  const py::gil_scoped_release release;
  reorder(axes, from, to, static_cast<int>(bytes), threads);
}

// A hash of memory: of `samples` 8-byte words spread evenly over it, or (0) of all of it, in four chains so that multiplying does not limit it.
uint64_t fingerprint(uintptr_t address, int64_t bytes, int64_t samples) {
  const char* const data = reinterpret_cast<const char*>(address);  // NOLINT
  const int64_t words = bytes / 8, step = samples > 0 && words > samples ? words / samples : 1;
  constexpr uint64_t kPrime = 0x9e3779b97f4a7c15;
  uint64_t h[4] = {1, 2, 3, 4};
  auto mix = [&](int lane, int64_t at, size_t size) {
    uint64_t word = 0;
    std::memcpy(&word, data + at, size);
    h[lane] = (h[lane] ^ word) * kPrime;
    h[lane] ^= h[lane] >> 32;
  };
  int64_t i = 0;
  for (; i + 3 * step < words; i += 4 * step)
    for (int lane = 0; lane < 4; ++lane) mix(lane, 8 * (i + lane * step), 8);
  for (; i < words; i += step) mix(0, 8 * i, 8);
  if (bytes > 8 * words) mix(1, 8 * words, static_cast<size_t>(bytes - 8 * words));
  return ((h[0] * 31 + h[1]) * 31 + h[2]) * 31 + h[3];
}

}  // namespace

void register_filters(py::module_& m) {
  m.def("copy_strided", &copy_strided, py::arg("source"), py::arg("target"), py::arg("threads") = 0,
        "target[...] = source[...], for arrays of up to four dimensions and any strides that do not overlap.");
  m.def("fingerprint", &fingerprint, py::arg("address"), py::arg("bytes"), py::arg("samples") = 0,
        "A hash of memory that the caller keeps alive: of some words spread over it, or of all (0).");
}

}  // namespace ck
