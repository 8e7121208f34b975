// warp.cpp: the affine warp of data augmentation on arrays (HWC), without Python's lock.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <string>

#include "bind/bind.h"
#include "core/error.h"
#include "core/parallel.h"
#include "image/warp.h"

namespace py = pybind11;

namespace ck {
namespace {

constexpr double kFarthest = 1e9;  // no image is as large, and positions stay exact to a millionth of a pixel

Fill fill_of(const std::string& name) {
  if (name == "constant") return Fill::kConstant;
  if (name == "nearest") return Fill::kNearest;
  if (name == "reflect") return Fill::kReflect;
  if (name == "wrap") return Fill::kWrap;
  unsupported("fill_mode='" + name + "'; want one of constant, nearest, reflect, wrap");
}

void check(const py::array& a, const char* what) {
  if (a.ndim() != 3)
    shape_error(std::string("warp: the ") + what + " has " + std::to_string(a.ndim()) + " axes, want (height, width, channels)");
  for (py::ssize_t axis = 0; axis < 3; ++axis)
    if (a.shape(axis) < 1) shape_error(std::string("warp: the ") + what + " is empty");
  if (a.shape(2) > 1 && a.strides(2) != a.itemsize()) unsupported(std::string("warp: the channels of the ") + what + " are not contiguous");
  if (a.strides(0) % a.itemsize() || a.strides(1) % a.itemsize() || !(a.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_))
    unsupported(std::string("warp: the ") + what + " is not aligned");
}

template <class T>
void run(const WarpProblem& p, const py::array& x, py::array& y, int threads) {
  const py::ssize_t size = sizeof(T);
  const WarpArgs<T> args{static_cast<const T*>(x.data()),       x.strides(0) / size, x.strides(1) / size,
                         static_cast<float*>(y.mutable_data()), y.strides(0) / 4,    y.strides(1) / 4};
  py::gil_scoped_release release;
  parallel_ranges(p.p, threads, [&](int, int64_t first, int64_t last) { warp(p, args, first, last); });
}

void warp_array(const py::array& x, const std::array<double, 6>& matrix, py::array& out, const std::string& fill_mode, float cval,
                int order, int threads) {
  check(x, "image");
  check(out, "result");
  if (x.shape(2) != out.shape(2))
    shape_error("warp: the image has " + std::to_string(x.shape(2)) + " channels, the result " + std::to_string(out.shape(2)));
  if (!py::isinstance<py::array_t<float>>(out) || !out.writeable()) dtype_error("warp: the result must be a writable array of float32");
  if (order != 0 && order != 1) unsupported("warp: order=" + std::to_string(order) + "; want 0 (nearest) or 1 (bilinear)");
  if (threads < 1) shape_error("the number of threads must be at least 1, got " + std::to_string(threads));
  WarpProblem p{x.shape(0), x.shape(1), x.shape(2), out.shape(0), out.shape(1), {}, fill_of(fill_mode), cval, order == 1};
  for (size_t k = 0; k < 6; ++k) {
    if (!(std::abs(matrix[k]) <= kFarthest)) shape_error("warp: a matrix with " + std::to_string(matrix[k]) + "; want numbers up to 1e9");
    p.m[k] = matrix[k];
  }
  if (py::isinstance<py::array_t<uint8_t>>(x)) run<uint8_t>(p, x, out, threads);
  else if (py::isinstance<py::array_t<float>>(x)) run<float>(p, x, out, threads);
  else dtype_error("warp: got elements of " + std::string(py::str(x.dtype())) + ", want uint8 or float32");
}

}  // namespace

void register_warp(py::module_& m) {
  m.def("warp", &warp_array, py::arg("x"), py::arg("matrix"), py::arg("out"), py::arg("fill_mode") = "nearest", py::arg("cval") = 0.0f,
        py::arg("order") = 1, py::arg("threads") = 1,
        "Write the image x (H,W,C) into out (P,Q,C): pixel (i, j) shows x at row m0*i + m1*j + m2, column m3*i + m4*j + m5.");
}

}  // namespace ck
