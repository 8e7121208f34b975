// table.cpp: the functions of core/device.h for CUDA. Catches everything: a failure is a Status and a message.
#include <new>

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

Status allocate_(int32_t id, int64_t bytes, uint64_t stream, void** out) {
  return guarded([&] {
    const DeviceScope scope(id);
    *out = allocate(id, bytes, stream_of(stream));
  });
}

Status release_(int32_t id, void* p, uint64_t stream) {
  return guarded([&] {
    const DeviceScope scope(id);
    if (stream == device::kAnyStream) release_after_all(id, p);
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
