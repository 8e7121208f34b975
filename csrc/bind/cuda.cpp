// cuda.cpp (binding): the module convkern._cuda: a capsule with the table of core/device.h, nothing else. Importing it touches no driver.
#include <Python.h>

#include "core/device.h"

extern "C" const ck::device::Table* ck_device_table();

PyMODINIT_FUNC PyInit__cuda() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                   "_cuda",
                                   "convkern's CUDA kernels, as a table of C functions for _core.",
                                   -1,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr,
                                   nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (!module) return nullptr;
  PyObject* capsule = PyCapsule_New(const_cast<ck::device::Table*>(ck_device_table()), ck::device::kCapsule, nullptr);
  if (!capsule || PyModule_AddObject(module, "table", capsule) < 0) {
    Py_XDECREF(capsule);
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
