// map_vector.cpp: elementwise operators with broadcast, float32.
//
// Computes  y = act(a op b) or y = act(a), as map_ref.cpp
// Layout    a, b, y NDHWC; an operand's dimension of size 1 is repeated through a stride of 0
// Tiling    task = about 16 KB of pixels; a run of pixels is one span where nothing repeats within it, else a span per pixel.
//           In a span each operand is a row of floats or one float; other activations than clamps follow while the span is in the cache
// Cost      4*DHWC bytes per operand and result
// Refuses   nothing
// Source    as map_ref.cpp
#include "cpu/map_spans.h"
#include "cpu/runs.h"

namespace ck {
namespace CK_ISA {
namespace {

template <MapKind kKind>
void loop(const MapProblem& p, const MapArgs& args, const Runs& runs, int64_t first, int64_t last) {
  const Operand a = operand(args.a, p.ad, p.ah, p.aw, p.ac, p);
  const Operand b = kKind == MapKind::kUnary ? a : operand(args.b, p.bd, p.bh, p.bw, p.bc, p);
  const bool one_span = args.y.pixel == p.c && spans_pixels(a, p.c) && spans_pixels(b, p.c);
  const bool dense = dense_rows(args.y, p.d, p.h, p.w) && dense_rows(a.view, p.d, p.h, p.w) && dense_rows(b.view, p.d, p.h, p.w);
  runs.each(first, last, dense, [&](int64_t n, int64_t d, int64_t h, int64_t w, int64_t count) {
    const float* pa = at<float>(a.view, n, d, h, w);
    const float* pb = at<float>(b.view, n, d, h, w);
    float* y = at<float>(args.y, n, d, h, w);
    const int64_t spans = one_span ? 1 : count, length = one_span ? count * p.c : p.c;
    for (int64_t i = 0; i < spans; ++i, pa += a.view.pixel, pb += b.view.pixel, y += args.y.pixel)
      span_of<kKind>(pa, a.row, pb, b.row, y, length, p.act);
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

struct Run {
  const MapProblem& p;
  const MapArgs& args;
  int64_t first, last;
  template <MapKind kKind>
  CK_INLINE_MEMBER void run() const {
    loop<kKind>(p, args, split(p), first, last);
  }
};
void run(const MapProblem& p, const MapArgs& args, int64_t, int64_t first, int64_t last, void*) {
  with_kind(p.kind, Run{p, args, first, last});
}

}  // namespace

extern const MapKernel map_vector;
const MapKernel map_vector = {"map_vector", refuse, cost, scratch_bytes, tasks, run};

}  // namespace CK_ISA
}  // namespace ck
