// mma_rows.cuh: conv_mma's variants and launches, for the row and for conv_first, which runs it over views of its own.
#pragma once
#include "cuda/kernels/conv_mma.cuh"

namespace ck::cuda {

struct MmaVariant {
  const char* name;
  int tile_m, tile_n, vector, threads, shared_bytes, blocks_per_sm;
  float step, tile;  // microseconds of an SM of an H100 for a step of 64 bytes of depth, and for what a tile costs besides
  cudaError_t (*launch)(const MmaArgs&, dim3 grid, cudaStream_t);
};
struct MmaVariants {
  const MmaVariant* first;
  int count;
};
// One file for each type (conv_mma_*.cu).
MmaVariants mma_variants_half();
MmaVariants mma_variants_bfloat();
MmaVariants mma_variants_tf32();
MmaVariants mma_variants_three();
inline MmaVariants mma_variants(Precision p) {
  return p == Precision::kF16    ? mma_variants_half()
         : p == Precision::kBF16 ? mma_variants_bfloat()
         : p == Precision::kTF32 ? mma_variants_tf32()
                                 : mma_variants_three();
}

struct MmaChoice {
  const MmaVariant* variant;
  int slices;
  double us;
};
// `vector`: bytes that may be read at once of x, 16, 4 or 2.
MmaChoice choose_mma(const ConvProblem& p, const Context& ctx, int vector);
int64_t mma_workspace_bytes(const ConvProblem& p, const Context& ctx, const MmaChoice& choice);
// The filters are packed as filter_layout(p, mma_merge(p), ..) says.
cudaError_t launch_mma(const ConvProblem& p, const ConvArgs& a, const Context& ctx, const MmaChoice& choice, void* workspace,
                       cudaStream_t stream);
int64_t mma_merge(const ConvProblem& p);

template <class C>
cudaError_t launch_variant(const MmaArgs& g, dim3 grid, cudaStream_t stream) {
  return launch<true>(multiply<C>, grid, dim3(C::kThreads), C::kShared, stream, g);
}
template <class C>
MmaVariant mma_variant(const char* name, float step, float tile) {
  return {name, C::kM, C::kN, C::kVector, C::kThreads, C::kShared, C::kBlocks, step, tile, launch_variant<C>};
}

}  // namespace ck::cuda
