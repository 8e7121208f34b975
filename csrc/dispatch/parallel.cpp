// parallel.cpp: the default thread count and the fork flag.
#include "core/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <cstdlib>

namespace ck {
namespace {

std::atomic<bool> g_forked{false};
// When the library is loaded: a child must be known whatever its parent called before.
[[maybe_unused]] const int g_registered = pthread_atfork(nullptr, nullptr, [] { g_forked = true; });

int from_environment(const char* name) {
  const char* text = std::getenv(name);
  const int n = text ? std::atoi(text) : 0;
  return n > 0 ? n : 0;
}

int default_threads() {
  if (int n = from_environment("CONVKERN_NUM_THREADS")) return n;
  if (int n = from_environment("OMP_NUM_THREADS")) return n;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return 1;
}

std::atomic<int>& threads() {
  static std::atomic<int> n{default_threads()};
  return n;
}

}  // namespace

int num_threads() { return threads(); }
void set_num_threads(int n) { threads() = n < 1 ? 1 : n; }
bool forked() { return g_forked; }

}  // namespace ck
