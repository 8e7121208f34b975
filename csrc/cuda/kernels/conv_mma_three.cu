// conv_mma_three.cu: conv_mma with three TF32 products: a file for each type, compiled side by side.
#include "cuda/mma_rows.cuh"

namespace ck::cuda {
namespace {

// Sizes: pixels and filters of a tile, warps along both, bytes of x at once.
template <int... kSizes>
using Config = MmaConfig<float, Product::kThree, kSizes...>;

const MmaVariant kVariants[] = {
    mma_variant<Config<128, 64, 4, 2, 16>>("128x64", 0.51f, 0.8f),
    mma_variant<Config<64, 64, 2, 2, 16>>("64x64", 0.30f, 0.6f),
    mma_variant<Config<128, 32, 4, 1, 16>>("128x32", 0.30f, 0.6f),
    mma_variant<Config<64, 64, 2, 2, 4>>("64x64 by words", 0.48f, 0.6f),
};

}  // namespace

MmaVariants mma_variants_three() { return {kVariants, sizeof kVariants / sizeof *kVariants}; }

}  // namespace ck::cuda
