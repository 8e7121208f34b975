// bf16.h: convolution in bfloat16 with float32 sums, all but the inner product: what the rows for AVX512_BF16 and for AMX share.
//
// Computes  y[m,k] = act(sum_i A[m][i] * w[i,k] + bias[k] + residual[m,k]),  A[m] = the window of output pixel m, rounded to bfloat16
//           Rounding is to nearest, ties to even; NaN stays NaN; denormals are zero. Products are exact in float32.
// Layout    x, residual: float32 or bfloat16 (problem.x_bf16 ...), y too; w: [panel of 32 filters][step of 32 values][vector][16 pairs][16 filters][2]
//           A: blocks of a thread's scratch, the T R S C values of a window one after the other, zeros up to a whole step
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
#include "core/kernel.h"
#include "cpu/bf16_lanes.h"
#include "cpu/integers.h"
#include "simd/math.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int64_t kBlock = 32;              // pixels of a block
constexpr int64_t kPanel = 2 * kLanes;      // filters of a panel
constexpr int64_t kStepValues = 32;         // values of a window reduced in a step: 64 bytes
constexpr int64_t kStepWords = 16 * 32;     // bfloat16 weights of a step and a vector of filters
constexpr int64_t kStripBytes = 256 << 10;  // of a strip's inputs, beside ...
constexpr int64_t kSuperBytes = 768 << 10;  // ... the weights of a super-panel, in the second-level cache

// How a problem is cut. Places are what strips and blocks are made of: output pixels, flat over the batch (windows), or positions in an image with its
// padding, flat over its rows, of which the last S-1 of each row are no pixels and are left out of y (band).
struct Blocking {
  int64_t window, steps;  // values of a window; steps that cover them
  bool band, narrow;
  int64_t row;            // bfloat16 from one place to the next
  int64_t width;          // band: of a padded row; windows: outputs of an image
  int64_t places, strip;  // of an image; of a task
  int64_t inputs;         // bfloat16 of a strip's inputs
  int64_t staged;         // and of a row (narrow)
  int64_t vecs, panels, supers;
};

CK_INLINE Blocking blocking_of(const ConvProblem& p) {
  Blocking b;
  b.window = p.t * p.r * p.s * p.c;
  b.steps = (b.window + kStepValues - 1) / kStepValues;
  b.vecs = (p.k + kLanes - 1) / kLanes;
  b.panels = (p.k + kPanel - 1) / kPanel;
  // Gathering windows costs about 70 / K of the products, a band the places that are no pixels.
  b.band = p.r * p.s > 1 && p.d == 1 && p.t == 1 && p.z == 1 && p.stride_h == 1 && p.stride_w == 1 && p.c % kStepValues == 0 &&
           (p.s - 1) * p.dil_w * p.k < 70 * p.q;
  b.narrow = p.c < 16 && p.s > 1 && p.dil_w == 1;
  const int64_t bytes = b.steps * b.vecs * kStepWords * 2;
  const auto blocks = [](int64_t n) __attribute__((always_inline)) { return (n + kBlock - 1) / kBlock; };
  if (b.band) {
    b.row = p.c;
    b.width = p.q + (p.s - 1) * p.dil_w;
    b.places = (p.p - 1) * b.width + p.q;
    const int64_t halo = (p.r - 1) * p.dil_h * b.width + (p.s - 1) * p.dil_w;
    b.strip = kBlock * most(1, least(blocks(b.places / 8), (kStripBytes / (b.row * 2) - halo) / kBlock));
    b.inputs = (b.strip + halo) * b.row;
  } else {
    b.row = (b.steps + 1) * kStepValues;  // off the powers of two, which fall into one cache set
    b.width = b.places = p.z * p.p * p.q;
    // Some eight strips an image, so that threads share evenly; where there are fewer, the panels are cut instead.
    b.strip = kBlock * most(1, least(4, least(blocks(b.places / 8), kStripBytes / (b.row * 2 * kBlock))));
    b.inputs = b.strip * b.row;
  }
  const int64_t strips = (b.places + b.strip - 1) / b.strip;
  b.supers = least(b.panels, most((bytes + kSuperBytes - 1) / kSuperBytes, (7 + strips) / strips));
  b.staged = b.narrow ? ((kBlock - 1) * p.stride_w + p.s) * p.c + kStepValues : 0;
  return b;
}

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

// Where the inner product reads A: value i of place m and tap (r, s) is a[m * row + r * step_r + s * step_s + i], i < 32 * steps.
// A gathered window, or a pixel where it lies, is one tap.
struct Operand {
  const bf16* a;
  int64_t row, r, s, step_r, step_s, steps;
};

// The windows of `count` pixels from `px` on, one after the other.
template <class T>
CK_INLINE void gather(const ConvProblem& p, const Blocking& b, const View& x, Pixel px, int64_t count, bf16* a) {
  const bool runs = p.dil_w == 1 && x.pixel == p.c;  // the S pixels of a window row lie side by side
  for (int64_t i = 0; i < count; ++i, px.next(p)) {
    bf16* out = a + i * b.row;
    const int64_t d0 = px.z * p.stride_d - p.pad_d_lo, h0 = px.p * p.stride_h - p.pad_h_lo, w0 = px.q * p.stride_w - p.pad_w_lo;
    const int64_t from = most(0, least(p.s, -w0)), to = most(from, least(p.s, p.w - w0));
    for (int64_t t = 0; t < p.t; ++t)
      for (int64_t r = 0; r < p.r; ++r) {
        const int64_t d = d0 + t * p.dil_d, h = h0 + r * p.dil_h;
        if (d < 0 || d >= p.d || h < 0 || h >= p.h) {
          out = append_zeros(out, p.s * p.c);
        } else if (runs) {
          out = append_zeros(out, from * p.c);
          out = append(out, at<const T>(x, px.n, d, h, w0 + from), (to - from) * p.c);
          out = append_zeros(out, (p.s - to) * p.c);
        } else {
          for (int64_t s = 0; s < p.s; ++s) {
            const int64_t w = w0 + s * p.dil_w;
            out = w < 0 || w >= p.w ? append_zeros(out, p.c) : append(out, at<const T>(x, px.n, d, h, w), p.c);
          }
        }
      }
    append_zeros(out, b.steps * kStepValues - b.window);
  }
}

// Image n with its padding: the places [first, last).
template <class T>
CK_INLINE void copy_band(const ConvProblem& p, const Blocking& b, const View& x, int64_t n, int64_t first, int64_t last, bf16* out) {
  while (first < last) {
    const int64_t h = first / b.width - p.pad_h_lo, w = first % b.width - p.pad_w_lo, end = least(b.width - p.pad_w_lo, w + last - first);
    first += end - w;
    const int64_t from = least(end, most(w, 0)), to = h < 0 || h >= p.h ? from : most(from, least(end, p.w));
    out = append_zeros(out, (from - w) * p.c);
    if (x.pixel == p.c) {
      out = append(out, at<const T>(x, n, 0, h, from), (to - from) * p.c);
    } else {
      for (int64_t i = from; i < to; ++i) out = append(out, at<const T>(x, n, 0, h, i), p.c);
    }
    out = append_zeros(out, (end - to) * p.c);
  }
}

// The same for few channels: the input rows below a run of outputs are rounded once, side by side with their zeros, and windows copied from there.
template <class T>
CK_INLINE void gather_narrow(const ConvProblem& p, const Blocking& b, const View& x, Pixel px, int64_t count, bf16* a, bf16* staged) {
  const int64_t run = p.s * p.c;
  while (count > 0) {
    const int64_t n = least(count, p.q - px.q), w0 = px.q * p.stride_w - p.pad_w_lo, width = (n - 1) * p.stride_w + p.s;
    const int64_t from = most(0, least(width, -w0)), to = most(from, least(width, p.w - w0));
    for (int64_t t = 0, offset = 0; t < p.t; ++t)
      for (int64_t r = 0; r < p.r; ++r, offset += run) {
        const int64_t d = px.z * p.stride_d - p.pad_d_lo + t * p.dil_d, h = px.p * p.stride_h - p.pad_h_lo + r * p.dil_h;
        if (d < 0 || d >= p.d || h < 0 || h >= p.h) {
          append_zeros(staged, width * p.c);
        } else {
          append_zeros(staged, from * p.c);
          append(staged + from * p.c, at<const T>(x, px.n, d, h, w0 + from), (to - from) * p.c);
          append_zeros(staged + to * p.c, (width - to) * p.c);
        }
        // Whole vectors: what a copy writes too much, the next one covers.
        for (int64_t i = 0; i < n; ++i)
          for (int64_t j = 0; j < run; j += 32)
            _mm512_storeu_si512(a + i * b.row + offset + j, _mm512_loadu_si512(staged + i * p.stride_w * p.c + j));
      }
    for (int64_t i = 0; i < n; ++i) append_zeros(a + i * b.row + b.window, b.steps * kStepValues - b.window);
    a += n * b.row, count -= n;
    px.q += n - 1;
    px.next(p);
  }
}

// What follows the sums of `count` pixels side by side, [pixel][kPanel] in `sums`; y and residual at their first filter, `filters` of which exist.
template <class Y, class R>
CK_INLINE void finish(const ConvProblem& p, Y* y, int64_t y_pixel, const R* residual, int64_t residual_pixel, const float* bias,
                      int64_t filters, int64_t count, float* sums) {
  const __mmask16 low = lanes(filters), high = lanes(filters - 16);
  const __mmask32 all = lanes32(filters);
  const vf b0 = bias ? _mm512_maskz_loadu_ps(low, bias) : _mm512_setzero_ps();
  const vf b1 = bias ? _mm512_maskz_loadu_ps(high, bias + (high ? 16 : 0)) : _mm512_setzero_ps();
  const bool clamped = p.act.kind == Act::kClamp, late = !clamped && p.act.kind != Act::kNone;
  const float infinity = __builtin_inff();
  const vf lo = splat(clamped ? static_cast<float>(p.act.a) : -infinity), hi = splat(clamped ? static_cast<float>(p.act.b) : infinity);
  const auto add = [&](int64_t i, vf& v0, vf& v1) __attribute__((always_inline)) {
    v0 = load(sums + i * kPanel) + b0, v1 = load(sums + i * kPanel + kLanes) + b1;
    if (!residual) return;
    const R* r = residual + i * residual_pixel;
    if constexpr (sizeof(R) == 2) {
      const __m512i two = _mm512_maskz_loadu_epi16(all, r);
      v0 += widen(_mm512_castsi512_si256(two)), v1 += widen(_mm512_extracti64x4_epi64(two, 1));
    } else {
      v0 += _mm512_maskz_loadu_ps(low, r);
      if (high) v1 += _mm512_maskz_loadu_ps(high, r + 16);
    }
  };
  const auto put = [&](int64_t i, vf v0, vf v1) __attribute__((always_inline)) {
    if constexpr (sizeof(Y) == 2) {
      _mm512_mask_storeu_epi16(y + i * y_pixel, all, round_pair(v0, v1));
    } else {
      _mm512_mask_storeu_ps(y + i * y_pixel, low, v0);
      if (high) _mm512_mask_storeu_ps(y + i * y_pixel + 16, high, v1);
    }
  };
  vf v0, v1;
  if (!late) {
    for (int64_t i = 0; i < count; ++i) {
      add(i, v0, v1);
      put(i, clamp(v0, lo, hi), clamp(v1, lo, hi));
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    add(i, v0, v1);
    store(sums + i * kPanel, v0), store(sums + i * kPanel + kLanes, v1);
  }
  activate_span(sums, sums, count * kPanel, p.act);
  for (int64_t i = 0; i < count; ++i) put(i, load(sums + i * kPanel), load(sums + i * kPanel + kLanes));
}

// The pixels among `count` places from `first` on, run by run: within an image (windows), within a row (band).
template <class Y, class R>
CK_INLINE void finish_places(const ConvProblem& p, const Blocking& b, const ConvArgs& a, int64_t n, int64_t first, int64_t count, int64_t k,
                             float* sums) {
  const float* bias = a.bias ? static_cast<const float*>(a.bias) + k : nullptr;
  while (count > 0) {
    const int64_t line = first / b.width, column = first % b.width, run = least(count, b.width - column);
    const int64_t image = b.band ? n : line, pixel = b.band ? line * p.q + column : column,
                  pixels = b.band ? least(run, p.q - column) : run;
    Y* y = at<Y>(a.y, image, 0, 0, 0) + pixel * a.y.pixel + k;
    const R* residual = a.residual.data ? at<const R>(a.residual, image, 0, 0, 0) + pixel * a.residual.pixel + k : nullptr;
    finish<Y, R>(p, y, a.y.pixel, residual, a.residual.pixel, bias, least(kPanel, p.k - k), pixels, sums);
    first += run, count -= run, sums += run * kPanel;
  }
}

// Micro::multiply(operand, w, places, vecs, sums): sums[place][kPanel] of one block and one panel; begin and end surround a run.
template <class Micro>
CK_INLINE void run_bf16(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t first, int64_t last, void* memory) {
  const Blocking b = blocking_of(p);
  float* sums = static_cast<float*>(memory);
  bf16* inputs = reinterpret_cast<bf16*>(sums + kBlock * kPanel);
  bf16* staged = inputs + b.inputs;
  const bf16* weights = static_cast<const bf16*>(a.weights);
  // Tasks: super-panels outside, strips inside; strips of windows run across images, those of bands do not.
  const int64_t total = b.band ? b.places : images * b.places, per = (total + b.strip - 1) / b.strip, strips = b.band ? images * per : per;
  const bool in_place = p.x_bf16 && p.t * p.r * p.s == 1 && p.stride_d * p.stride_h * p.stride_w == 1 && b.places == p.d * p.h * p.w &&
                        p.c % kStepValues == 0 && a.x.row == p.w * a.x.pixel && (p.d == 1 || a.x.depth == p.h * a.x.row) &&
                        (images == 1 || a.x.image == b.places * a.x.pixel);
  Micro::begin();
  for (int64_t task = first; task < last; ++task) {
    const int64_t super = task / strips, n = b.band ? task % strips / per : 0, m = task % per * b.strip, count = least(b.strip, total - m);
    if (b.band) {
      const int64_t end = m + count + (p.r - 1) * p.dil_h * b.width + (p.s - 1) * p.dil_w;
      if (p.x_bf16) copy_band<bf16>(p, b, a.x, n, m, end, inputs);
      else copy_band<float>(p, b, a.x, n, m, end, inputs);
    } else {
      for (int64_t i = 0; i < count; i += kBlock) {
        const int64_t block = least(kBlock, count - i);
        bf16* out = inputs + i * b.row;
        const Pixel px = pixel_at(p, m + i);
        if (in_place && block % 16 == 0) continue;
        if (b.narrow && a.x.pixel == p.c) {
          if (p.x_bf16) gather_narrow<bf16>(p, b, a.x, px, block, out, staged);
          else gather_narrow<float>(p, b, a.x, px, block, out, staged);
        } else {
          if (p.x_bf16) gather<bf16>(p, b, a.x, px, block, out);
          else gather<float>(p, b, a.x, px, block, out);
        }
      }
    }
    for (int64_t panel = b.panels * super / b.supers; panel < b.panels * (super + 1) / b.supers; ++panel) {
      const int64_t k = panel * kPanel, vecs = least(2, b.vecs - 2 * panel);
      const bf16* w = weights + panel * 2 * b.steps * kStepWords;
      for (int64_t i = 0; i < count; i += kBlock) {
        const int64_t block = least(kBlock, count - i);
        Operand x{inputs + i * b.row, b.row, 1, 1, 0, 0, b.steps};
        if (b.band) x = {x.a, b.row, p.r, p.s, p.dil_h * b.width * b.row, p.dil_w * b.row, p.c / kStepValues};
        else if (in_place && block % 16 == 0) x.a = static_cast<const bf16*>(a.x.data) + (m + i) * a.x.pixel, x.row = a.x.pixel;
        Micro::multiply(x, w, block, vecs, sums);
        if (p.y_bf16) {
          if (p.residual_bf16) finish_places<bf16, bf16>(p, b, a, n, m + i, block, k, sums);
          else finish_places<bf16, float>(p, b, a, n, m + i, block, k, sums);
        } else {
          if (p.residual_bf16) finish_places<float, bf16>(p, b, a, n, m + i, block, k, sums);
          else finish_places<float, float>(p, b, a, n, m + i, block, k, sums);
        }
      }
    }
  }
  Micro::end();
}

// The row of a Micro: begin, end and multiply as above, refuse(problem) with reasons of its own, kMacsPerNanosecond of a core.
template <class Micro>
struct Row {
  static const char* refuse(const ConvProblem& p) {
    if (p.bf16 == Bf16::kOff) return "float32: bfloat16 is not asked for";
    if (p.transposed) return "transposed: stays float32";
    if (p.groups != 1) return "grouped: stays float32";
    return Micro::refuse(p);
  }

  // Microseconds, with what gathering the windows and writing the results take.
  static double cost(const ConvProblem& p) {
    const Blocking b = blocking_of(p);
    const double outputs = static_cast<double>(p.z * p.p * p.q), values = static_cast<double>(b.steps * kStepValues);
    const double filters = static_cast<double>(b.vecs * kLanes);
    return outputs * (values * filters / Micro::kMacsPerNanosecond + values * (b.band ? 0.01 : 0.05) + filters * 0.1) * 1e-3;
  }

  static int64_t scratch_bytes(const ConvProblem& p) {
    const Blocking b = blocking_of(p);
    return kBlock * kPanel * 4 + (b.inputs + b.staged) * 2;
  }
  static int64_t tasks(const ConvProblem& p, int64_t images) {
    const Blocking b = blocking_of(p);
    const auto strips = [&](int64_t places) __attribute__((always_inline)) { return (places + b.strip - 1) / b.strip; };
    return b.supers * (b.band ? images * strips(b.places) : strips(images * b.places));
  }
  static void run(const ConvProblem& p, const ConvArgs& a, int64_t images, int64_t first, int64_t last, void* memory) {
    run_bf16<Micro>(p, a, images, first, last, memory);
  }

  static int64_t packed_bytes(const ConvProblem& p) {
    const Blocking b = blocking_of(p);
    return b.steps * b.vecs * kStepWords * 2;
  }
  static int64_t pack_tasks(const ConvProblem& p) { return blocking_of(p).panels; }
  static void pack(const ConvProblem& p, const void* weights, const void* scale, void* packed, int64_t first, int64_t last) {
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

  static constexpr ConvKernel kernel(const char* name) {
    return {name, refuse, cost, scratch_bytes, tasks, run, packed_bytes, pack_tasks, pack, true};
  }
};

}  // namespace
}  // namespace CK_ISA
}  // namespace ck
