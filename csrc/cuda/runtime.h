// runtime.h: the few things the plan wants from CUDA's runtime: a device, memory in stream order, events, graphs. With CK_EMULATE the same on the
// CPU. Failures are thrown as DeviceError with CUDA's words.
#pragma once
#include <chrono>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/error.h"
#include "cuda/kernel.cuh"

namespace ck::cuda {

struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
#if !defined(CK_EMULATE)
  cudaGetLastError();  // a failed launch must not be reported again by the next call
#endif
  throw DeviceError(std::string(what) + ": " + cudaGetErrorString(e));
}

#if defined(CK_EMULATE)

inline int device_count() { return 1; }

struct DeviceScope {
  explicit DeviceScope(int) {}
  ~DeviceScope() {}  // keeps "unused variable" away
};

inline Device describe(int id, device::Info* info) {
  const Emulated& e = emulated();
  if (info) *info = {"emulated on the CPU", e.capability, e.multiprocessors, e.memory_bytes};
  return {id, e.capability, e.multiprocessors, 64 << 10, 4 << 20, e.memory_bytes};
}

inline void* allocate(int, int64_t bytes, cudaStream_t) {
  void* p = nullptr;
  // Exactly as large as asked for, so that a sanitizer sees what is written behind it; filled with NaN.
  if (posix_memalign(&p, 256, static_cast<size_t>(bytes > 0 ? bytes : 1))) throw DeviceError("out of memory");
  std::memset(p, 0xff, static_cast<size_t>(bytes > 0 ? bytes : 0));
  const std::lock_guard<std::recursive_mutex> lock(emulated().mutex);
  ++emulated().allocations, ++emulated().allocated;
  return p;
}
inline void release(int, void* p, cudaStream_t) noexcept {
  const std::lock_guard<std::recursive_mutex> lock(emulated().mutex);
  --emulated().allocations;
  std::free(p);
}
inline void release_after_all(int id, void* p) noexcept {
  release(id, p, nullptr);
  ++emulated().waits;
}
inline void synchronize(cudaStream_t) {}
inline bool capturing(cudaStream_t) { return emulated().capture != nullptr; }
inline void order(cudaStream_t, cudaStream_t) {}

class Timer {
 public:
  void mark(cudaStream_t) { at_ = std::chrono::steady_clock::now(); }
  static double seconds(const Timer& from, const Timer& to) { return std::chrono::duration<double>(to.at_ - from.at_).count(); }

 private:
  std::chrono::steady_clock::time_point at_;
};

class Graph {
 public:
  template <class F>
  explicit Graph(F queue) {
    Emulated& e = emulated();
    const std::lock_guard<std::recursive_mutex> lock(e.mutex);
    e.capture = &launches_;
    try {
      queue(nullptr);
    } catch (...) {
      e.capture = nullptr;
      throw;
    }
    e.capture = nullptr;
  }
  void launch(cudaStream_t) const {
    const std::lock_guard<std::recursive_mutex> lock(emulated().mutex);
    for (const auto& play : launches_) play();
  }

 private:
  std::vector<std::function<void()>> launches_;
};

#else

inline int device_count() {
  int n = 0;
  check(cudaGetDeviceCount(&n), "no CUDA device");
  return n;
}

// Makes a device current and restores the caller's afterwards; nothing is set where it is the same: that would make a context on a device that the
// caller may never use.
class DeviceScope {
 public:
  explicit DeviceScope(int id) : id_(id) {
    check(cudaGetDevice(&before_), "no CUDA device");
    if (before_ != id_) check(cudaSetDevice(id_), "cannot use the device");
  }
  ~DeviceScope() {
    if (before_ != id_) cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  const int id_;
  int before_ = 0;
};

inline Device describe(int id, device::Info* info) {
  cudaDeviceProp p{};
  check(cudaGetDeviceProperties(&p, id), "cannot describe the device");
  const int capability = 10 * p.major + p.minor;
  const int64_t memory = static_cast<int64_t>(p.totalGlobalMem);
  if (info) {
    *info = {{}, capability, p.multiProcessorCount, memory};
    for (size_t i = 0; i + 1 < sizeof info->name && p.name[i]; ++i) info->name[i] = p.name[i];
  }
  return {id, capability, p.multiProcessorCount, static_cast<int64_t>(p.sharedMemPerBlockOptin), p.l2CacheSize, memory};
}

// A pool of our own, so that nobody else's settings change: it keeps up to a gigabyte of freed memory.
inline cudaMemPool_t pool_of(int id) {
  static std::mutex mutex;
  static std::map<int, cudaMemPool_t>* pools = new std::map<int, cudaMemPool_t>;  // never destroyed: arrays may outlive every static
  const std::lock_guard<std::mutex> lock(mutex);
  cudaMemPool_t& pool = (*pools)[id];
  if (!pool) {
    cudaMemPoolProps props{};
    props.allocType = cudaMemAllocationTypePinned;
    props.location.type = cudaMemLocationTypeDevice;
    props.location.id = id;
    check(cudaMemPoolCreate(&pool, &props), "cannot make a memory pool");
    uint64_t keep = uint64_t{1} << 30;
    check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep), "cannot set up the memory pool");
  }
  return pool;
}

inline void* allocate(int id, int64_t bytes, cudaStream_t stream) {
  void* p = nullptr;
  const std::string what = "cannot allocate " + std::to_string(bytes) + " bytes on the device";
  check(cudaMallocFromPoolAsync(&p, static_cast<size_t>(bytes > 0 ? bytes : 1), pool_of(id), stream), what.c_str());
  return p;
}
inline void release(int, void* p, cudaStream_t stream) noexcept {
  if (cudaFreeAsync(p, stream) != cudaSuccess) cudaGetLastError();
}
// Waits for every stream of the device first: cudaFree itself does not, for memory of a pool. What cannot wait (some stream is captured, the driver is
// gone) is not freed: a leak, where anything else would hand memory in use to somebody else.
inline void release_after_all(int id, void* p) noexcept {
  int before = 0;
  if (cudaGetDevice(&before) != cudaSuccess) return;
  if (before != id && cudaSetDevice(id) != cudaSuccess) return;
  if (cudaDeviceSynchronize() != cudaSuccess || cudaFree(p) != cudaSuccess) cudaGetLastError();
  if (before != id) cudaSetDevice(before);
}
inline void synchronize(cudaStream_t stream) { check(cudaStreamSynchronize(stream), "the device failed"); }
// Whether a caller records this stream into a graph of its own.
inline bool capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &status) == cudaSuccess) return status != cudaStreamCaptureStatusNone;
  cudaGetLastError();  // the default stream, while some other stream is recorded
  return false;
}

class Event {
 public:
  explicit Event(unsigned flags) { check(cudaEventCreateWithFlags(&event_, flags), "cannot make an event"); }
  Event(Event&& o) noexcept : event_(o.event_) { o.event_ = nullptr; }
  ~Event() {
    if (event_) cudaEventDestroy(event_);
  }
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

inline void order(cudaStream_t before, cudaStream_t after) {
  if (before == after) return;
  const Event e(cudaEventDisableTiming);
  check(cudaEventRecord(e.get(), before), "cannot record an event");
  check(cudaStreamWaitEvent(after, e.get(), 0), "cannot wait for an event");
}

class Timer {
 public:
  void mark(cudaStream_t stream) { check(cudaEventRecord(event_.get(), stream), "cannot record an event"); }
  static double seconds(const Timer& from, const Timer& to) {
    float ms = 0;
    check(cudaEventSynchronize(to.event_.get()), "the device failed");
    check(cudaEventElapsedTime(&ms, from.event_.get(), to.event_.get()), "cannot time");
    return ms * 1e-3;
  }

 private:
  Event event_{cudaEventDefault};
};

// Launches recorded once, played back with one call. A graph never runs beside itself: its launches wait for each other, on whatever stream.
class Graph {
 public:
  template <class F>
  explicit Graph(F queue) {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cannot make a stream");
    cudaGraph_t graph = nullptr;
    try {
      check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cannot capture");
      try {
        queue(stream);
      } catch (...) {
        cudaStreamEndCapture(stream, &graph);
        throw;
      }
      check(cudaStreamEndCapture(stream, &graph), "cannot capture");
      check(cudaGraphInstantiate(&exec_, graph, 0), "cannot make a graph");
    } catch (...) {
      if (graph) cudaGraphDestroy(graph);
      cudaStreamDestroy(stream);
      throw;
    }
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() { cudaGraphExecDestroy(exec_); }
  void launch(cudaStream_t stream) const { check(cudaGraphLaunch(exec_, stream), "cannot launch the graph"); }

 private:
  cudaGraphExec_t exec_ = nullptr;
};

#endif

// Device memory that its owner frees when nothing uses it any more: constants, packed weights, the arena of a graph.
class Memory {
 public:
  Memory() = default;
  Memory(int id, int64_t bytes, cudaStream_t stream) : id_(id), bytes_(bytes), data_(allocate(id, bytes, stream)) {}
  Memory(Memory&& o) noexcept : id_(o.id_), bytes_(o.bytes_), data_(o.data_) { o.data_ = nullptr, o.bytes_ = 0; }
  Memory& operator=(Memory&& o) noexcept {
    std::swap(id_, o.id_), std::swap(bytes_, o.bytes_), std::swap(data_, o.data_);
    return *this;
  }
  ~Memory() {
    if (data_) release_after_all(id_, data_);
  }
  char* data() const { return static_cast<char*>(data_); }
  int64_t bytes() const { return bytes_; }

 private:
  int id_ = 0;
  int64_t bytes_ = 0;
  void* data_ = nullptr;
};

}  // namespace ck::cuda
