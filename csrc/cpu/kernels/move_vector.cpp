// move_vector.cpp: copies with a permutation, an offset and a border, float32.
//
// Computes  as move_ref.cpp
// Layout    any strides, the channel strides of x and y included: NCHW <-> NHWC are copies between differently strided views
// Tiling    task = block of y of about 64 KB, split into
//             its inside   a strided copy of up to 4 axes; axes that are one in both x and y are merged, the innermost axes decide:
//                          rows contiguous in both: spans; contiguous along different axes: squares of kLanes x kLanes in registers,
//                          4 squares along x at a time (whole cache lines of both); 2 to 4 interleaved channels: GCC's own interleaving
//             its border   pixel by pixel
// Cost      8 bytes an element
// Refuses   nothing
// Source    as move_ref.cpp
#include "core/kernel.h"
#include "core/window.h"
#include "simd/shuffle.h"

namespace ck {
namespace CK_ISA {
namespace {

constexpr int kSquares = 4;

struct Axis {
  int64_t n, x, y;  // size, strides in elements
};

CK_INLINE void copy_span(const float* __restrict x, float* __restrict y, int64_t n) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) CK_UNROLL for (int v = 0; v < 4; ++v) store(y + i + v * kLanes, load(x + i + v * kLanes));
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(x + i));
  if (i < n) store_n(y + i, load_n(x + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

void copy_row(const float* x, float* y, const Axis& a) {
  if (a.x == 1 && a.y == 1) return copy_span(x, y, a.n);
  for (int64_t i = 0; i < a.n; ++i) y[i * a.y] = x[i * a.x];
}

void fill_row(float* y, int64_t stride, int64_t n, float value) {
  for (int64_t i = 0; i < n; ++i) y[i * stride] = value;
}

// y[j*ys + i] = x[i*xs + j] for i < rows, j < columns, both at most kLanes.
template <class In, class Out>
CK_INLINE void square(const float* x, int64_t xs, float* y, int64_t ys, int rows, int columns, In in, Out out) {
  vf r[kLanes];
  CK_UNROLL for (int i = 0; i < kLanes; ++i) r[i] = i < rows ? in.load(x + i * xs) : splat(0.0f);
  transpose(r);
  CK_UNROLL for (int j = 0; j < kLanes; ++j)
    if (j < columns) out.store(y + j * ys, r[j]);
}

// kN interleaved rows: y[i*kN + j] = x[j*xs + i], and back: y[j*ys + i] = x[i*kN + j].
template <int kN>
void interleave(const float* __restrict x, int64_t xs, float* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    for (int j = 0; j < kN; ++j) y[i * kN + j] = x[j * xs + i];
}
template <int kN>
void separate(const float* __restrict x, float* __restrict y, int64_t ys, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    for (int j = 0; j < kN; ++j) y[j * ys + i] = x[i * kN + j];
}

// y[j*b.y + i] = x[i*a.x + j], i < a.n, j < b.n: a is contiguous in y, b in x.
void transposed(const float* x, float* y, const Axis& a, const Axis& b) {
  if (b.y == a.n) {
    if (a.n == 2) return interleave<2>(x, a.x, y, b.n);
    if (a.n == 3) return interleave<3>(x, a.x, y, b.n);
    if (a.n == 4) return interleave<4>(x, a.x, y, b.n);
  }
  if (a.x == b.n) {
    if (b.n == 2) return separate<2>(x, y, b.y, a.n);
    if (b.n == 3) return separate<3>(x, y, b.y, a.n);
    if (b.n == 4) return separate<4>(x, y, b.y, a.n);
  }
  constexpr int64_t kBlock = kSquares * kLanes;
  for (int64_t j0 = 0; j0 < b.n; j0 += kBlock)
    for (int64_t i0 = 0; i0 < a.n; i0 += kBlock)
      for (int64_t j = j0; j < b.n && j < j0 + kBlock; j += kLanes)
        for (int64_t i = i0; i < a.n && i < i0 + kBlock; i += kLanes) {
          const int rows = a.n - i < kLanes ? static_cast<int>(a.n - i) : kLanes;
          const int columns = b.n - j < kLanes ? static_cast<int>(b.n - j) : kLanes;
          const float* from = x + i * a.x + j;
          float* to = y + j * b.y + i;
          if (rows == kLanes && columns == kLanes)
            square(from, a.x, to, b.y, kLanes, kLanes, Full{}, Full{});
          else if (rows == kLanes)
            square(from, a.x, to, b.y, kLanes, columns, Part{columns}, Full{});
          else if (columns == kLanes)
            square(from, a.x, to, b.y, rows, kLanes, Full{}, Part{rows});
          else
            square(from, a.x, to, b.y, rows, columns, Part{columns}, Part{rows});
        }
}

// The strided copy of a box: outer axes first, as they lie in y.
void copy_box(const float* x, float* y, const Axis* box) {
  Axis axes[4] = {{1, 0, 0}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0}};
  int count = 0;
  for (int k = 0; k < 4; ++k) {
    if (box[k].n == 1) continue;
    int place = count++;
    for (; place > 0 && axes[place - 1].y < box[k].y; --place) axes[place] = axes[place - 1];
    axes[place] = box[k];
  }
  for (int k = count - 1; k > 0; --k) {  // merge axis k - 1 into k
    const Axis outer = axes[k - 1], inner = axes[k];
    if (outer.y != inner.n * inner.y || outer.x != inner.n * inner.x) continue;
    axes[k - 1] = {outer.n * inner.n, inner.x, inner.y};
    for (int m = k; m + 1 < count; ++m) axes[m] = axes[m + 1];
    axes[--count] = {1, 0, 0};
  }
  // The innermost axis goes last, the one to transpose with before it.
  Axis inner = count ? axes[count - 1] : Axis{1, 1, 1}, other = {1, 0, 0};
  if (count) axes[count - 1] = {1, 0, 0};
  if (inner.y == 1 && inner.x != 1)
    for (int k = 0; k < count - 1; ++k)
      if (axes[k].x == 1 || axes[k].x == -1) {
        other = axes[k];
        axes[k] = {1, 0, 0};
        if (other.x < 0) {  // from its other end: forward in x, backward in y
          x -= other.n - 1, y += (other.n - 1) * other.y;
          other.x = 1, other.y = -other.y;
        }
        break;
      }
  for (int64_t i = 0; i < axes[0].n; ++i)
    for (int64_t j = 0; j < axes[1].n; ++j)
      for (int64_t k = 0; k < axes[2].n; ++k) {
        const float* from = x + i * axes[0].x + j * axes[1].x + k * axes[2].x;
        float* to = y + i * axes[0].y + j * axes[1].y + k * axes[2].y;
        if (other.n > 1)
          transposed(from, to, inner, other);
        else
          copy_row(from, to, inner);
      }
}

// Per dimension of y: the block [lo, hi), of it the inside [first, last), strides, and the offset: y index i reads x index i - shift.
struct Range {
  int64_t lo, hi, first, last, x, y, shift, in;
};

// The part of a block that lies outside x in some dimension. x and y point to index 0 of each.
void fill_border(const MoveProblem& p, const float* x, float* y, const Range* r) {
  const float value = static_cast<float>(p.value);
  const Range& c = r[3];
  auto piece = [&](const float* from, float* to, int64_t lo, int64_t hi) {  // from nowhere: the constant
    if (!from) return fill_row(to + lo * c.y, c.y, hi - lo, value);
    if (c.first == c.lo && c.last == c.hi) return copy_row(from + (lo - c.shift) * c.x, to + lo * c.y, {hi - lo, c.x, c.y});
    for (int64_t i = lo; i < hi; ++i) {
      const int64_t j = border_index(p.border, i - c.shift, c.in);
      to[i * c.y] = j < 0 ? value : from[j * c.x];
    }
  };
  for (int64_t i = r[0].lo; i < r[0].hi; ++i) {
    const int64_t d = border_index(p.border, i - r[0].shift, r[0].in);
    for (int64_t j = r[1].lo; j < r[1].hi; ++j) {
      const int64_t h = border_index(p.border, j - r[1].shift, r[1].in);
      const bool inside = i >= r[0].first && i < r[0].last && j >= r[1].first && j < r[1].last;
      for (int64_t k = r[2].lo; k < r[2].hi; ++k) {
        float* to = y + i * r[0].y + j * r[1].y + k * r[2].y;
        const int64_t w = border_index(p.border, k - r[2].shift, r[2].in);
        const float* from = d < 0 || h < 0 || w < 0 ? nullptr : x + d * r[0].x + h * r[1].x + w * r[2].x;
        if (inside && k >= r[2].first && k < r[2].last) {
          if (c.first == c.lo && c.last == c.hi) {
            k = r[2].last - 1;
          } else if (c.first >= c.last) {
            piece(from, to, c.lo, c.hi);
          } else {
            piece(from, to, c.lo, c.first);
            piece(from, to, c.last, c.hi);
          }
        } else {
          piece(from, to, c.lo, c.hi);
        }
      }
    }
  }
}

// Sizes of a block of y: up to 64 KB, first whole cache lines of rows of y and of rows of x, then what lies next in y.
struct Blocks {
  int64_t size[4], count[4], total;
};

Blocks split(const MoveProblem& p) {
  Blocks b = {{1, 1, 1, 1}, {0, 0, 0, 0}, 1};
  int64_t room = 16384;
  auto grow = [&](int k, int64_t limit) {
    int64_t n = limit < p.out[k] ? limit : p.out[k];
    if (n < 1) n = 1;
    room = room * b.size[k] / n;
    b.size[k] = n;
  };
  grow(3, 256);
  for (int k = 0; k < 3; ++k)
    if (p.perm[k] == 3) grow(k, 64);
  for (int k = 3; k >= 0; --k)
    if (room > 1) grow(k, room * b.size[k]);
  for (int k = 0; k < 4; ++k) {
    b.count[k] = (p.out[k] + b.size[k] - 1) / b.size[k];
    b.total *= b.count[k];
  }
  return b;
}

const char* refuse(const MoveProblem&) { return nullptr; }
double cost(const MoveProblem& p) { return double(p.out[0] * p.out[1] * p.out[2] * p.out[3]) * 8 / 8e3; }
int64_t scratch_bytes(const MoveProblem&) { return 0; }
int64_t tasks(const MoveProblem& p, int64_t images) { return images * split(p).total; }

void run(const MoveProblem& p, const MoveArgs& a, int64_t, int64_t first, int64_t last, void*) {
  const Blocks b = split(p);
  const int64_t xs[4] = {a.x.depth, a.x.row, a.x.pixel, a.x_channel}, ys[4] = {a.y.depth, a.y.row, a.y.pixel, a.y_channel};
  for (int64_t task = first; task < last; ++task) {
    const int64_t n = task / b.total;
    int64_t block[4], rest = task % b.total;
    for (int k = 3; k >= 0; --k) block[k] = rest % b.count[k], rest /= b.count[k];
    const float* x = at<float>(a.x, n, 0, 0, 0);
    float* y = at<float>(a.y, n, 0, 0, 0);
    Range r[4];
    Axis box[4];
    const float* box_x = x;
    float* box_y = y;
    bool border = false, empty = false;
    for (int k = 0; k < 4; ++k) {
      const int64_t lo = block[k] * b.size[k], end = lo + b.size[k], hi = end < p.out[k] ? end : p.out[k], in = p.in[p.perm[k]];
      const int64_t inside_lo = lo > p.lo[k] ? lo : p.lo[k], inside_hi = hi < p.lo[k] + in ? hi : p.lo[k] + in;
      r[k] = {lo, hi, inside_lo, inside_hi, xs[p.perm[k]], ys[k], p.lo[k], in};
      box[k] = {inside_hi - inside_lo, r[k].x, r[k].y};
      box_x += (inside_lo - p.lo[k]) * r[k].x;
      box_y += inside_lo * r[k].y;
      border = border || inside_lo > lo || inside_hi < hi;
      empty = empty || inside_hi <= inside_lo;
    }
    if (!empty) copy_box(box_x, box_y, box);
    if (border) fill_border(p, x, y, r);
  }
}

}  // namespace

extern const MoveKernel move_vector;
const MoveKernel move_vector = {"move_vector", refuse, cost, scratch_bytes, tasks, run};

}  // namespace CK_ISA
}  // namespace ck
