// sm90_rows.cuh: what the sm_90a rows share on the host: refusals, packed filters, the arguments of a launch.
#pragma once
#include "cuda/kernel.cuh"
#include "cuda/sm90_launch.cuh"
#include "cuda/sm90_plan.h"

// Passes an error on to the caller.
#define CK_TRY(call)                        \
  do {                                      \
    const cudaError_t error = (call);       \
    if (error != cudaSuccess) return error; \
  } while (0)

namespace ck::cuda {

inline MapSpec::Type map_type(Precision p) {
  return p == Precision::kF16 ? MapSpec::kHalf : p == Precision::kBF16 ? MapSpec::kBfloat : MapSpec::kTf32;
}
// Of y and the residual, which are not rounded.
inline MapSpec::Type output_type(Precision p) { return map_type(p) == MapSpec::kTf32 ? MapSpec::kFloat : map_type(p); }
inline const void* kernel_of(const Sm90Variant& v, const Context& ctx) { return v.kernel[map_type(ctx.precision)]; }
inline void set_epilogue(Sm90Args& g, const ConvProblem& p, const ConvArgs& a) {
  g.scale = a.scale, g.bias = a.bias, g.residual = a.residual.data ? 1 : 0;
  const bool none = p.act.kind == Act::kNone;
  g.act = static_cast<int>(none ? Act::kClamp : p.act.kind);
  g.act_a = none ? -INFINITY : static_cast<float>(p.act.a), g.act_b = none ? INFINITY : static_cast<float>(p.act.b);
}

// conv_sm90_common.cu
const char* refuse_device(const Context& ctx);  // anything but 9.0, and products that it has no tensor cores for
const char* refuse_sm90(const ConvProblem& p, const Context& ctx, bool im2col);  // null: the problem's sizes are fine, too
int64_t packed_krsc_bytes(const ConvProblem& p, const Context& ctx);
cudaError_t pack_krsc(const ConvProblem& p, const Context& ctx, const float* weights, void* packed, cudaStream_t stream);

// The tile shapes of each row, the choice among them (which looks at sizes alone), and a launch of any of them.
struct Sm90Variants {
  const Sm90Variant* first;
  int count;
};
Sm90Variants persistent_variants();
Sm90Variants halo_variants();
Sm90Variants cluster_variants();
Sm90Choice choose_persistent(const ConvProblem& p, const Context& ctx);
Sm90Choice choose_halo(const ConvProblem& p, const Context& ctx);
Sm90Choice choose_cluster(const ConvProblem& p, const Context& ctx);
cudaError_t launch_persistent(const ConvProblem& p, const ConvArgs& a, const Context& ctx, const Sm90Variant& v, cudaStream_t stream);
cudaError_t launch_halo(const ConvProblem& p, const ConvArgs& a, const Context& ctx, const Sm90Variant& v, cudaStream_t stream);
cudaError_t launch_cluster(const ConvProblem& p, const ConvArgs& a, const Context& ctx, const Sm90Variant& v, int split,
                           cudaStream_t stream);

}  // namespace ck::cuda
