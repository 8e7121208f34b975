// table.cpp: the functions of core/device.h for CUDA. Catches everything: a failure is a Status and a message.
#include <new>
#include <set>
#include <vector>

#include "cuda/plan.h"

namespace ck::cuda {
namespace {

using device::Status;

thread_local std::string last_message;

template <class F>
Status guarded(F f) {
  try {
    f();
    return device::kOk;
  } catch (const Error& e) {
    last_message = e.what();
    return e.kind == ErrorKind::kShape ? device::kShape : e.kind == ErrorKind::kDType ? device::kDType : device::kUnsupported;
  } catch (const std::exception& e) {
    last_message = e.what();
    return device::kDevice;
  }
}

cudaStream_t stream_of(uint64_t handle) { return reinterpret_cast<cudaStream_t>(handle); }

const char* last_error() { return last_message.c_str(); }

Status count(int32_t* devices) {
  return guarded([&] { *devices = device_count(); });
}

Status info(int32_t id, device::Info* out) {
  return guarded([&] { describe(id, out); });
}

Status kernel(int32_t i, device::Family* family, const char** name) {
  return guarded([&] {
    int32_t at = 0;
    auto look = [&](const auto& list, device::Family f) {
      for (const auto* row : list)
        if (at++ == i) *family = f, *name = row->name;
    };
    look(rows().Conv, device::Family::kConv), look(rows().Pool, device::Family::kPool), look(rows().Norm, device::Family::kNorm);
    look(rows().Map, device::Family::kMap), look(rows().Move, device::Family::kMove), look(rows().Resize, device::Family::kResize);
    if (i < 0 || i >= at) unsupported("no kernel has this number");
  });
}

// What a caller's capture of a stream has to do with memory: what is taken meanwhile belongs to the caller's graph, and only that may be given back in
// the capture, as a node of the graph. Other memory that is dropped meanwhile waits here until something is allocated after the capture.
struct Captures {
  struct Dropped {
    int32_t device;
    void* memory;
    uint64_t stream;
  };
  std::mutex mutex;
  std::set<void*> taken;
  std::vector<Dropped> dropped;

  void free_dropped() {
    std::vector<Dropped> kept;
    for (const Dropped& d : dropped) {
      const DeviceScope scope(d.device);
      if (capturing(stream_of(d.stream))) kept.push_back(d);
      else release(d.device, d.memory, stream_of(d.stream));
    }
    dropped.swap(kept);
  }
};
Captures& captures() {
  static Captures* all = new Captures;  // never destroyed: arrays may outlive every static
  return *all;
}

Status allocate_(int32_t id, int64_t bytes, uint64_t stream, void** out) {
  return guarded([&] {
    const DeviceScope scope(id);
    Captures& all = captures();
    const std::lock_guard<std::mutex> lock(all.mutex);
    if (!all.dropped.empty()) all.free_dropped();
    *out = allocate(id, bytes, stream_of(stream));
    if (capturing(stream_of(stream))) all.taken.insert(*out);
  });
}

Status release_(int32_t id, void* p, uint64_t stream) {
  return guarded([&] {
    const DeviceScope scope(id);
    Captures& all = captures();
    const bool any = stream == device::kAnyStream;
    {
      const std::lock_guard<std::mutex> lock(all.mutex);
      const bool taken = all.taken.erase(p) != 0;
      if (!any && !taken && capturing(stream_of(stream))) return all.dropped.push_back({id, p, stream});
    }
    if (any) release_after_all(id, p);
    else release(id, p, stream_of(stream));
  });
}

Status copy(int32_t id, void* to, const void* from, int64_t bytes, uint64_t stream) {
  return guarded([&] {
    const DeviceScope scope(id);
    if (bytes) check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_of(stream)), "cannot copy");
  });
}

Status synchronize_(int32_t id, uint64_t stream) {
  return guarded([&] {
    const DeviceScope scope(id);
    synchronize(stream_of(stream));
  });
}

Status order_(int32_t id, uint64_t before, uint64_t after) {
  return guarded([&] {
    const DeviceScope scope(id);
    order(stream_of(before), stream_of(after));
  });
}

Status relay_(int32_t id, const device::Relay* r, uint64_t stream) {
  return guarded([&] {
    const DeviceScope scope(id);
    relay(*r, stream_of(stream));
  });
}

Status weight_create(int32_t id, const void* data, int32_t on_device, Element type, const int64_t* sizes, const int64_t* strides,
                     const float* scale, void** out) {
  return guarded([&] {
    const DeviceScope scope(id);
    *out = new Weight(id, data, on_device != 0, type, sizes, strides, scale);
  });
}
int64_t weight_bytes(void* w) { return static_cast<Weight*>(w)->bytes(); }
void weight_destroy(void* w) { delete static_cast<Weight*>(w); }

Status plan_create(int32_t id, int32_t precision, const device::Program* program, void** out) {
  return guarded([&] {
    const DeviceScope scope(id);
    *out = new Plan(id, static_cast<Precision>(precision), *program);
  });
}
Status plan_run(void* plan, int64_t n, const device::Array* inputs, void* const* outputs, int32_t channels_first, uint64_t stream) {
  return guarded([&] { static_cast<Plan*>(plan)->run(n, inputs, outputs, channels_first != 0, stream_of(stream)); });
}
Status plan_profile(void* plan, int64_t n, const device::Array* inputs, void* const* outputs, int32_t repeat, uint64_t stream,
                    double* seconds) {
  return guarded([&] { static_cast<Plan*>(plan)->profile(n, inputs, outputs, repeat, stream_of(stream), seconds); });
}
Status plan_choice(void* plan, int64_t n, int32_t step, device::Choice* out) {
  return guarded([&] { static_cast<Plan*>(plan)->choice(n, step, out); });
}
Status plan_memory(void* plan, int64_t n, int64_t* arena, int64_t* workspace) {
  return guarded([&] { static_cast<Plan*>(plan)->memory(n, arena, workspace); });
}
void plan_destroy(void* plan) { delete static_cast<Plan*>(plan); }

#if defined(CK_EMULATE)
constexpr int32_t kEmulated = 1, kDlpackType = 1;  // its memory is the CPU's
#else
constexpr int32_t kEmulated = 0, kDlpackType = 2;
#endif

}  // namespace
}  // namespace ck::cuda

#if defined(CK_EMULATE)
// For tests: from how many items on kernels take 64-bit indices and launches are cut; what device dispatch sees.
extern "C" __attribute__((visibility("default"))) void ck_emulated_items(int64_t items) { ck::cuda::emulated().too_many_items = items; }
extern "C" __attribute__((visibility("default"))) void ck_emulated_device(int32_t capability, int32_t multiprocessors) {
  ck::cuda::emulated().capability = capability, ck::cuda::emulated().multiprocessors = multiprocessors;
}
// ... the row that turns channels-first images of `size` squared pixels.
extern "C" __attribute__((visibility("default"))) const char* ck_emulated_turn(int64_t images, int64_t size, int64_t channels) {
  using namespace ck;        // NOLINT
  using namespace ck::cuda;  // NOLINT
  const Device device = describe(0, nullptr);
  MoveProblem p{{1, size, size, channels}, {1, size, size, channels}, {0, 1, 2, 3}, {}, Border::kConstant, 0};
  Context ctx{Precision::kF16, images, &device, 16, 16, 16};
  ctx.x_channel = size * size;
  return select(rows().Move, p, ctx).kernel->name;
}
// ... its memory.
extern "C" __attribute__((visibility("default"))) void ck_emulated_memory(int64_t bytes) { ck::cuda::emulated().memory_bytes = bytes; }
// ... whether every stream is being captured; what is launched meanwhile is lost.
extern "C" __attribute__((visibility("default"))) void ck_emulated_capture(int32_t on) {
  static std::vector<std::function<void()>> launches;
  ck::cuda::emulated().capture = on ? &launches : nullptr;
}
// ... 0: blocks of memory that there are, 1: that have ever been, 2: how often the whole device was waited for.
extern "C" __attribute__((visibility("default"))) int64_t ck_emulated_count(int32_t what) {
  const ck::cuda::Emulated& e = ck::cuda::emulated();
  return what == 0 ? e.allocations : what == 1 ? e.allocated : e.waits;
}
#endif

extern "C" __attribute__((visibility("default"))) const ck::device::Table* ck_device_table() {
  using namespace ck;        // NOLINT
  using namespace ck::cuda;  // NOLINT
  static const device::Table table = {
      device::kVersion,
      sizeof(device::Table),
      {sizeof(ConvProblem), sizeof(PoolProblem), sizeof(NormProblem), sizeof(MapProblem), sizeof(MoveProblem), sizeof(ResizeProblem)},
      kEmulated,
      kDlpackType,
      last_error,
      count,
      info,
      kernel,
      allocate_,
      release_,
      copy,
      synchronize_,
      order_,
      relay_,
      weight_create,
      weight_bytes,
      weight_destroy,
      plan_create,
      plan_run,
      plan_profile,
      plan_choice,
      plan_memory,
      plan_destroy,
  };
  return &table;
}
