// dropout_vector.cpp: dropout and stochastic depth, float32.
//
// Computes  the formula of dropout_ref.cpp, the same mask
// Layout    x, y NDHWC
// Tiling    task = 4096 elements of an image; random numbers of 64 elements at a time (core/random.h)
// Cost      8*DHWC bytes; some 3 integer operations an element
// Refuses   nothing
// Source    as dropout_ref.cpp
#include "core/kernel.h"
#include "core/random.h"
#include "cpu/runs.h"
#include "simd/math.h"

namespace ck {
namespace CK_ISA {
namespace {

CK_INLINE Runs split(const DropoutProblem& p) { return Runs::of(p.d, p.h, p.w, 4 * p.c); }

void run(const DropoutProblem& p, const DropoutArgs& a, int64_t, int, int64_t first, int64_t last, void*, void*) {
  const uint64_t threshold = drop_threshold(p.rate);
  const uint64_t step = a.step ? static_cast<uint64_t>(*static_cast<const float*>(a.step)) : 0;
  const float factor = p.rate < 1 ? static_cast<float>(1 / (1 - p.rate)) : 0.f;
  const int64_t size = p.d * p.h * p.w * p.c;
  const bool whole = a.x.pixel == p.c && a.y.pixel == p.c;
  const bool dense = dense_rows(a.x, p.d, p.h, p.w) && dense_rows(a.y, p.d, p.h, p.w);
  uint32_t numbers[kRandomBlock];
  float keep[kRandomBlock];  // the factor or 0
  int64_t have = -1;
  const auto make = [&](int64_t block) {
    if (block == have) return;
    have = block;
    random_block(p.seed, step, static_cast<uint64_t>(block), numbers);
    for (int i = 0; i < kRandomBlock; ++i) keep[i] = numbers[i] < threshold ? 0.f : factor;
  };
  // 0 where dropped, even of infinities and NaN.
  const auto apply = [&](const float* x, float* y, int64_t n, int64_t element) {
    for (int64_t i = 0; i < n;) {
      make((element + i) / kRandomBlock);
      const int64_t at = (element + i) % kRandomBlock, count = n - i < kRandomBlock - at ? n - i : kRandomBlock - at;
      for (int64_t j = 0; j < count; ++j) y[i + j] = keep[at + j] == 0.f ? 0.f : x[i + j] * keep[at + j];
      i += count;
    }
  };
  split(p).each(first, last, dense, [&](int64_t n, int64_t d, int64_t h, int64_t w, int64_t count) {
    const float* x = at<const float>(a.x, n, d, h, w);
    float* y = at<float>(a.y, n, d, h, w);
    const int64_t spans = whole ? 1 : count, length = whole ? count * p.c : p.c;
    int64_t element = n * size + ((d * p.h + h) * p.w + w) * p.c;
    for (int64_t i = 0; i < spans; ++i, x += a.x.pixel, y += a.y.pixel, element += length) {
      if (!p.per_image) {
        apply(x, y, length, element);
        continue;
      }
      make(n / kRandomBlock);
      const float scale = keep[n % kRandomBlock];
      for (int64_t j = 0; j < length; ++j) y[j] = scale == 0.f ? 0.f : x[j] * scale;
    }
  });
}

const char* refuse(const DropoutProblem&) { return nullptr; }
double cost(const DropoutProblem& p) { return double(p.d * p.h * p.w * p.c) * 12 / 10e3; }
int64_t scratch_bytes(const DropoutProblem&) { return 0; }
int64_t shared_bytes(const DropoutProblem&, int64_t) { return 0; }
int64_t phases(const DropoutProblem&, int64_t) { return 1; }
int64_t tasks(const DropoutProblem& p, int64_t images, int) { return p.c ? images * split(p).per_image : 0; }

}  // namespace

extern const DropoutKernel dropout_vector;
const DropoutKernel dropout_vector = {"dropout_vector", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run};

}  // namespace CK_ISA
}  // namespace ck
