// sm90_launch.cuh: the driver's part of an sm_90a launch: encoded tensor maps, limits raised once, clusters.
//
// Any thread may call; what is remembered is kept for each device, under a lock. tests/simt has the same functions for the CPU.
#pragma once
#include <cuda.h>
#include <cudaTypedefs.h>

#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <unordered_map>

#include "cuda/kernel.cuh"
#include "cuda/sm90_plan.h"

namespace ck::cuda {

// Encodes a map, or finds it among those encoded before: an encode takes a microsecond or two of the host, and a network's maps are the same every
// time. The encoder itself refuses what refuse_map() lets through (CUDA_ERROR_INVALID_VALUE); no -lcuda is needed to reach it.
inline cudaError_t encode(const MapSpec& m, CUtensorMap* map) {
  static std::mutex mutex;
  static std::unordered_map<std::string, CUtensorMap> known;
  const std::string key(reinterpret_cast<const char*>(&m), sizeof m);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(key);
  if (found != known.end()) {
    *map = found->second;
    return cudaSuccess;
  }
  static PFN_cuTensorMapEncodeTiled_v12000 tiled = nullptr;
  static PFN_cuTensorMapEncodeIm2col_v12000 im2col = nullptr;
  if (!im2col) {
    cudaDriverEntryPointQueryResult status;
    cudaError_t e =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", reinterpret_cast<void**>(&tiled), 12000, cudaEnableDefault, &status);
    if (e == cudaSuccess)
      e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeIm2col", reinterpret_cast<void**>(&im2col), 12000, cudaEnableDefault, &status);
    if (e != cudaSuccess) return e;
    if (!tiled || !im2col) return cudaErrorInsufficientDriver;
  }
  const CUtensorMapDataType type = m.type == MapSpec::kHalf     ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                   : m.type == MapSpec::kBfloat ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                   : m.type == MapSpec::kTf32   ? CU_TENSOR_MAP_DATA_TYPE_TFLOAT32
                                                                : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  const CUtensorMapSwizzle swizzle = m.swizzle_bytes() == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  cuuint64_t dim[4], stride[3];
  for (int i = 0; i < 4; ++i) dim[i] = m.dim[i];
  for (int i = 0; i < 3; ++i) stride[i] = m.stride[i];
  CUresult result;
  if (m.im2col) {
    const cuuint32_t step[4] = {1, m.step[0], m.step[1], 1};
    result = im2col(map, type, 4, const_cast<void*>(m.base), dim, stride, m.lower, m.upper, m.box[0], m.box[1], step,
                    CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  } else {
    const cuuint32_t step[4] = {1, 1, 1, 1}, box[4] = {m.box[0], m.box[1], m.box[2], m.box[3]};
    result = tiled(map, type, static_cast<cuuint32_t>(m.rank), const_cast<void*>(m.base), dim, stride, box, step,
                   CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  }
  if (result != CUDA_SUCCESS) return cudaErrorInvalidValue;
  if (known.size() >= 8192) known.clear();  // addresses of buffers long gone
  known.emplace(key, *map);
  return cudaSuccess;
}

struct LaunchShape {
  int blocks, threads, shared_bytes, cluster;
};

// Lets a kernel have its shared memory, and clusters of 16 if it is to run in them; once on each device.
inline cudaError_t configure(const void* kernel, const LaunchShape& shape, const Device& device) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, bool>, int> done;  // -> shared bytes
  const std::lock_guard<std::mutex> lock(mutex);
  int& bytes = done[std::make_tuple(kernel, device.id, shape.cluster > 8)];
  if (bytes >= shape.shared_bytes) return cudaSuccess;
  cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes);
  if (e == cudaSuccess && shape.cluster > 8) e = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (e == cudaSuccess) bytes = shape.shared_bytes;
  return e;
}

// How many clusters of that shape run at once. Fewer than SMs / size: a cluster lies within one GPC. 0: none fits.
inline int active_clusters(const void* kernel, const LaunchShape& shape, const Device& device) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_tuple(kernel, device.id, shape.cluster);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(shape.cluster), attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.cluster)), config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.attrs = &attribute, config.numAttrs = 1;
  int clusters = 0;
  if (configure(kernel, shape, device) != cudaSuccess || cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess) {
    cudaGetLastError();
    clusters = 0;
  }
  return known[key] = clusters;
}

// `kernel` takes exactly the types of the arguments given.
template <class... A>
cudaError_t launch_sm90(const void* kernel, const LaunchShape& shape, const Device& device, cudaStream_t stream, A... args) {
  const cudaError_t e = configure(kernel, shape, device);
  if (e != cudaSuccess) return e;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(shape.cluster), attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks)), config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = stream;
  if (shape.cluster > 1) config.attrs = &attribute, config.numAttrs = 1;
  void* pointers[] = {&args...};
  return cudaLaunchKernelExC(&config, kernel, pointers);
}

}  // namespace ck::cuda
