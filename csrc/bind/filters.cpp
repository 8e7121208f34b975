// filters.cpp: what a framework's weights need before and after a plan: their order of axes, and whether they changed.
#include <pybind11/numpy.h>

#include <algorithm>
#include <cstring>

#include "bind/bind.h"
#include "core/error.h"
#include "core/parallel.h"

namespace py = pybind11;

namespace ck {
namespace {

// torch's (k, c, taps) and a plan's (taps, c, k). 16 filters at a time: on one side whole cache lines, on the other 16 streams.
template <class T>
void reorder(const T* from, T* to, int64_t k, int64_t c, int64_t taps, bool back, int threads) {
  constexpr int64_t kBlock = 16;
  const int64_t k_blocks = (k + kBlock - 1) / kBlock, c_blocks = (c + kBlock - 1) / kBlock;
  parallel_ranges(k_blocks * c_blocks, threads, [&](int, int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t k_first = task / c_blocks * kBlock, k_last = std::min(k, k_first + kBlock);
      const int64_t c_first = task % c_blocks * kBlock, c_last = std::min(c, c_first + kBlock);
      for (int64_t t = 0; t < taps; ++t)
        for (int64_t i = c_first; i < c_last; ++i) {
          const int64_t plan = (t * c + i) * k, torch = i * taps + t;
          for (int64_t f = k_first; f < k_last; ++f) {
            if (back) to[f * c * taps + torch] = from[plan + f];
            else to[plan + f] = from[f * c * taps + torch];
          }
        }
    }
  });
}

void reorder_filters(const py::array& from, py::array& to, bool back, int threads) {
  const auto describe = [](const py::array& a) {
    return py::str(a.dtype()).cast<std::string>() + " " + py::str(a.attr("shape")).cast<std::string>();
  };
  const bool contiguous = (from.flags() & py::array::c_style) && (to.flags() & py::array::c_style);
  bool fits = from.ndim() == 3 && to.ndim() == 3 && contiguous && to.writeable() && from.dtype().equal(to.dtype());
  for (int i = 0; fits && i < 3; ++i) fits = from.shape(i) == to.shape(2 - i);
  const py::ssize_t bytes = from.itemsize();
  if (!fits || (bytes != 4 && bytes != 8))
    shape_error("wanted contiguous arrays (K, C, taps) and (taps, C, K) of one type, got " + describe(from) + " and " + describe(to));
  const char* const in = static_cast<const char*>(from.data());
  char* const out = static_cast<char*>(to.mutable_data());
  if (in < out + to.nbytes() && out < in + from.nbytes()) shape_error("the two arrays overlap");
  const int64_t k = back ? to.shape(0) : from.shape(0), c = from.shape(1), taps = back ? from.shape(0) : from.shape(2);
  threads = threads > 0 ? threads : num_threads();
  const py::gil_scoped_release release;
  if (bytes == 4) reorder(reinterpret_cast<const uint32_t*>(in), reinterpret_cast<uint32_t*>(out), k, c, taps, back, threads);
  else reorder(reinterpret_cast<const uint64_t*>(in), reinterpret_cast<uint64_t*>(out), k, c, taps, back, threads);
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
  m.def("reorder_filters", &reorder_filters, py::arg("source"), py::arg("target"), py::arg("back") = false, py::arg("threads") = 0,
        "Copy (K, C, taps), as torch keeps filters, to (taps, C, K), as plans do, or back.");
  m.def("fingerprint", &fingerprint, py::arg("address"), py::arg("bytes"), py::arg("samples") = 0,
        "A hash of memory that the caller keeps alive: of some words spread over it, or of all (0).");
}

}  // namespace ck
