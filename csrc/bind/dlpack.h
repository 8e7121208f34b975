// dlpack.h: DLPack's structures (https://dmlc.github.io/dlpack, version 1.0; their layout is a stable ABI).
#pragma once
#include <cstdint>

namespace ck::dlpack {

struct Device {
  int32_t type, id;  // type 1 = CPU, 2 = CUDA, 13 = CUDA managed
};
struct Type {
  uint8_t code, bits;  // code 0 = integer, 2 = float, 4 = bfloat
  uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  Type type;
  int64_t *shape, *strides;  // strides in elements; null = dense
  uint64_t byte_offset;
};
struct Managed {  // in a capsule called "dltensor"
  Tensor tensor;
  void* manager;
  void (*deleter)(Managed*);
};
struct Versioned {  // in a capsule called "dltensor_versioned"
  uint32_t major, minor;
  void* manager;
  void (*deleter)(Versioned*);
  uint64_t flags;
  Tensor tensor;
};

}  // namespace ck::dlpack
