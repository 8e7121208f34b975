// sm90_launch.cuh of the emulation: see csrc/cuda/sm90_launch.cuh.
#pragma once
#include "cuda/kernel.cuh"
#include "cuda/sm90.cuh"

namespace ck::cuda {

inline cudaError_t encode(const MapSpec& m, CUtensorMap* map) {
  *map = m;
  return refuse_map(m) ? cudaErrorInvalidValue : cudaSuccess;
}
struct LaunchShape {
  int blocks, threads, shared_bytes, cluster;
};
inline int active_clusters(const void*, const LaunchShape& shape, const Device& device) {
  return (shape.cluster == 8 ? 16 * 8 : shape.cluster == 16 ? 8 * 16 : device.multiprocessors) / shape.cluster;  // an H100's
}
template <class... A>
cudaError_t launch_sm90(const void* kernel, const LaunchShape& shape, const Device&, cudaStream_t, A... args) {
  cudaError_t result;
  run_kernel(reinterpret_cast<void (*)(A...)>(const_cast<void*>(kernel)), std::tuple<A...>(args...),
             dim3(static_cast<unsigned>(shape.blocks)), dim3(static_cast<unsigned>(shape.threads)), shape.shared_bytes, shape.cluster,
             &result);
  return result;
}

}  // namespace ck::cuda
