// map_ref.cpp: elementwise operators with broadcast, float32 and float64, as the definition says.
//
// Computes  y = act(a op b), op one of + - * / max min, or y = act(a); max and min give NaN where either operand is NaN
// Layout    a, b, y NDHWC; an operand's dimension of size 1 is repeated
// Tiling    task = row (n,d,h)
// Cost      one operation and one activation an element
// Refuses   nothing
// Source    torch.add, maximum, ... and the activations of torch.nn.functional
#include "core/activation.h"
#include "core/kernel.h"

namespace ck::ref {
namespace {

template <class T>
T combine(MapKind kind, T a, T b) {
  switch (kind) {
    case MapKind::kUnary: return a;
    case MapKind::kAdd: return a + b;
    case MapKind::kSub: return a - b;
    case MapKind::kMul: return a * b;
    case MapKind::kDiv: return a / b;
    case MapKind::kMax: return a != a || a > b ? a : b;
    case MapKind::kMin: return a != a || a < b ? a : b;
  }
  return a;
}

template <class T>
void run(const MapProblem& p, const MapArgs& args, int64_t, int64_t first, int64_t last, void*) {
  for (int64_t task = first; task < last; ++task) {
    const int64_t n = task / (p.d * p.h), d = task / p.h % p.d, h = task % p.h;
    for (int64_t w = 0; w < p.w; ++w)
      for (int64_t c = 0; c < p.c; ++c) {
        const T a = at<T>(args.a, n, p.ad == 1 ? 0 : d, p.ah == 1 ? 0 : h, p.aw == 1 ? 0 : w)[p.ac == 1 ? 0 : c];
        T b = 0;
        if (p.kind != MapKind::kUnary) b = at<T>(args.b, n, p.bd == 1 ? 0 : d, p.bh == 1 ? 0 : h, p.bw == 1 ? 0 : w)[p.bc == 1 ? 0 : c];
        at<T>(args.y, n, d, h, w)[c] = activate(combine(p.kind, a, b), p.act);
      }
  }
}

const char* refuse(const MapProblem&) { return nullptr; }
double cost(const MapProblem& p) { return 0.02 * double(p.d * p.h * p.w * p.c); }
int64_t scratch_bytes(const MapProblem&) { return 0; }
int64_t tasks(const MapProblem& p, int64_t images) { return images * p.d * p.h; }

}  // namespace

extern const MapKernel map_ref, map_ref64;
const MapKernel map_ref = {"map_ref", refuse, cost, scratch_bytes, tasks, run<float>};
const MapKernel map_ref64 = {"map_ref", refuse, cost, scratch_bytes, tasks, run<double>};

}  // namespace ck::ref
