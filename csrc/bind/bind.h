// bind.h: what the binding files share.
#pragma once
#include <pybind11/pybind11.h>

namespace ck {

void register_errors();
void register_filters(pybind11::module_& m);
void register_info(pybind11::module_& m);
void register_plan(pybind11::module_& m);
void register_device(pybind11::module_& m);
void register_update(pybind11::module_& m);
void register_warp(pybind11::module_& m);

}  // namespace ck
