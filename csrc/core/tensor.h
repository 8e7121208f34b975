// tensor.h: how a kernel sees memory. A View is a pointer with 64-bit strides in elements; the channel stride is always 1.
#pragma once
#include <cstdint>

// In front of a function: nvcc compiles it for the device, too.
#if defined(__CUDACC__)
#define CK_ANYWHERE __host__ __device__
#else
#define CK_ANYWHERE
#endif

namespace ck {

struct View {
  void* data;
  int64_t image, depth, row, pixel;  // elements from one image / depth slice / row / pixel to the next
};

// The element x[n,d,h,w,0] of a view of T. Kernel files include this too, hence static and always inlined (ODR: see DECISIONS.md 3).
template <class T>
CK_ANYWHERE static inline __attribute__((always_inline)) T* at(const View& v, int64_t n, int64_t d, int64_t h, int64_t w) {
  return static_cast<T*>(v.data) + n * v.image + d * v.depth + h * v.row + w * v.pixel;
}

}  // namespace ck
