// map_spans.h: what the elementwise rows share: an operator on a span of values, and how an operand that repeats is stepped through.
#pragma once
#include "core/kernel.h"
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

// y[i] = act(a[i] op b[i]), i < n.
template <MapKind kKind>
CK_INLINE void span_of(const float* a, bool row_a, const float* b, bool row_b, float* y, int64_t n, const Activation& act) {
  const bool clamps = act.kind == Act::kClamp, later = !clamps && act.kind != Act::kNone;
  if (kKind == MapKind::kUnary && later) return activate_span(a, y, n, act);
  const vf lo = splat(clamps ? static_cast<float>(act.a) : -__builtin_inff()),
           hi = splat(clamps ? static_cast<float>(act.b) : __builtin_inff());
  if (row_a && row_b) span<kKind, true, true>(a, b, y, n, lo, hi);
  else if (row_a) span<kKind, true, false>(a, b, y, n, lo, hi);
  else if (row_b) span<kKind, false, true>(a, b, y, n, lo, hi);
  else span<kKind, false, false>(a, b, y, n, lo, hi);
  if (later) activate_span(y, y, n, act);
}

struct Operand {
  View view;
  bool row;  // false: one float for all channels
};

CK_INLINE Operand operand(View v, int64_t d, int64_t h, int64_t w, int64_t c, const MapProblem& p) {
  if (d == 1 && p.d > 1) v.depth = 0;
  if (h == 1 && p.h > 1) v.row = 0;
  if (w == 1 && p.w > 1) v.pixel = 0;
  return {v, c == p.c && !(c == 1 && v.pixel == 0)};
}

// A run of pixels is one span: rows lie without gaps, single floats stay the same.
CK_INLINE bool spans_pixels(const Operand& o, int64_t c) { return o.view.pixel == (o.row ? c : 0); }

// f(kind as a constant).
template <class F>
CK_INLINE void with_kind(MapKind kind, const F& f) {
  switch (kind) {
    case MapKind::kUnary: return f.template run<MapKind::kUnary>();
    case MapKind::kAdd: return f.template run<MapKind::kAdd>();
    case MapKind::kSub: return f.template run<MapKind::kSub>();
    case MapKind::kMul: return f.template run<MapKind::kMul>();
    case MapKind::kDiv: return f.template run<MapKind::kDiv>();
    case MapKind::kMax: return f.template run<MapKind::kMax>();
    case MapKind::kMin: return f.template run<MapKind::kMin>();
  }
}

}  // namespace
}  // namespace CK_ISA
}  // namespace ck
