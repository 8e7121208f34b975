// parallel.h: the only file that knows OpenMP. Cuts [0, tasks) into one contiguous range per thread.
//
// After a fork the child has no worker threads and GNU OpenMP would wait for them for ever: a forked child runs on one thread.
// Denormals are flushed to zero while kernels run (a layer of denormals is some 40 times slower) and the caller's mode is restored.
#pragma once
#include <omp.h>

#include <cstdint>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace ck {

int num_threads();            // the default: CONVKERN_NUM_THREADS, else OMP_NUM_THREADS, else the processors this process may use
void set_num_threads(int n);  // n >= 1
bool forked();

class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(saved_ | (1ull << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

// f(thread, first, last) for each non-empty range; threads <= the number given.
template <class F>
void parallel_ranges(int64_t tasks, int threads, F f) {
  if (tasks <= 0) return;
  if (threads > tasks) threads = static_cast<int>(tasks);
  if (threads <= 1 || forked()) {
    FlushDenormals flush;
    f(0, int64_t{0}, tasks);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    FlushDenormals flush;
    const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t first = tasks * me / team, last = tasks * (me + 1) / team;
    if (first < last) f(static_cast<int>(me), first, last);
  }
}

}  // namespace ck
