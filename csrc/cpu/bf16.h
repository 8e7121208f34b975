// bf16.h: convolution in bfloat16 with float32 sums, all but the inner product: what the rows for AVX512_BF16 and for AMX share.
//
// Computes  y[m,k] = act(sum_i A[m][i] * w[i,k] + bias[k] + residual[m,k]),  A[m] = the window of output pixel m, rounded to bfloat16
//           Rounding is to nearest, ties to even; NaN stays NaN; denormals are zero. Products are exact in float32.
// Layout    x, residual: float32 or bfloat16 (problem.x_bf16 ...), y too; w: [panel of 32 filters][step of 32 values][vector][16 pairs][16 filters][2]
//           A: rows of a thread's scratch, the T R S C values of a window one after the other, zeros up to a whole step
//
//              step of 32 values         panel: two vectors of filters
//            +------------------+      +---------+---------+
//    pixel 0 | v0 v1 | v2 v3 |  |      | w0 w1   |         |    each lane sums pairs: w of an even and of an odd value lie side by side
//    ...  31 |       |       |  |      | w2 w3   |         |
//
// Tiling    a task is a strip of pixels, flat over z p q of all images, times a super-panel of filters that stays in the second-level cache.
//           Windows are gathered (and rounded) once for each task, blocks of 32 pixels; a 1x1 filter on bfloat16 reads x where it lies.
// Order     i upwards in one chain an output, pair by pair: the same bits for every strip, batch and number of threads
// Refuses   float32 plans, transposed, groups
#pragma once
#include <immintrin.h>

#include "core/kernel.h"
#include "simd/math.h"
#include "simd/vec.h"

namespace ck {
namespace CK_ISA {
namespace {

typedef uint16_t bf16;

constexpr int64_t kBlock = 32;              // pixels of a block
constexpr int64_t kPanel = 2 * kLanes;      // filters of a panel
constexpr int64_t kStepValues = 32;         // values of a window reduced in a step: 64 bytes
constexpr int64_t kStepWords = 16 * 32;     // bfloat16 weights of a step and a vector of filters
constexpr int64_t kStripBytes = 256 << 10;  // of gathered windows, beside ...
constexpr int64_t kSuperBytes = 768 << 10;  // ... the weights of a super-panel, in the second-level cache

CK_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
CK_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

struct Blocking {
  int64_t window, steps;  // values of a window; steps that cover them
  int64_t row;  // bfloat16 from one row of A to the next: a line more than it needs, off the powers of two, which fall into one cache set
  int64_t vecs, panels, supers;
  int64_t pixels, strip;  // of an image; of a task
};

CK_INLINE Blocking blocking_of(const ConvProblem& p) {
  Blocking b;
  b.window = p.t * p.r * p.s * p.c;
  b.steps = (b.window + kStepValues - 1) / kStepValues;
  b.row = (b.steps + 1) * kStepValues;
  b.vecs = (p.k + kLanes - 1) / kLanes;
  b.panels = (p.k + kPanel - 1) / kPanel;
  b.pixels = p.z * p.p * p.q;
  // Some eight strips an image, so that threads share evenly; where there are fewer, the panels are cut instead.
  const int64_t eighth = (b.pixels / 8 + kBlock - 1) / kBlock, fits = kStripBytes / (b.row * 2) / kBlock;
  b.strip = kBlock * most(1, least(4, least(eighth, fits)));
  const int64_t bytes = b.steps * b.vecs * kStepWords * 2, strips = (b.pixels + b.strip - 1) / b.strip;
  b.supers = least(b.panels, most((bytes + kSuperBytes - 1) / kSuperBytes, (7 + strips) / strips));
  return b;
}

CK_INLINE __m512i round_pair(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
CK_INLINE __m512 widen(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
CK_INLINE __mmask16 lanes(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : n > 0 ? (1u << n) - 1 : 0); }
CK_INLINE __mmask32 lanes32(int64_t n) { return static_cast<__mmask32>(n >= 32 ? ~0u : n > 0 ? (1u << n) - 1 : 0); }

// 32 values, of which the first n exist.
CK_INLINE __m512i load32(const float* x, int64_t n) {
  if (n >= 32) return round_pair(_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16));
  return round_pair(_mm512_maskz_loadu_ps(lanes(n), x), n > 16 ? _mm512_maskz_loadu_ps(lanes(n - 16), x + 16) : _mm512_setzero_ps());
}
CK_INLINE __m512i load32(const bf16* x, int64_t n) { return _mm512_maskz_loadu_epi16(lanes32(n), x); }

template <class T>
CK_INLINE bf16* append(bf16* out, const T* x, int64_t n) {
  for (; n >= 32; n -= 32, x += 32, out += 32) _mm512_storeu_si512(out, load32(x, 32));
  if (n > 0) _mm512_mask_storeu_epi16(out, lanes32(n), load32(x, n));
  return out + most(n, 0);
}
CK_INLINE bf16* append_zeros(bf16* out, int64_t n) {
  for (; n >= 32; n -= 32, out += 32) _mm512_storeu_si512(out, _mm512_setzero_si512());
  if (n > 0) _mm512_mask_storeu_epi16(out, lanes32(n), _mm512_setzero_si512());
  return out + most(n, 0);
}

// The position of an output pixel, stepped through in order.
struct Pixel {
  int64_t n, z, p, q;
  CK_INLINE_MEMBER void next(const ConvProblem& c) {
    if (++q < c.q) return;
    q = 0;
    if (++p < c.p) return;
    p = 0;
    if (++z < c.z) return;
    z = 0, ++n;
  }
};
CK_INLINE Pixel pixel_at(const ConvProblem& c, int64_t m) { return {m / (c.q * c.p * c.z), m / (c.q * c.p) % c.z, m / c.q % c.p, m % c.q}; }

// Rows of A for `count` pixels from `at` on.
template <class T>
CK_INLINE void gather(const ConvProblem& p, const Blocking& b, const View& x, Pixel at_pixel, int64_t count, bf16* a) {
  const bool runs = p.dil_w == 1 && x.pixel == p.c;  // the S pixels of a window row lie side by side
  for (int64_t i = 0; i < count; ++i, at_pixel.next(p)) {
    bf16* out = a + i * b.row;
    const int64_t d0 = at_pixel.z * p.stride_d - p.pad_d_lo, h0 = at_pixel.p * p.stride_h - p.pad_h_lo,
                  w0 = at_pixel.q * p.stride_w - p.pad_w_lo;
    const int64_t from = most(0, least(p.s, -w0)), to = most(from, least(p.s, p.w - w0));
    for (int64_t t = 0; t < p.t; ++t)
      for (int64_t r = 0; r < p.r; ++r) {
        const int64_t d = d0 + t * p.dil_d, h = h0 + r * p.dil_h;
        if (d < 0 || d >= p.d || h < 0 || h >= p.h) {
          out = append_zeros(out, p.s * p.c);
        } else if (runs) {
          out = append_zeros(out, from * p.c);
          out = append(out, at<const T>(x, at_pixel.n, d, h, w0 + from), (to - from) * p.c);
          out = append_zeros(out, (p.s - to) * p.c);
        } else {
          for (int64_t s = 0; s < p.s; ++s) {
            const int64_t w = w0 + s * p.dil_w;
            out = w < 0 || w >= p.w ? append_zeros(out, p.c) : append(out, at<const T>(x, at_pixel.n, d, h, w), p.c);
          }
        }
      }
    append_zeros(out, b.steps * kStepValues - b.window);
  }
}

// What follows the sums of a block, [pixel][kPanel] in `sums`: filters k, k + 1, ... of `count` pixels from `at_pixel` on, `filters` of them existing.
CK_INLINE void finish(const ConvProblem& p, const ConvArgs& a, Pixel at_pixel, int64_t count, int64_t k, int64_t filters, float* sums) {
  const __mmask16 low = lanes(filters), high = lanes(filters - 16);
  const float* bias = static_cast<const float*>(a.bias);
  const __m512 b0 = bias ? _mm512_maskz_loadu_ps(low, bias + k) : _mm512_setzero_ps();
  const __m512 b1 = bias && high ? _mm512_maskz_loadu_ps(high, bias + k + 16) : _mm512_setzero_ps();
  const bool clamped = p.act.kind == Act::kClamp, late = !clamped && p.act.kind != Act::kNone;
  const float infinity = __builtin_inff();
  const vf lo = splat(clamped ? static_cast<float>(p.act.a) : -infinity), hi = splat(clamped ? static_cast<float>(p.act.b) : infinity);
  const auto each = [&](auto f) __attribute__((always_inline)) {
    Pixel px = at_pixel;
    for (int64_t i = 0; i < count; ++i, px.next(p)) f(px, sums + i * kPanel);
  };
  const auto add = [&](const Pixel& px, const float* sum, vf& v0, vf& v1) __attribute__((always_inline)) {
    v0 = load(sum) + b0, v1 = load(sum + kLanes) + b1;
    if (!a.residual.data) return;
    if (p.residual_bf16) {
      const __m512i r = _mm512_maskz_loadu_epi16(lanes32(filters), at<const bf16>(a.residual, px.n, px.z, px.p, px.q) + k);
      v0 += widen(_mm512_castsi512_si256(r)), v1 += widen(_mm512_extracti64x4_epi64(r, 1));
    } else {
      const float* r = at<const float>(a.residual, px.n, px.z, px.p, px.q) + k;
      v0 += _mm512_maskz_loadu_ps(low, r);
      if (high) v1 += _mm512_maskz_loadu_ps(high, r + 16);
    }
  };
  const auto put = [&](const Pixel& px, vf v0, vf v1) __attribute__((always_inline)) {
    if (p.y_bf16) {
      _mm512_mask_storeu_epi16(at<bf16>(a.y, px.n, px.z, px.p, px.q) + k, lanes32(filters), round_pair(v0, v1));
    } else {
      float* y = at<float>(a.y, px.n, px.z, px.p, px.q) + k;
      _mm512_mask_storeu_ps(y, low, v0);
      if (high) _mm512_mask_storeu_ps(y + 16, high, v1);
    }
  };
  if (!late) {
    each([&](const Pixel& px, const float* sum) __attribute__((always_inline)) {
      vf v0, v1;
      add(px, sum, v0, v1);
      put(px, clamp(v0, lo, hi), clamp(v1, lo, hi));
    });
    return;
  }
  each([&](const Pixel& px, float* sum) __attribute__((always_inline)) {
    vf v0, v1;
    add(px, sum, v0, v1);
    store(sum, v0), store(sum + kLanes, v1);
  });
  activate_span(sums, sums, count * kPanel, p.act);
  each([&](const Pixel& px, const float* sum) __attribute__((always_inline)) { put(px, load(sum), load(sum + kLanes)); });
}

// Micro::multiply(a, row, w, steps, pixels, vecs, sums): sums[pixel][kPanel] of one block and one panel; begin and end surround a run.
template <class Micro>
CK_INLINE void run_bf16(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t first, int64_t last, void* memory) {
  const Blocking b = blocking_of(p);
  float* sums = static_cast<float*>(memory);
  bf16* gathered = reinterpret_cast<bf16*>(sums + kBlock * kPanel);
  const bf16* weights = static_cast<const bf16*>(a.weights);
  const int64_t total = images * b.pixels, strips = (total + b.strip - 1) / b.strip;
  const bool in_place = p.x_bf16 && p.t * p.r * p.s == 1 && p.stride_d * p.stride_h * p.stride_w == 1 && b.pixels == p.d * p.h * p.w &&
                        p.c % kStepValues == 0 && a.x.row == p.w * a.x.pixel && (p.d == 1 || a.x.depth == p.h * a.x.row) &&
                        (images == 1 || a.x.image == b.pixels * a.x.pixel);
  Micro::begin();
  for (int64_t task = first; task < last; ++task) {
    const int64_t super = task / strips, m = task % strips * b.strip, count = least(b.strip, total - m);
    Pixel at_block[4];
    const bf16* rows[4];
    int64_t row[4];
    for (int64_t i = 0; i * kBlock < count; ++i) {
      const int64_t n = least(kBlock, count - i * kBlock);
      at_block[i] = pixel_at(p, m + i * kBlock);
      if (in_place && n % 16 == 0) {
        rows[i] = static_cast<const bf16*>(a.x.data) + (m + i * kBlock) * a.x.pixel;
        row[i] = a.x.pixel;
        continue;
      }
      bf16* out = gathered + i * kBlock * b.row;
      if (p.x_bf16) gather<bf16>(p, b, a.x, at_block[i], n, out);
      else gather<float>(p, b, a.x, at_block[i], n, out);
      rows[i] = out, row[i] = b.row;
    }
    for (int64_t panel = b.panels * super / b.supers; panel < b.panels * (super + 1) / b.supers; ++panel) {
      const int64_t k = panel * kPanel, vecs = least(2, b.vecs - 2 * panel);
      const bf16* w = weights + panel * 2 * b.steps * kStepWords;
      for (int64_t i = 0; i * kBlock < count; ++i) {
        const int64_t n = least(kBlock, count - i * kBlock);
        Micro::multiply(rows[i], row[i], w, b.steps, n, vecs, sums);
        finish(p, a, at_block[i], n, k, least(kPanel, p.k - k), sums);
      }
    }
  }
  Micro::end();
}

CK_INLINE const char* refuse_bf16(const ConvProblem& p) {
  if (p.bf16 == Bf16::kOff) return "float32: bfloat16 is not asked for";
  if (p.transposed) return "transposed: stays float32";
  if (p.groups != 1) return "grouped: stays float32";
  return nullptr;
}

// Microseconds at so many multiply-adds a nanosecond, and what gathering the windows and writing the results take.
CK_INLINE double cost_bf16(const ConvProblem& p, double macs_per_ns) {
  const Blocking b = blocking_of(p);
  const double pixels = static_cast<double>(b.pixels), values = static_cast<double>(b.steps * kStepValues);
  const double filters = static_cast<double>(b.vecs * kLanes);
  return pixels * (values * filters / macs_per_ns + values * 0.05 * static_cast<double>(b.supers) + filters * 0.1) * 1e-3 +
         values * filters * 2.0 / 15e3;
}

CK_INLINE int64_t scratch_bytes_bf16(const ConvProblem& p) {
  const Blocking b = blocking_of(p);
  return kBlock * kPanel * 4 + b.strip * b.row * 2;
}
CK_INLINE int64_t tasks_bf16(const ConvProblem& p, int64_t images) {
  const Blocking b = blocking_of(p);
  return b.supers * ((images * b.pixels + b.strip - 1) / b.strip);
}
CK_INLINE int64_t packed_bytes_bf16(const ConvProblem& p) {
  const Blocking b = blocking_of(p);
  return b.steps * b.vecs * kStepWords * 2;
}
CK_INLINE int64_t pack_tasks_bf16(const ConvProblem& p) { return blocking_of(p).panels; }
CK_INLINE void pack_bf16(const ConvProblem& p, const void* weights, const void* scale, void* packed, int64_t first, int64_t last) {
  const Blocking b = blocking_of(p);
  const float* w = static_cast<const float*>(weights);
  const float* s = static_cast<const float*>(scale);
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t vecs = least(2, b.vecs - 2 * panel);
    bf16* out = static_cast<bf16*>(packed) + panel * 2 * b.steps * kStepWords;
    for (int64_t step = 0; step < b.steps; ++step)
      for (int64_t v = 0; v < vecs; ++v) {
        const int64_t k = (2 * panel + v) * kLanes;
        const __mmask16 mask = lanes(p.k - k);
        const vf scales = s ? _mm512_maskz_loadu_ps(mask, s + k) : splat(1.f);
        for (int64_t pair = 0; pair < 16; ++pair, out += 32) {
          const int64_t i = step * kStepValues + 2 * pair;
          const vf even = i < b.window ? _mm512_maskz_loadu_ps(mask, w + i * p.k + k) * scales : splat(0.f);
          const vf odd = i + 1 < b.window ? _mm512_maskz_loadu_ps(mask, w + (i + 1) * p.k + k) * scales : splat(0.f);
          // Rounded side by side, then interleaved: lane k is (even, odd) in one 32-bit word.
          const __m512i e = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
          const __m512i o = _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd)), 16);
          _mm512_storeu_si512(out, _mm512_or_si512(e, o));
        }
      }
  }
}

}  // namespace
}  // namespace CK_ISA
}  // namespace ck
