// map_vector.cpp: elementwise operators with broadcast, float32.
//
// Computes  y = act(a op b) or y = act(a), as map_ref.cpp
// Layout    a, b, y NDHWC; an operand's dimension of size 1 is repeated through a stride of 0
// Tiling    task = about 16 KB of pixels; a run of pixels is one span where nothing repeats within it, else a span per pixel.
//           In a span each operand is a row of floats or one float; other activations than clamps follow while the span is in the cache
// Cost      4*DHWC bytes per operand and result
// Refuses   nothing
// Source    as map_ref.cpp
#include "core/kernel.h"
#include "cpu/runs.h"
#include "simd/math.h"

namespace ck {
namespace CK_ISA {
namespace {

template <MapKind kKind>
CK_INLINE vf combine(vf a, vf b) {
  switch (kKind) {
    case MapKind::kUnary: return a;
    case MapKind::kAdd: return a + b;
    case MapKind::kSub: return a - b;
    case MapKind::kMul: return a * b;
    case MapKind::kDiv: return a / b;
    case MapKind::kMax: return maximum(a, b);
    case MapKind::kMin: return minimum(a, b);
  }
  return a;
}

// y[i] = clamp(a[i] op b[i]), i < n; an operand that is not a row is one float.
template <MapKind kKind, bool kRowA, bool kRowB>
CK_INLINE void span(const float* a, const float* b, float* y, int64_t n, vf lo, vf hi) {
  const vf one_a = splat(kRowA ? 0.0f : *a), one_b = splat(kRowB ? 0.0f : *b);
  auto step = [&](auto io, int64_t i) __attribute__((always_inline)) {
    io.store(y + i, clamp(combine<kKind>(kRowA ? io.load(a + i) : one_a, kRowB ? io.load(b + i) : one_b), lo, hi));
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) step(Full{}, i);
  if (i < n) step(Part{static_cast<int>(n - i)}, i);
}

struct Operand {
  View view;
  bool row;  // false: one float for all channels
};

Operand operand(View v, int64_t d, int64_t h, int64_t w, int64_t c, const MapProblem& p) {
  if (d == 1 && p.d > 1) v.depth = 0;
  if (h == 1 && p.h > 1) v.row = 0;
  if (w == 1 && p.w > 1) v.pixel = 0;
  return {v, c == p.c && !(c == 1 && v.pixel == 0)};
}

// A run of pixels is one span: rows lie without gaps, single floats stay the same.
bool whole(const Operand& o, int64_t c) { return o.view.pixel == (o.row ? c : 0); }

template <MapKind kKind>
void loop(const MapProblem& p, const MapArgs& args, const Runs& runs, int64_t first, int64_t last) {
  const Operand a = operand(args.a, p.ad, p.ah, p.aw, p.ac, p);
  const Operand b = kKind == MapKind::kUnary ? a : operand(args.b, p.bd, p.bh, p.bw, p.bc, p);
  const bool one_span = args.y.pixel == p.c && whole(a, p.c) && whole(b, p.c);
  const bool dense = dense_rows(args.y, p.d, p.h, p.w) && dense_rows(a.view, p.d, p.h, p.w) && dense_rows(b.view, p.d, p.h, p.w);
  const bool clamps = p.act.kind == Act::kClamp, later = !clamps && p.act.kind != Act::kNone;
  const vf lo = splat(clamps ? static_cast<float>(p.act.a) : -__builtin_inff()),
           hi = splat(clamps ? static_cast<float>(p.act.b) : __builtin_inff());
  runs.each(first, last, dense, [&](int64_t n, int64_t d, int64_t h, int64_t w, int64_t count) {
    const float* pa = at<float>(a.view, n, d, h, w);
    const float* pb = at<float>(b.view, n, d, h, w);
    float* y = at<float>(args.y, n, d, h, w);
    const int64_t spans = one_span ? 1 : count, length = one_span ? count * p.c : p.c;
    for (int64_t i = 0; i < spans; ++i, pa += a.view.pixel, pb += b.view.pixel, y += args.y.pixel) {
      if (kKind == MapKind::kUnary && later) {
        activate_span(pa, y, length, p.act);
        continue;
      }
      if (a.row && b.row) span<kKind, true, true>(pa, pb, y, length, lo, hi);
      else if (a.row) span<kKind, true, false>(pa, pb, y, length, lo, hi);
      else if (b.row) span<kKind, false, true>(pa, pb, y, length, lo, hi);
      else span<kKind, false, false>(pa, pb, y, length, lo, hi);
      if (later) activate_span(y, y, length, p.act);
    }
  });
}

const char* refuse(const MapProblem&) { return nullptr; }
double cost(const MapProblem& p) {
  const bool cheap = p.act.kind == Act::kNone || p.act.kind == Act::kClamp;
  return double(p.d * p.h * p.w * p.c) * ((p.kind == MapKind::kUnary ? 8 : 12) / 10e3 + (cheap ? 0 : 40 / (4e3 * kLanes)));
}
int64_t scratch_bytes(const MapProblem&) { return 0; }
Runs split(const MapProblem& p) { return Runs::of(p.d, p.h, p.w, 4 * p.c); }
int64_t tasks(const MapProblem& p, int64_t images) { return p.c ? images * split(p).per_image : 0; }

void run(const MapProblem& p, const MapArgs& args, int64_t, int64_t first, int64_t last, void*) {
  const Runs runs = split(p);
  switch (p.kind) {
    case MapKind::kUnary: return loop<MapKind::kUnary>(p, args, runs, first, last);
    case MapKind::kAdd: return loop<MapKind::kAdd>(p, args, runs, first, last);
    case MapKind::kSub: return loop<MapKind::kSub>(p, args, runs, first, last);
    case MapKind::kMul: return loop<MapKind::kMul>(p, args, runs, first, last);
    case MapKind::kDiv: return loop<MapKind::kDiv>(p, args, runs, first, last);
    case MapKind::kMax: return loop<MapKind::kMax>(p, args, runs, first, last);
    case MapKind::kMin: return loop<MapKind::kMin>(p, args, runs, first, last);
  }
}

}  // namespace

extern const MapKernel map_vector;
const MapKernel map_vector = {"map_vector", refuse, cost, scratch_bytes, tasks, run};

}  // namespace CK_ISA
}  // namespace ck
