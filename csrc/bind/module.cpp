// module.cpp: the compiled module convkern._core. Only registration lives here.
#include "bind/bind.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "convkern's compiled core: CPU kernels, plans, and the way to device modules.";
  ck::register_errors();
  ck::register_filters(m);
  ck::register_info(m);
  ck::register_plan(m);
  ck::register_device(m);
  ck::register_update(m);
  ck::register_warp(m);
}
