// machine.h: what kernels know of the machine at run time. Block sizes depend on it, results do not.
#pragma once
#include <cstdint>

namespace ck {

extern const int64_t l2_bytes;  // second-level cache of one core (dispatch/machine.cpp)

}  // namespace ck
