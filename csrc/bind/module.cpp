// module.cpp: the compiled module convkern._core. Only registration lives here.
#include "bind/bind.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "convkern's compiled core: CPU kernels and plans.";
  ck::register_errors();
  ck::register_filters(m);
  ck::register_info(m);
  ck::register_plan(m);
  ck::register_update(m);
}
