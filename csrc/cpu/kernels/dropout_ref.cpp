// dropout_ref.cpp: dropout and stochastic depth, float32 and float64; on dy it is its own gradient.
//
// Computes  y = x / (1 - rate) where the random number of the element (per_image: of the image) is at least rate * 2^32, else 0
// Layout    x, y NDHWC; elements are counted n d h w c, whatever the strides
// Tiling    task = row (n,d,h)
// Refuses   nothing
// Source    Srivastava et al. 2014; Huang et al. 2016, arXiv:1603.09382; core/random.h
#include "core/kernel.h"
#include "core/random.h"

namespace ck::ref {
namespace {

template <class T>
void run(const DropoutProblem& p, const DropoutArgs& a, int64_t, int, int64_t first, int64_t last, void*, void*) {
  const uint64_t threshold = drop_threshold(p.rate);
  const uint64_t step = a.step ? static_cast<uint64_t>(*static_cast<const T*>(a.step)) : 0;
  const T factor = p.rate < 1 ? static_cast<T>(1 / (1 - p.rate)) : T(0);
  uint32_t numbers[kRandomBlock];
  int64_t have = -1;
  for (int64_t task = first; task < last; ++task) {
    const int64_t n = task / (p.d * p.h), d = task / p.h % p.d, h = task % p.h;
    for (int64_t w = 0; w < p.w; ++w)
      for (int64_t c = 0; c < p.c; ++c) {
        const int64_t element = p.per_image ? n : (task * p.w + w) * p.c + c;
        if (have != element / kRandomBlock) random_block(p.seed, step, static_cast<uint64_t>(have = element / kRandomBlock), numbers);
        at<T>(a.y, n, d, h, w)[c] = numbers[element % kRandomBlock] < threshold ? T(0) : at<T>(a.x, n, d, h, w)[c] * factor;
      }
  }
}

const char* refuse(const DropoutProblem&) { return nullptr; }
double cost(const DropoutProblem& p) { return 0.02 * double(p.d * p.h * p.w * p.c); }
int64_t scratch_bytes(const DropoutProblem&) { return 0; }
int64_t shared_bytes(const DropoutProblem&, int64_t) { return 0; }
int64_t phases(const DropoutProblem&, int64_t) { return 1; }
int64_t tasks(const DropoutProblem& p, int64_t images, int) { return images * p.d * p.h; }

}  // namespace

extern const DropoutKernel dropout_ref, dropout_ref64;
const DropoutKernel dropout_ref = {"dropout_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<float>};
const DropoutKernel dropout_ref64 = {"dropout_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<double>};

}  // namespace ck::ref
