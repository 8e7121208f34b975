// conv_mma_half.cu: conv_mma with half: a file for each type, compiled side by side.
#include "cuda/mma_rows.cuh"

namespace ck::cuda {
namespace {

// Sizes: pixels and filters of a tile, warps along both, bytes of x at once.
template <int... kSizes>
using Config = MmaConfig<Half, Product::kPlain, kSizes...>;

const MmaVariant kVariants[] = {
    mma_variant<Config<128, 128, 2, 4, 16>>("128x128", 0.31f, 1.2f),
    mma_variant<Config<128, 64, 4, 2, 16>>("128x64", 0.17f, 0.8f),
    mma_variant<Config<64, 64, 2, 2, 16>>("64x64", 0.10f, 0.6f),
    mma_variant<Config<128, 32, 4, 1, 16>>("128x32", 0.10f, 0.6f),
    mma_variant<Config<64, 64, 2, 2, 4>>("64x64 by words", 0.16f, 0.6f),
    mma_variant<Config<64, 64, 2, 2, 2>>("64x64 by elements", 0.40f, 0.6f),
};

}  // namespace

MmaVariants mma_variants_half() { return {kVariants, sizeof kVariants / sizeof *kVariants}; }

}  // namespace ck::cuda
