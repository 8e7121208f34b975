// integers.h: the arithmetic of sizes that every kernel needs. The standard library's would be shared between ISAs (core/kernel.h).
#pragma once
#include <cstdint>

#include "simd/vec.h"

namespace ck {
namespace CK_ISA {
namespace {

CK_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
CK_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
CK_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
CK_INLINE int64_t align64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace
}  // namespace CK_ISA
}  // namespace ck
