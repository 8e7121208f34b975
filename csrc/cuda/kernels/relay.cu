// relay.cu: a copy from any strides to dense memory with a change of the element type; no row, but what arrays and weights come in through.
//
// Computes  to[i] = from[i], six indices, `to` dense; int64 to int64 only
// Tiling    a thread = an element
#include "cuda/plan.h"

namespace ck::cuda {
namespace {

struct Shape {
  int64_t sizes[6], strides[6];
};

template <class From, class To>
CK_DEVICE To convert(From v) {
  return from_float<To>(to_float(v));
}
template <>
CK_DEVICE int64_t convert<int64_t, int64_t>(int64_t v) {
  return v;
}

template <class From, class To>
__global__ void relay_kernel(const From* from, To* to, Shape shape, int64_t items) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < items; i += step) {
    int64_t rest = i, offset = 0;
    for (int k = 5; k >= 0; --k) {
      offset += rest % shape.sizes[k] * shape.strides[k];
      rest /= shape.sizes[k];
    }
    to[i] = convert<From, To>(from[offset]);
  }
}

template <class From, class To>
cudaError_t start(const device::Relay& r, cudaStream_t stream) {
  Shape shape;
  int64_t items = 1;
  for (int k = 0; k < 6; ++k) {
    shape.sizes[k] = r.sizes[k], shape.strides[k] = r.strides[k];
    items *= r.sizes[k];
  }
  if (!items) return cudaSuccess;
  return launch<false>(relay_kernel<From, To>, dim3(blocks_for(items, 256)), dim3(256), 0, stream, static_cast<const From*>(r.from),
                       static_cast<To*>(r.to), shape, items);
}

template <class From>
cudaError_t from_type(const device::Relay& r, cudaStream_t stream) {
  switch (r.to_type) {
    case Element::kF32: return start<From, float>(r, stream);
    case Element::kF16: return start<From, Half>(r, stream);
    case Element::kBF16: return start<From, Bfloat>(r, stream);
    default: dtype_error("a copy between floats and integers");
  }
}

}  // namespace

void relay(const device::Relay& r, cudaStream_t stream) {
  cudaError_t e = cudaSuccess;
  switch (r.from_type) {
    case Element::kF32: e = from_type<float>(r, stream); break;
    case Element::kF16: e = from_type<Half>(r, stream); break;
    case Element::kBF16: e = from_type<Bfloat>(r, stream); break;
    case Element::kI64:
      if (r.to_type != Element::kI64) dtype_error("a copy between floats and integers");
      e = start<int64_t, int64_t>(r, stream);
  }
  check(e, "relay");
}

}  // namespace ck::cuda
