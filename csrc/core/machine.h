// machine.h: what kernels know of the machine at run time. Block sizes depend on it, results do not.
#pragma once
#include <cstdint>

namespace ck {

extern const int64_t l2_bytes;  // second-level cache of one core (dispatch/machine.cpp)

// For the cost models: vector FMAs that a core starts in a microsecond at its best (between Zen 4's 4,000 and Granite Rapids' 8,000), and bytes
// of weights that it reads from memory.
constexpr double kVectorsPerMicrosecond = 5000.0, kBytesPerMicrosecond = 15e3;

}  // namespace ck
