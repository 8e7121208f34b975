// map_bf16.cpp: elementwise operators on tensors stored as bfloat16, computed in float32.
//
// Computes  as map_vector.cpp; only the result is rounded, where it is stored as bfloat16
// Layout    a, b, y: bfloat16 or float32, NDHWC; an operand's dimension of size 1 is repeated through a stride of 0
// Tiling    as map_vector.cpp; a span is brought to float32 in pieces of kPiece values, which stay in the first-level cache
// Cost      half of float32's bytes
// Refuses   float32 plans
// Source    as map_ref.cpp
#include "cpu/bf16_lanes.h"
#include "cpu/map_spans.h"
#include "cpu/runs.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int64_t kPiece = 1024;

// An operand in memory, of either type.
struct Source {
  const char* data;
  int bytes;  // of a value
  bool row;
};

// n values of a source from i on as floats: where they lie, or in `buffer`.
CK_INLINE const float* floats(const Source& s, int64_t i, int64_t n, float* buffer) {
  const char* from = s.data + (s.row ? i : 0) * s.bytes;
  if (s.bytes == 4) return reinterpret_cast<const float*>(from);
  const bf16* x = reinterpret_cast<const bf16*>(from);
  n = s.row ? n : 1;
  for (int64_t j = 0; j < n; j += 16) {
    const __m512i words = _mm512_maskz_loadu_epi16(lanes32(n - j < 16 ? n - j : 16), x + j);
    _mm512_storeu_ps(buffer + j, widen(_mm512_castsi512_si256(words)));
  }
  return buffer;
}

CK_INLINE void round_span(const float* from, bf16* to, int64_t n) {
  for (int64_t j = 0; j < n; j += 32)
    _mm512_mask_storeu_epi16(to + j, lanes32(n - j), round_pair(_mm512_loadu_ps(from + j), _mm512_loadu_ps(from + j + 16)));
}

template <MapKind kKind>
void loop(const MapProblem& p, const MapArgs& args, const Runs& runs, int64_t first, int64_t last) {
  const Operand a = operand(args.a, p.ad, p.ah, p.aw, p.ac, p);
  const Operand b = kKind == MapKind::kUnary ? a : operand(args.b, p.bd, p.bh, p.bw, p.bc, p);
  const bool one_span = args.y.pixel == p.c && spans_pixels(a, p.c) && spans_pixels(b, p.c);
  const bool dense = dense_rows(args.y, p.d, p.h, p.w) && dense_rows(a.view, p.d, p.h, p.w) && dense_rows(b.view, p.d, p.h, p.w);
  const auto place = [](const View& v, bool stored, int64_t n, int64_t d, int64_t h, int64_t w) __attribute__((always_inline)) {
    return stored ? static_cast<char*>(static_cast<void*>(at<bf16>(v, n, d, h, w)))
                  : static_cast<char*>(static_cast<void*>(at<float>(v, n, d, h, w)));
  };
  alignas(64) float buffer_a[kPiece], buffer_b[kPiece], buffer_y[kPiece];
  runs.each(first, last, dense, [&](int64_t n, int64_t d, int64_t h, int64_t w, int64_t count) {
    Source from_a{place(a.view, p.a_bf16, n, d, h, w), p.a_bf16 ? 2 : 4, a.row};
    Source from_b = kKind == MapKind::kUnary ? from_a : Source{place(b.view, p.b_bf16, n, d, h, w), p.b_bf16 ? 2 : 4, b.row};
    char* y = place(args.y, p.y_bf16, n, d, h, w);
    const int64_t spans = one_span ? 1 : count, length = one_span ? count * p.c : p.c, y_bytes = p.y_bf16 ? 2 : 4;
    for (int64_t i = 0; i < spans; ++i) {
      for (int64_t j = 0; j < length; j += kPiece) {
        const int64_t piece = length - j < kPiece ? length - j : kPiece;
        const float* va = floats(from_a, j, piece, buffer_a);
        const float* vb = kKind == MapKind::kUnary ? va : floats(from_b, j, piece, buffer_b);
        float* to = p.y_bf16 ? buffer_y : reinterpret_cast<float*>(y) + j;
        span_of<kKind>(va, a.row, vb, b.row, to, piece, p.act);
        if (p.y_bf16) round_span(buffer_y, reinterpret_cast<bf16*>(y) + j, piece);
      }
      from_a.data += a.view.pixel * from_a.bytes, from_b.data += b.view.pixel * from_b.bytes, y += args.y.pixel * y_bytes;
    }
  });
}

const char* refuse(const MapProblem& p) { return p.bf16 == Bf16::kOff ? "float32: bfloat16 is not asked for" : nullptr; }
double cost(const MapProblem& p) {
  const bool cheap = p.act.kind == Act::kNone || p.act.kind == Act::kClamp;
  return double(p.d * p.h * p.w * p.c) * ((p.kind == MapKind::kUnary ? 5 : 7) / 10e3 + (cheap ? 0 : 40 / (4e3 * kLanes)));
}
int64_t scratch_bytes(const MapProblem&) { return 0; }
CK_INLINE Runs split(const MapProblem& p) { return Runs::of(p.d, p.h, p.w, 2 * p.c); }
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

extern const MapKernel map_bf16;
const MapKernel map_bf16 = {"map_bf16", refuse, cost, scratch_bytes, tasks, run, nullptr, nullptr, nullptr, true};

}  // namespace CK_ISA
}  // namespace ck
