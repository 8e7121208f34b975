// main.cpp: the emulated rows as C functions for the tests (ctypes), and a few kernels that show what the emulation notices.
#include "cuda/mma_rows.cuh"
#include "cuda/sm90_conv.cuh"
#include "cuda/sm90_rows.cuh"

using namespace ck;
using namespace ck::cuda;

namespace ck::cuda {
extern const ConvKernel conv_sm90_persistent, conv_sm90_halo, conv_sm90_cluster, conv_mma, conv_sm90_first, conv_first,
    conv_sm90_first_view;
}

namespace {
const ck::cuda::ConvKernel* const kRows[] = {&conv_sm90_persistent, &conv_sm90_halo, &conv_sm90_cluster,   &conv_mma,
                                             &conv_sm90_first,      &conv_first,     &conv_sm90_first_view};
}

extern "C" {
// The sizes of the structs that the tests have written in ctypes, in the order of their list.
void struct_sizes(int64_t* sizes) {
  const size_t all[] = {sizeof(View),    sizeof(Activation),         sizeof(ConvProblem), sizeof(ck::cuda::Device),
                        sizeof(Context), sizeof(ck::cuda::ConvArgs), sizeof(MapSpec)};
  for (const size_t size : all) *sizes++ = static_cast<int64_t>(size);
}
int row_count() { return sizeof kRows / sizeof *kRows; }
const char* row_name(int i) { return kRows[i]->name; }
const char* row_refuse(int i, const ConvProblem* p, const Context* c) { return kRows[i]->refuse(*p, *c); }
double row_cost(int i, const ConvProblem* p, const Context* c) { return kRows[i]->cost(*p, *c); }
int64_t row_workspace_bytes(int i, const ConvProblem* p, const Context* c) { return kRows[i]->workspace_bytes(*p, *c); }
int64_t row_packed_bytes(int i, const ConvProblem* p, const Context* c) { return kRows[i]->packed_bytes(*p, *c); }
int row_pack(int i, const ConvProblem* p, const Context* c, const float* weights, void* packed) {
  return kRows[i]->pack(*p, *c, weights, packed, nullptr);
}
int row_run(int i, const ConvProblem* p, const ck::cuda::ConvArgs* a, const Context* c, void* workspace) {
  return kRows[i]->run(*p, *a, *c, workspace, nullptr);
}

// Tile shapes of the sm_90a rows: 0 persistent, 1 halo, 2 cluster.
static Sm90Variants variants(int kind) { return kind == 0 ? persistent_variants() : kind == 1 ? halo_variants() : cluster_variants(); }
int variant_count(int kind) { return variants(kind).count; }
const char* variant_name(int kind, int i) { return variants(kind).first[i].name; }
int variant_any_act(int kind, int i) { return variants(kind).first[i].any_act; }
int variant_run(int kind, int i, int split, const ConvProblem* p, const ck::cuda::ConvArgs* a, const Context* c) {
  const Sm90Variant& v = variants(kind).first[i];
  if (kind == 1 && halo_shared(v, *p) > kSm90Shared) return -1;
  return kind == 0   ? launch_persistent(*p, *a, *c, v, nullptr)
         : kind == 1 ? launch_halo(*p, *a, *c, v, nullptr)
                     : launch_cluster(*p, *a, *c, v, split, nullptr);
}
int choice(int kind, const ConvProblem* p, const Context* c, int* split, double* us) {
  const Sm90Choice best = kind == 0 ? choose_persistent(*p, *c) : kind == 1 ? choose_halo(*p, *c) : choose_cluster(*p, *c);
  *split = best.split, *us = best.us;
  return best.variant ? static_cast<int>(best.variant - variants(kind).first) : -1;
}

int mma_count(int precision) { return mma_variants(static_cast<Precision>(precision)).count; }
const char* mma_name(int precision, int i) { return mma_variants(static_cast<Precision>(precision)).first[i].name; }
int mma_vector(int precision, int i) { return mma_variants(static_cast<Precision>(precision)).first[i].vector; }
int64_t mma_workspace(int i, int slices, const ConvProblem* p, const Context* c) {
  return mma_workspace_bytes(*p, *c, {mma_variants(c->precision).first + i, slices, 0});
}
int mma_run(int i, int slices, const ConvProblem* p, const ck::cuda::ConvArgs* a, const Context* c, void* workspace) {
  return launch_mma(*p, *a, *c, {mma_variants(c->precision).first + i, slices, 0}, workspace, nullptr);
}

// Index arithmetic and plans.
int64_t merge(const ConvProblem* p) { return mma_merge(*p); }
int chunk_place(int row, int chunk) { return static_cast<int>(swizzled_chunk(row, chunk)); }
uint32_t divide(uint32_t n, int64_t d, uint32_t* rest) { return Divider<uint32_t>(d).divmod(n, *rest); }
uint64_t descriptor(int row_bytes, uint32_t address, uint32_t step, uint32_t group) {
  return row_bytes == 128  ? swizzled_descriptor<128>(address, group)
         : row_bytes == 64 ? swizzled_descriptor<64>(address, group)
                           : plain_descriptor(address, step, group);
}
void im2col(const ConvProblem* p, int64_t images, const View* x, int type, int row_bytes, int pixels, MapSpec* out) {
  *out = im2col_map(static_cast<MapSpec::Type>(type), *p, images, *x, row_bytes, pixels);
}
const char* map_refuse(const MapSpec* m) { return refuse_map(*m); }
}

// What the emulation notices. 0: a stage is read without waiting for it; 1: a barrier that nobody arrives at; 2: lanes of a warp that go different
// ways; 3: a wgmma's result is read before it is waited for; 4: none of these.
namespace {
__global__ void careless(const __grid_constant__ CUtensorMap map, float* out, int what) {
  const uint32_t base = shared_address(dynamic_shared()), bar = base + 16384;
  if (threadIdx.x == 0) barrier_init(bar, 1);
  __syncthreads();
  if (threadIdx.x == 0 && what != 1) {
    barrier_arrive_expect(bar, 8192);
    tma_load_2d(base, &map, bar, 0, 0);
  }
  if (what != 0) barrier_wait(bar, 0);
  if (what == 2 && threadIdx.x % 32 == 3) __syncthreads();
  else if (what == 2) __syncwarp();
  float d[32];
  wgmma<Half, 64>(d, swizzled_descriptor<128>(base), swizzled_descriptor<128>(base), 0);
  wgmma_commit();
  if (what != 3) wgmma_wait<0>();
  out[threadIdx.x] = d[0];
  wgmma_wait<0>();
}
}  // namespace
extern "C" int run_careless(int what, const void* x, float* out) {
  const View v{const_cast<void*>(x), 0, 0, 0, 64};
  Device device{};
  return launch_sm90(reinterpret_cast<const void*>(&careless), {1, 128, 16384 + 8, 1}, device, nullptr,
                     matrix_map(MapSpec::kHalf, v, 64, 64, 64, 64), out, what);
}
