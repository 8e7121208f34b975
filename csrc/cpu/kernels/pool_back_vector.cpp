// pool_back_vector.cpp: the gradient of max and average pooling as a gather, float32.
//
// Computes  dx[i] = sum over the windows that hold i, in order, of dy * (index == i) (max) or dy * (1 / divisor) (average)
// Layout    dx NDHWC, dy NZPQC, index like dy; any C
// Tiling    task = some input rows, about 16 KB; for each pixel the windows that may hold it are a box; registers = one vector of channels
// Cost      4*(DHWC + ZPQC) bytes and 8*ZPQC of indices, read again by neighbouring pixels from the cache
// Refuses   positions beyond 32 bits
// Source    the adjoint of pool_ref.cpp; every dx is made by one task, so no atomic additions
#include "core/kernel.h"
#include "core/window.h"
#include "simd/math.h"
#include "simd/shuffle.h"

namespace ck {
namespace CK_ISA {
namespace {

// The low halves of kLanes int64: positions fit 32 bits.
typedef int32_t vi_unaligned __attribute__((vector_size(4 * kLanes), aligned(8), may_alias));
struct Even {
  static constexpr int lane(int j) { return 2 * j; }
};
CK_INLINE vi low_halves(const int64_t* p) {
  const vi_unaligned* v = reinterpret_cast<const vi_unaligned*>(p);
  return to_bits(shuffle<Even>(from_bits(v[0]), from_bits(v[1])));
}

// The windows along one dimension that may hold position i: [first, last].
struct Range {
  int64_t first, last;
};
CK_INLINE Range windows_of(int64_t i, int64_t in, int64_t out, int64_t window, int64_t stride, int64_t pad, int64_t dil, bool adaptive) {
  if (adaptive) return {i * out / in, ((i + 1) * out - 1) / in};
  const int64_t from = i + pad - (window - 1) * dil, last = (i + pad) / stride;
  return {from > 0 ? divide_up(from, stride) : 0, last < out - 1 ? last : out - 1};
}
CK_INLINE bool holds(const Taps& t, int64_t i) {
  const int64_t from = i - t.first;
  return from >= 0 && from < t.count * t.step && from % t.step == 0;
}

constexpr int kMaxWindows = 64;  // of a pixel that are listed at once; more are added in further rounds
struct Window {
  const float* dy;
  const int64_t* index;
  float factor;
};

template <bool kMax, class IO>
CK_INLINE void gather(const Window* windows, int count, int64_t position, bool add, int64_t c, int lanes, float* dx, IO io) {
  vf sum = add ? io.load(dx + c) : splat(0.f);
  for (int i = 0; i < count; ++i) {
    const vf dy = io.load(windows[i].dy + c);
    if constexpr (kMax) {
      vi hit;
      if (lanes == kLanes) {
        hit = low_halves(windows[i].index + c) == static_cast<int32_t>(position);
      } else {
        hit = splat_int(0);
        for (int l = 0; l < lanes; ++l) hit[l] = windows[i].index[c + l] == position ? -1 : 0;
      }
      sum += select(hit, dy, splat(0.f));
    } else {
      sum += dy * splat(windows[i].factor);
    }
  }
  io.store(dx + c, sum);
}

template <bool kMax>
CK_INLINE void finish(const Window* windows, int count, int64_t position, bool add, int64_t channels, float* dx) {
  int64_t c = 0;
  if (count == 1 && !add) {  // most windows do not overlap
    const Window only = windows[0];
    for (; c + kLanes <= channels; c += kLanes) gather<kMax>(&only, 1, position, false, c, kLanes, dx, Full{});
  }
  for (; c + kLanes <= channels; c += kLanes) gather<kMax>(windows, count, position, add, c, kLanes, dx, Full{});
  if (c < channels) {
    const int rest = static_cast<int>(channels - c);
    gather<kMax>(windows, count, position, add, c, rest, dx, Part{rest});
  }
}

CK_INLINE int64_t rows_of(const PoolProblem& p) {
  const int64_t bytes = 4 * p.w * p.c;
  return bytes > 0 && bytes < 16384 ? 16384 / bytes : 1;
}
CK_INLINE int64_t tasks_of(const PoolProblem& p) { return (p.d * p.h + rows_of(p) - 1) / rows_of(p); }

template <bool kMax>
void loop(const PoolProblem& p, const PoolBackArgs& a, int64_t first, int64_t last) {
  const int64_t per_image = tasks_of(p), rows = rows_of(p);
  Window windows[kMaxWindows];
  for (int64_t task = first; task < last; ++task) {
    const int64_t n = task / per_image, from = task % per_image * rows;
    for (int64_t row = from; row < from + rows && row < p.d * p.h; ++row) {
      const int64_t d = row / p.h, h = row % p.h;
      const Range zs = windows_of(d, p.d, p.z, p.t, p.stride_d, p.pad_d_lo, p.dil_d, p.adaptive);
      const Range ps = windows_of(h, p.h, p.p, p.r, p.stride_h, p.pad_h_lo, p.dil_h, p.adaptive);
      for (int64_t w = 0; w < p.w; ++w) {
        const Range qs = windows_of(w, p.w, p.q, p.s, p.stride_w, p.pad_w_lo, p.dil_w, p.adaptive);
        float* dx = at<float>(a.dx, n, d, h, w);
        const int64_t position = (d * p.h + h) * p.w + w;
        int count = 0;
        bool add = false;
        for (int64_t z = zs.first; z <= zs.last; ++z)
          for (int64_t i = ps.first; i <= ps.last; ++i) {
            Taps depth{}, line{};
            if (!kMax) {
              depth = depth_taps(p, z), line = row_taps(p, i);
              if (!holds(depth, d) || !holds(line, h)) continue;
            }
            for (int64_t q = qs.first; q <= qs.last; ++q) {
              float factor = 1.f;
              if (!kMax) {
                const Taps column = column_taps(p, q);
                if (!holds(column, w)) continue;
                factor = 1.f / static_cast<float>(pool_divisor(p, depth, line, column));
              }
              if (count == kMaxWindows) {
                finish<kMax>(windows, count, position, add, p.c, dx);
                count = 0, add = true;
              }
              windows[count++] = {at<const float>(a.dy, n, z, i, q), kMax ? at<const int64_t>(a.index, n, z, i, q) : nullptr, factor};
            }
          }
        finish<kMax>(windows, count, position, add, p.c, dx);
      }
    }
  }
}

// Average windows side by side, all inside the image: each pixel has at most one, and all have one factor.
CK_INLINE bool tiled(const PoolProblem& p) {
  const bool apart = p.stride_d == p.t && p.stride_h == p.r && p.stride_w == p.s;
  const bool plain = p.dil_d == 1 && p.dil_h == 1 && p.dil_w == 1 && p.pad_d_lo == 0 && p.pad_h_lo == 0 && p.pad_w_lo == 0;
  return p.kind != PoolKind::kMax && !p.adaptive && apart && plain && p.z * p.t <= p.d && p.p * p.r <= p.h && p.q * p.s <= p.w;
}

void tiles(const PoolProblem& p, const PoolBackArgs& a, int64_t first, int64_t last) {
  const int64_t per_image = tasks_of(p), rows = rows_of(p);
  const vf factor = splat(1.f / static_cast<float>(p.divisor > 0 ? p.divisor : p.t * p.r * p.s)), zero = splat(0.f);
  for (int64_t task = first; task < last; ++task) {
    const int64_t n = task / per_image, from = task % per_image * rows;
    for (int64_t row = from; row < from + rows && row < p.d * p.h; ++row) {
      const int64_t d = row / p.h, h = row % p.h, z = d / p.t, i = h / p.r;
      float* dx = at<float>(a.dx, n, d, h, 0);
      auto pixels = [&](const float* dy, int64_t count) __attribute__((always_inline)) {  // dy null: of no window
        for (int64_t w = 0; w < count; ++w, dx += a.dx.pixel) {
          int64_t c = 0;
          for (; c + kLanes <= p.c; c += kLanes) store(dx + c, dy ? load(dy + c) * factor : zero);
          const Part io{static_cast<int>(p.c - c)};
          if (c < p.c) io.store(dx + c, dy ? io.load(dy + c) * factor : zero);
        }
      };
      const bool inside = z < p.z && i < p.p;
      if (inside)
        for (int64_t q = 0; q < p.q; ++q) pixels(at<const float>(a.dy, n, z, i, q), p.s);
      pixels(nullptr, inside ? p.w - p.q * p.s : p.w);
    }
  }
}

void run(const PoolProblem& p, const PoolBackArgs& a, int64_t, int, int64_t first, int64_t last, void*, void*) {
  if (p.kind == PoolKind::kMax) loop<true>(p, a, first, last);
  else if (tiled(p)) tiles(p, a, first, last);
  else loop<false>(p, a, first, last);
}

const char* refuse(const PoolProblem& p) {
  return p.kind == PoolKind::kMax && p.d * p.h * p.w > INT32_MAX ? "positions beyond 32 bits" : nullptr;
}
double cost(const PoolProblem& p) {
  const double in = double(p.d * p.h * p.w * p.c), out = double(p.z * p.p * p.q * p.c);
  return 4 * (in + 3 * out) / 10e3;
}
int64_t scratch_bytes(const PoolProblem&) { return 0; }
int64_t shared_bytes(const PoolProblem&, int64_t) { return 0; }
int64_t phases(const PoolProblem&, int64_t) { return 1; }
int64_t tasks(const PoolProblem& p, int64_t images, int) { return images * tasks_of(p); }

}  // namespace

extern const PoolBackKernel pool_back_vector;
const PoolBackKernel pool_back_vector = {"pool_back_vector", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run};

}  // namespace CK_ISA
}  // namespace ck
