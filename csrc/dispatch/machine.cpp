// machine.cpp: asks the system for the size of the second-level cache.
#include "core/machine.h"

#include <unistd.h>

#include <algorithm>

namespace ck {
namespace {

int64_t ask() {
  int64_t bytes = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
  bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
  if (bytes <= 0) bytes = int64_t{1} << 20;  // the system does not say
  return std::clamp(bytes, int64_t{256} << 10, int64_t{2} << 20);
}

}  // namespace

const int64_t l2_bytes = ask();

}  // namespace ck
