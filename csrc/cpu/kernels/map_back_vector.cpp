// map_back_vector.cpp: gradients of activations and of max and min, float32.
//
// Computes  the formulas of map_back_ref.cpp
// Layout    dy, saved, dx NDHWC
// Tiling    task = about 16 KB of pixels, in spans as long as no tensor has a gap
// Cost      12*DHWC bytes (16 for max and min)
// Refuses   operands of max and min that repeat
// Source    as map_back_ref.cpp
#include "core/kernel.h"
#include "cpu/runs.h"
#include "simd/slope.h"

namespace ck {
namespace CK_ISA {
namespace {

// dx = dy * slope(s) over a span; where the slope is 0, dx is 0, whatever dy.
template <bool kOutput>
struct Span {
  const float *dy, *saved;
  float* dx;
  int64_t n;
  float a, b;

  template <Act kKind>
  CK_INLINE_MEMBER void run() const {
    const vf va = splat(a), vb = splat(b), zero = splat(0.f);
    auto step = [&](auto io, int64_t i) __attribute__((always_inline)) {
      const vf factor = slope<kKind, kOutput>(io.load(saved + i), va, vb);
      io.store(dx + i, select(factor == zero, zero, io.load(dy + i) * factor));
    };
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) step(Full{}, i);
    if (i < n) step(Part{static_cast<int>(n - i)}, i);
  }
};

template <bool kMax>
CK_INLINE void winner(const float* dy, const float* a, const float* b, float* dx, int64_t n) {
  auto step = [&](auto io, int64_t i) __attribute__((always_inline)) {
    const vf va = io.load(a + i), vb = io.load(b + i), g = io.load(dy + i);
    const vi loses = kMax ? va < vb : va > vb;
    io.store(dx + i, select(loses, splat(0.f), select(va == vb, g * splat(0.5f), g)));
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) step(Full{}, i);
  if (i < n) step(Part{static_cast<int>(n - i)}, i);
}

CK_INLINE Runs split(const MapBackProblem& p) { return Runs::of(p.d, p.h, p.w, 4 * p.c); }

void run(const MapBackProblem& p, const MapBackArgs& args, int64_t, int, int64_t first, int64_t last, void*, void*) {
  const bool two = p.kind != MapBackKind::kActivation;
  bool dense = true, whole = true;
  const View* const views[] = {&args.dy, &args.a, &args.dx};
  for (const View* v : views) dense &= dense_rows(*v, p.d, p.h, p.w), whole &= v->pixel == p.c;
  if (two) dense &= dense_rows(args.b, p.d, p.h, p.w), whole &= args.b.pixel == p.c;
  const float a = static_cast<float>(p.act.a);
  const bool no_top = p.act.kind == Act::kClamp && !(p.act.b < __builtin_inf());
  const float b = no_top ? __builtin_nanf("") : static_cast<float>(p.act.b);
  split(p).each(first, last, dense, [&](int64_t n, int64_t d, int64_t h, int64_t w, int64_t count) {
    const float *dy = at<const float>(args.dy, n, d, h, w), *x = at<const float>(args.a, n, d, h, w);
    const float* y = two ? at<const float>(args.b, n, d, h, w) : nullptr;
    float* dx = at<float>(args.dx, n, d, h, w);
    const int64_t spans = whole ? 1 : count, length = whole ? count * p.c : p.c;
    for (int64_t i = 0; i < spans; ++i, dy += args.dy.pixel, x += args.a.pixel, y += args.b.pixel, dx += args.dx.pixel) {
      if (p.kind == MapBackKind::kMax) winner<true>(dy, x, y, dx, length);
      else if (p.kind == MapBackKind::kMin) winner<false>(dy, x, y, dx, length);
      else if (p.from_output) with_activation(p.act.kind, Span<true>{dy, x, dx, length, a, b});
      else with_activation(p.act.kind, Span<false>{dy, x, dx, length, a, b});
    }
  });
}

const char* refuse(const MapBackProblem& p) {
  const bool same = p.ad == p.d && p.ah == p.h && p.aw == p.w && p.ac == p.c && p.bd == p.d && p.bh == p.h && p.bw == p.w && p.bc == p.c;
  return p.kind == MapBackKind::kActivation || same ? nullptr : "an operand that repeats";
}
double cost(const MapBackProblem& p) {
  const bool cheap = p.act.kind == Act::kNone || p.act.kind == Act::kClamp;
  return double(p.d * p.h * p.w * p.c) * (12 / 10e3 + (cheap ? 0 : 60 / (4e3 * kLanes)));
}
int64_t scratch_bytes(const MapBackProblem&) { return 0; }
int64_t shared_bytes(const MapBackProblem&, int64_t) { return 0; }
int64_t phases(const MapBackProblem&, int64_t) { return 1; }
int64_t tasks(const MapBackProblem& p, int64_t images, int) { return p.c ? images * split(p).per_image : 0; }

}  // namespace

extern const MapBackKernel map_back_vector;
const MapBackKernel map_back_vector = {"map_back_vector", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run};

}  // namespace CK_ISA
}  // namespace ck
