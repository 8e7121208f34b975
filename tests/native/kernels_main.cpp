// kernels_main.cpp: every row of kernels.def on every instruction set of this machine, against the reference rows; no Python.
//
// Small random problems of odd sizes. What a kernel promises is what is checked:
//   values    small integers make every order of sums exact: the same bits as the float64 reference. Rows that refuse `exact` (Winograd)
//             get normal numbers and a bound that grows with the length of the sum; functions that round have a bound in ulp
//   tasks     cut into ranges at random, run in any order, each with a scratch full of NaN
//   images    one image alone gives the bits that it gives in a batch
//   memory    inputs and outputs have gaps: NaN to read, a mark that must survive to write. (Run it under valgrind or AddressSanitizer too.)
// A plan of several steps follows, on one and on several threads.
//
//   native_kernels [problems of each family] [seed] [index of the one problem to run]
//
// Runs under an emulator (make neon-test), under sanitizers, and wherever the Python tests do not.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "core/memory.h"
#include "core/parallel.h"
#include "core/window.h"
#include "dispatch/tables.h"
#include "plan/plan.h"

using namespace ck;

namespace {

constexpr double kU = 1.0 / (1 << 24);    // the unit roundoff of float32
constexpr double kTiny = 1.17549435e-38;  // kernels flush what is smaller
constexpr double kInexact = 12;           // Winograd's sums of normal numbers: u for each product. The largest of 10^6 results: 7.2
constexpr double kNan = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();

struct Random {
  std::mt19937_64 engine;
  int64_t in(int64_t lo, int64_t hi) { return std::uniform_int_distribution<int64_t>(lo, hi)(engine); }
  bool chance(double p) { return std::uniform_real_distribution<double>()(engine) < p; }
  double normal() { return static_cast<float>(std::normal_distribution<double>()(engine)); }
  template <class T>
  T of(std::initializer_list<T> list) {
    return list.begin()[in(0, static_cast<int64_t>(list.size()) - 1)];
  }
};

// Memory

struct Shape {
  int64_t n, d, h, w, c;
  int64_t count() const { return n * d * h * w * c; }
  Shape images(int64_t k) const { return {k, d, h, w, c}; }
};

// Unused elements between pixels, rows, slices and images; or channels first (and no gaps).
struct Gaps {
  int64_t pixel = 0, row = 0, depth = 0, image = 0;
  bool channels_first = false;
};

using Values = std::vector<double>;  // n d h w c, dense

// A tensor as a kernel sees it. Memory ends with its last element.
template <class T>
class Tensor {
 public:
  Tensor(const Shape& s, const Gaps& gaps, T mark) : shape_(s), mark_(mark) {
    channel = 1, pixel = s.c + gaps.pixel, row = s.w * pixel + gaps.row, depth = s.h * row + gaps.depth, image = s.d * depth + gaps.image;
    if (gaps.channels_first) pixel = 1, row = s.w, depth = s.h * s.w, channel = s.d * depth, image = s.c * channel;
    const int64_t end = (s.n - 1) * image + (s.d - 1) * depth + (s.h - 1) * row + (s.w - 1) * pixel + (s.c - 1) * channel + 1;
    memory_.assign(static_cast<size_t>(end), mark);
  }
  View view() { return {memory_.data(), image, depth, row, pixel}; }
  void put(const Values& values) {
    size_t i = 0;
    each([&](T& v) { v = static_cast<T>(values[i++]); });
  }
  // The values, once. False in `intact` if anything else was written.
  Values take(bool* intact) {
    Values values;
    values.reserve(static_cast<size_t>(shape_.count()));
    each([&](T& v) { values.push_back(static_cast<double>(v)), v = mark_; });
    for (const T& v : memory_) *intact &= std::memcmp(&v, &mark_, sizeof v) == 0;
    return values;
  }
  int64_t channel;

 private:
  template <class F>
  void each(F f) {
    for (int64_t n = 0; n < shape_.n; ++n)
      for (int64_t d = 0; d < shape_.d; ++d)
        for (int64_t h = 0; h < shape_.h; ++h)
          for (int64_t w = 0; w < shape_.w; ++w)
            for (int64_t c = 0; c < shape_.c; ++c)
              f(memory_[static_cast<size_t>(n * image + d * depth + h * row + w * pixel + c * channel)]);
  }
  Shape shape_;
  T mark_;
  int64_t image, depth, row, pixel;
  std::vector<T> memory_;
};

struct Input {
  Shape shape{0, 0, 0, 0, 0};
  Gaps gaps;
  Values values;  // empty: there is none

  template <class T>
  Tensor<T> tensor(int64_t images) const {
    Tensor<T> t(values.empty() ? Shape{1, 1, 1, 1, 1} : shape.images(images), gaps, static_cast<T>(kNan));
    if (!values.empty()) t.put(values);
    return t;
  }
  template <class T>
  View view(Tensor<T>& t) const {
    return values.empty() ? View{} : t.view();
  }
};

template <class T>
std::vector<T> cast(const Values& values) {
  return std::vector<T>(values.begin(), values.end());
}
template <class T>
const T* data_or_null(const std::vector<T>& v) {
  return v.empty() ? nullptr : v.data();
}

// Runs tasks as a plan does, if less kindly: ranges of them in any order, each with a scratch of `scratch_bytes` full of NaN.
template <class F>
void in_any_order(int64_t tasks, int64_t scratch_bytes, Random& r, F f) {
  std::vector<int64_t> cuts{0, tasks};
  for (int64_t i = r.in(0, 3); i > 0; --i) cuts.push_back(r.in(0, tasks));
  std::sort(cuts.begin(), cuts.end());
  std::vector<size_t> order(cuts.size() - 1);
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), r.engine);
  for (size_t i : order) {
    if (cuts[i] == cuts[i + 1]) continue;
    const Buffer scratch(scratch_bytes);
    if (scratch.bytes()) std::memset(scratch.data(), 0xff, static_cast<size_t>(scratch.bytes()));
    FlushDenormals flush;
    f(cuts[i], cuts[i + 1], scratch.data());
  }
}

template <class K, class P, class A>
void launch(const K& row, const P& p, const A& args, int64_t images, Random& r) {
  in_any_order(row.tasks(p, images), row.scratch_bytes(p), r,
               [&](int64_t first, int64_t last, char* scratch) { row.run(p, args, images, first, last, scratch); });
}
template <class K, class P, class A>
void launch_phases(const K& row, const P& p, const A& args, int64_t images, Random& r) {
  const Buffer shared(row.shared_bytes(p, images));
  if (shared.bytes()) std::memset(shared.data(), 0xff, static_cast<size_t>(shared.bytes()));
  for (int phase = 0; phase < row.phases(p, images); ++phase)
    in_any_order(row.tasks(p, images, phase), row.scratch_bytes(p), r,
                 [&](int64_t first, int64_t last, char* scratch) { row.run(p, args, images, phase, first, last, scratch, shared.data()); });
}

struct Result {
  Values y, index;
  bool intact = true;
};

// Problems. Each family: a problem with its data, run(row, images, random), and the bounds of what it may be off by.

int64_t channels(Random& r) { return r.of<int64_t>({1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 19, 24, 31, 32, 33, 48, 64, 67}); }

Gaps input_gaps(Random& r) {
  if (r.chance(0.4)) return {};
  return {r.in(0, 5), r.in(0, 3), r.in(0, 3), r.in(0, 3)};
}
Gaps output_gaps(Random& r) { return {r.chance(0.5) ? 0 : r.in(1, 5), 0, 0, r.chance(0.5) ? 0 : r.in(1, 5)}; }

Shape image(Random& r, int64_t n, int64_t most = 17) {
  const int64_t kind = r.in(0, 4);
  return {n, kind == 0 ? r.in(1, 5) : 1, kind == 1 ? 1 : r.in(1, kind == 0 ? 7 : most), r.in(1, kind == 0 ? 7 : most), channels(r)};
}

Values integers(Random& r, int64_t n, int64_t most = 4) {
  Values v(static_cast<size_t>(n));
  for (double& x : v) x = static_cast<double>(r.in(-most, most));
  return v;
}
Values normals(Random& r, int64_t n) {
  Values v(static_cast<size_t>(n));
  for (double& x : v) x = r.normal();
  return v;
}
Input input(Random& r, const Shape& s) { return {s, input_gaps(r), integers(r, s.count())}; }

// Activations that leave small integers exact; the others.
bool piecewise(Act a) { return a == Act::kNone || a == Act::kClamp || a == Act::kLeakyRelu; }
Activation activation(Random& r, Act kind) {
  if (kind == Act::kClamp) return r.of<Activation>({{kind, 0, kInf}, {kind, 0, 6}, {kind, -2, 3}});
  return {kind, kind == Act::kSoftplus ? 0.5 : kind == Act::kLeakyRelu ? 0.125 : 0.75, 6};
}
Activation activation(Random& r) {
  return activation(
      r, r.chance(0.8) ? r.of({Act::kNone, Act::kClamp, Act::kLeakyRelu}) : static_cast<Act>(r.in(0, static_cast<int>(Act::kSoftplus))));
}

std::string text(const Shape& s) {
  return std::to_string(s.d) + "x" + std::to_string(s.h) + "x" + std::to_string(s.w) + "x" + std::to_string(s.c);
}
template <class... T>
std::string list(const char* what, T... values) {
  std::string out = std::string(" ") + what;
  ((out += " " + std::to_string(values)), ...);
  return out;
}
std::string text(const Activation& a) { return " act " + std::to_string(static_cast<int>(a.kind)); }

struct Conv {
  using Kernel = ConvKernel;
  static constexpr const char* name = "conv";
  static const std::vector<const Kernel*>& rows(const Table& t) { return t.Conv; }
  ConvProblem p{};
  Shape out{};
  Input x, residual;
  Values weights, bias, scale;
  Gaps y_gaps;
  bool linear = false;  // leave the activation out

  static bool sizes(ConvProblem& p, Random& r) {
    const int64_t in[3] = {p.d, p.h, p.w}, filter[3] = {p.t, p.r, p.s}, stride[3] = {p.stride_d, p.stride_h, p.stride_w},
                  dil[3] = {p.dil_d, p.dil_h, p.dil_w};
    int64_t *const lo[3] = {&p.pad_d_lo, &p.pad_h_lo, &p.pad_w_lo}, *const hi[3] = {&p.pad_d_hi, &p.pad_h_hi, &p.pad_w_hi},
                   *const out[3] = {&p.z, &p.p, &p.q};
    for (int i = 0; i < 3; ++i) {
      const int64_t reach = dil[i] * (filter[i] - 1);
      *lo[i] = in[i] == 1 && reach == 0 ? 0 : r.in(0, r.chance(0.1) ? reach + 1 : reach), *hi[i] = r.chance(0.6) ? *lo[i] : r.in(0, reach);
      if (!p.transposed) {
        if (in[i] + *lo[i] + *hi[i] <= reach) return false;
        *out[i] = (in[i] + *lo[i] + *hi[i] - reach - 1) / stride[i] + 1;
      } else {
        *out[i] = (in[i] - 1) * stride[i] - *lo[i] - *hi[i] + reach + 1 + (in[i] > 1 ? r.in(0, stride[i] - 1) : 0);
      }
      if (*out[i] < 1) return false;
    }
    return true;
  }

  static ConvProblem problem(Random& r) {
    for (const int64_t kind = r.in(0, 10);;) {
      ConvProblem p{};
      p.d = p.t = p.stride_d = p.stride_h = p.stride_w = p.dil_d = p.dil_h = p.dil_w = p.groups = 1;
      p.h = r.in(1, 20), p.w = r.in(1, 20), p.c = channels(r), p.k = channels(r);
      p.r = r.of<int64_t>({1, 2, 3, 3, 3, 5, 7}), p.s = r.chance(0.7) ? p.r : r.of<int64_t>({1, 2, 3, 5, 7});
      if (r.chance(0.3)) p.stride_h = r.in(1, 3), p.stride_w = r.in(1, 3);
      if (r.chance(0.15)) p.dil_h = r.in(1, 3), p.dil_w = r.in(1, 3);
      switch (kind) {
        case 0:  // depthwise, with a multiplier
          p.groups = p.c, p.k = p.c * r.of<int64_t>({1, 1, 1, 2, 3});
          break;
        case 1:  // narrow groups
          p.groups = r.in(2, 20), p.c = p.k = p.groups * r.of<int64_t>({2, 2, 3, 4, 8});
          break;
        case 2:
        case 3:  // what Winograd may take
          p.c = r.of<int64_t>({32, 33, 40, 67}), p.k = r.of<int64_t>({16, 18, 32, 35}), p.h = r.in(1, 14), p.w = r.in(1, 14);
          p.r = r.of<int64_t>({3, 3, 3, 5, 5, 1, 7}), p.s = p.r == 1 ? 7 : p.r == 7 ? 1 : p.r;
          p.stride_h = p.stride_w = p.dil_h = p.dil_w = 1;
          break;
        case 4:  // 1x1
          p.r = p.s = 1, p.c = r.in(1, 200), p.k = r.in(1, 200);
          break;
        case 5:  // few channels, wide filters
          p.c = r.in(1, 4), p.k = r.in(1, 70), p.r = r.of<int64_t>({3, 5, 7, 11}), p.s = p.r, p.stride_h = p.stride_w = r.in(1, 4);
          p.dil_h = p.dil_w = 1, p.h = r.in(7, 30), p.w = r.in(7, 30);
          break;
        case 6:  // transposed, groups
          p.transposed = 1, p.groups = r.of<int64_t>({1, 1, 2, 3}), p.c *= p.groups, p.k *= p.groups, p.h = r.in(1, 8), p.w = r.in(1, 8);
          p.stride_h = r.in(1, 3), p.stride_w = r.in(1, 3);
          if (r.chance(0.3)) p.groups = p.k = p.c;
          break;
        case 7:  // three dimensions
          p.d = r.in(1, 5), p.t = r.in(1, 3), p.stride_d = r.in(1, 2), p.dil_d = r.in(1, 2), p.h = r.in(1, 7), p.w = r.in(1, 7);
          p.groups = r.of<int64_t>({1, 1, p.c}), p.k = p.groups == 1 ? p.k : p.c;
          break;
        case 8:  // more weights than a cache
          p.h = r.in(1, 3), p.w = r.in(1, 3), p.r = p.s = 1, p.c = r.in(200, 400), p.k = r.in(300, 500);
          if (r.chance(0.5)) {  // or those of a large layer that is trained, read where they lie
            p.h = p.w = p.stride_h = p.stride_w = p.training = 1, p.swapped = r.in(0, 1), p.c = r.in(1024, 1100), p.k = r.in(1024, 1100);
          }
          break;
        case 9:  // 3x3 in groups
          p.groups = r.in(2, 9), p.c = p.k = p.groups * r.of<int64_t>({2, 4, 8, 16, 20, 32});
          p.r = p.s = 3, p.stride_h = p.stride_w = r.in(1, 2), p.dil_h = p.dil_w = 1, p.d = r.of<int64_t>({1, 1, 2}), p.w = r.in(1, 31);
          break;
        default:  // anything, in groups
          p.groups = r.of<int64_t>({1, 1, 1, 2, 3, 5}), p.c *= p.groups, p.k *= p.groups;
      }
      if (!sizes(p, r)) continue;
      if (p.z * p.p * p.q * p.k * p.t * p.r * p.s * (p.c / p.groups) > 1500000) continue;
      p.residual = r.chance(0.3), p.act = activation(r);
      return p;
    }
  }

  explicit Conv(Random& r, int64_t n)
      : p(problem(r)), out{n, p.z, p.p, p.q, p.k}, x(input(r, {n, p.d, p.h, p.w, p.c})), y_gaps(output_gaps(r)) {
    weights = integers(r, p.t * p.r * p.s * p.c / p.groups * p.k);
    if (r.chance(0.7)) bias = integers(r, p.k);
    if (p.residual) residual = {out, output_gaps(r), integers(r, out.count())};
    if (r.chance(0.4) && !p.training) {
      scale.resize(static_cast<size_t>(p.k));
      for (double& s : scale) s = r.of({0.5, 1.0, 2.0, -1.0});
    }
    p.exact = 1;
  }
  void make_inexact(Random& r) {
    p.exact = 0;
    for (Values* v : {&x.values, &weights, &bias, &residual.values}) *v = normals(r, static_cast<int64_t>(v->size()));
  }

  template <class T>
  Result run(const Kernel& row, int64_t images, Random& r) const {
    ConvProblem q = p;
    if (linear) q.act = {Act::kNone, 0, 0};
    const std::vector<T> w = cast<T>(weights), b = cast<T>(bias), s = cast<T>(scale);
    const Buffer packed(row.pack ? row.packed_bytes(q) : 0);
    std::vector<T> swapped;
    const void* weights_of_row = packed.data();
    if (row.pack) {
      const int64_t tasks = row.pack_tasks(q), cut = r.in(0, tasks);
      row.pack(q, w.data(), data_or_null(s), packed.data(), cut, tasks);
      row.pack(q, w.data(), data_or_null(s), packed.data(), 0, cut);
    } else {  // reads the parameter as it is; `swapped`: the parameter of the layer whose gradient this is
      swapped = w;
      for (int64_t c = 0; p.swapped && c < p.c; ++c)
        for (int64_t k = 0; k < p.k; ++k) swapped[static_cast<size_t>(k * p.c + c)] = w[static_cast<size_t>(c * p.k + k)];
      weights_of_row = swapped.data();
    }
    Tensor<T> tx = x.tensor<T>(images), tr = residual.tensor<T>(images), ty(out.images(images), y_gaps, T(-12345.5));
    launch(row, q, ConvArgs{tx.view(), ty.view(), residual.view(tr), weights_of_row, data_or_null(b)}, images, r);
    Result result;
    result.y = ty.take(&result.intact);
    return result;
  }

  // Sums are exact, or the more off the longer they are; then the activation.
  Values bounds(const Values& want, Random& r) {
    linear = true;
    const Values sums = run<double>(*rows(reference64()).back(), out.n, r).y;
    linear = false;
    const double largest = scale.empty() ? 1 : 2,
                 off = p.exact ? 0 : largest * kInexact * kU * static_cast<double>(p.t * p.r * p.s * p.c / p.groups);
    Values bound(want.size());
    for (size_t i = 0; i < want.size(); ++i) bound[i] = off + (piecewise(p.act.kind) ? 0 : 8 * kU * (1 + std::fabs(sums[i])));
    return bound;
  }
  std::string text() const {
    return ::text(x.shape) + " -> " + ::text(out) + list("filter", p.t, p.r, p.s) + list("stride", p.stride_d, p.stride_h, p.stride_w) +
           list("pad", p.pad_d_lo, p.pad_h_lo, p.pad_w_lo, p.pad_d_hi, p.pad_h_hi, p.pad_w_hi) +
           list("dilation", p.dil_d, p.dil_h, p.dil_w) + list("groups", p.groups) + (p.transposed ? " transposed" : "") +
           (bias.empty() ? "" : " bias") + (scale.empty() ? "" : " scale") + (p.residual ? " residual" : "") + ::text(p.act);
  }
};

// The gradient of a convolution's weights: one result for all images.
struct ConvWeight {
  using Kernel = ConvWeightKernel;
  static constexpr const char* name = "weights";
  static const std::vector<const Kernel*>& rows(const Table& t) { return t.ConvWeight; }
  ConvProblem p{};
  Shape out{};
  Input x, dy;

  explicit ConvWeight(Random& r, int64_t n)
      : p(Conv::problem(r)), out{n, p.z, p.p, p.q, p.k}, x(input(r, {n, p.d, p.h, p.w, p.c})), dy(input(r, out)) {
    p.act = {Act::kNone, 0, 0}, p.residual = 0, p.exact = 1;
  }
  void make_inexact(Random& r) {
    p.exact = 0;
    for (Values* v : {&x.values, &dy.values}) *v = normals(r, static_cast<int64_t>(v->size()));
  }

  template <class T>
  Result run(const Kernel& row, int64_t images, Random& r) const {
    Tensor<T> tx = x.tensor<T>(images), ty = dy.tensor<T>(images);
    Tensor<T> dw(Shape{1, 1, 1, p.t * p.r * p.s * p.c / p.groups, p.k}, {}, T(-12345.5));
    launch_phases(row, p, ConvWeightArgs{tx.view(), ty.view(), dw.view().data}, images, r);
    Result result;
    result.y = dw.take(&result.intact);
    return result;
  }
  Values bounds(const Values& want, Random&) const {
    return Values(want.size(),
                  p.exact ? 0 : kInexact * kU * static_cast<double>(out.n * p.z * p.p * p.q + 100));  // Winograd rounds short sums, too
  }
  std::string text() const {
    return ::text(x.shape) + " -> " + ::text(out) + list("filter", p.t, p.r, p.s) + list("stride", p.stride_d, p.stride_h, p.stride_w) +
           list("pad", p.pad_d_lo, p.pad_h_lo, p.pad_w_lo, p.pad_d_hi, p.pad_h_hi, p.pad_w_hi) +
           list("dilation", p.dil_d, p.dil_h, p.dil_w) + list("groups", p.groups) + (p.transposed ? " transposed" : "");
  }
};

template <class F>
constexpr bool kRounds = std::is_same_v<F, Conv> || std::is_same_v<F, ConvWeight>;  // has rows that change the rounding (Winograd)

struct Pool {
  using Kernel = PoolKernel;
  static constexpr const char* name = "pool";
  static const std::vector<const Kernel*>& rows(const Table& t) { return t.Pool; }
  PoolProblem p{};
  Shape out{};
  Input x;
  Gaps y_gaps;

  static PoolProblem problem(Random& r) {
    for (;;) {
      PoolProblem p{};
      const Shape s = image(r, 1, 30);
      p.d = s.d, p.h = s.h, p.w = s.w, p.c = s.c;
      p.kind = r.of({PoolKind::kMax, PoolKind::kAvg}), p.indices = p.kind == PoolKind::kMax && r.chance(0.3);
      p.adaptive = r.chance(0.25), p.count_include_pad = r.chance(0.5), p.divisor = r.chance(0.2) ? 7 : 0;
      p.t = p.r = p.s = p.stride_d = p.stride_h = p.stride_w = p.dil_d = p.dil_h = p.dil_w = 1;
      if (p.adaptive) {
        p.divisor = 0, p.z = r.in(1, p.d), p.p = r.chance(0.3) ? 1 : r.in(1, p.h + 2), p.q = p.p == 1 ? 1 : r.in(1, p.w + 2);
        return p;
      }
      const int64_t in[3] = {p.d, p.h, p.w};
      int64_t *const win[3] = {&p.t, &p.r, &p.s}, *const stride[3] = {&p.stride_d, &p.stride_h, &p.stride_w},
                     *const lo[3] = {&p.pad_d_lo, &p.pad_h_lo, &p.pad_w_lo}, *const hi[3] = {&p.pad_d_hi, &p.pad_h_hi, &p.pad_w_hi},
                     *const dil[3] = {&p.dil_d, &p.dil_h, &p.dil_w}, *const out[3] = {&p.z, &p.p, &p.q};
      bool good = true;
      for (int i = 0; i < 3; ++i) {
        if (in[i] > 1) *win[i] = r.in(1, 4), *stride[i] = r.in(1, 3), *lo[i] = r.in(0, *win[i] / 2), *hi[i] = r.in(0, *win[i] / 2);
        if (in[i] > 1 && r.chance(0.1)) *dil[i] = 2;
        const int64_t room = in[i] + *lo[i] + *hi[i] - *dil[i] * (*win[i] - 1) - 1;
        *out[i] = room / *stride[i] + 1 + r.in(0, 1);  // the last window may hang over the edge
        good = good && room >= 0;
        for (int64_t o = 0; good && o < *out[i]; ++o) good = pool_taps(o, in[i], *win[i], *stride[i], *lo[i], *hi[i], *dil[i]).count > 0;
      }
      if (good) return p;
    }
  }

  explicit Pool(Random& r, int64_t n)
      : p(problem(r)), out{n, p.z, p.p, p.q, p.c}, x(input(r, {n, p.d, p.h, p.w, p.c})), y_gaps(output_gaps(r)) {
    if (r.chance(0.2))
      for (double& v : x.values)
        if (r.chance(0.1)) v = r.of({kNan, kInf, -kInf});
  }

  template <class T>
  Result run(const Kernel& row, int64_t images, Random& r) const {
    Tensor<T> tx = x.tensor<T>(images), ty(out.images(images), y_gaps, T(-12345.5));
    Tensor<int64_t> ti(out.images(images), {}, -1);
    launch(row, p, PoolArgs{tx.view(), ty.view(), p.indices ? ti.view() : View{}}, images, r);
    Result result;
    result.y = ty.take(&result.intact);
    if (p.indices) result.index = ti.take(&result.intact);
    return result;
  }
  Values bounds(const Values& want, Random&) const { return Values(want.size(), 0); }  // one exact sum, one division
  std::string text() const {
    return ::text(x.shape) + " -> " + ::text(out) + (p.kind == PoolKind::kMax ? " max" : " avg") + (p.adaptive ? " adaptive" : "") +
           list("window", p.t, p.r, p.s) + list("stride", p.stride_d, p.stride_h, p.stride_w) +
           list("pad", p.pad_d_lo, p.pad_h_lo, p.pad_w_lo, p.pad_d_hi, p.pad_h_hi, p.pad_w_hi) +
           list("dilation", p.dil_d, p.dil_h, p.dil_w) + list("divisor", p.divisor) + (p.count_include_pad ? " with padding" : "") +
           (p.indices ? " indices" : "");
  }
};

struct Norm {
  using Kernel = NormKernel;
  static constexpr const char* name = "norm";
  static const std::vector<const Kernel*>& rows(const Table& t) { return t.Norm; }
  NormProblem p{};
  Shape out{};
  Input x;
  Values scale, shift;
  Gaps y_gaps;

  explicit Norm(Random& r, int64_t n) : out(image(r, n)), y_gaps(output_gaps(r)) {
    p.d = out.d, p.h = out.h, p.w = out.w, p.c = out.c, p.kind = static_cast<NormKind>(r.in(0, 4));
    p.size = r.in(1, 7), p.alpha = 0.3, p.beta = 0.75, p.k = 2, p.eps = 1e-5;
    if (p.kind == NormKind::kScaleShift) p.act = activation(r);
    x = input(r, out);
    const bool always = p.kind == NormKind::kScaleShift, both = p.kind == NormKind::kLayerNorm;
    if (always || (both && r.chance(0.5))) scale = integers(r, p.c);
    if (always || (both && r.chance(0.5))) shift = integers(r, p.c);
  }
  template <class T>
  Result run(const Kernel& row, int64_t images, Random& r) const {
    const std::vector<T> s = cast<T>(scale), b = cast<T>(shift);
    Tensor<T> tx = x.tensor<T>(images), ty(out.images(images), y_gaps, T(-12345.5));
    launch(row, p, NormArgs{tx.view(), ty.view(), data_or_null(s), data_or_null(b)}, images, r);
    Result result;
    result.y = ty.take(&result.intact);
    return result;
  }
  Values bounds(const Values& want, Random&) const {
    const bool exact = p.kind == NormKind::kScaleShift && piecewise(p.act.kind);
    Values bound(want.size(), 0);
    for (size_t i = 0; !exact && i < want.size(); ++i) bound[i] = 64 * kU * (1 + std::fabs(want[i]));
    return bound;
  }
  std::string text() const {
    return ::text(out) + list("kind", static_cast<int>(p.kind)) + list("size", p.size) + (scale.empty() ? "" : " scale") +
           (shift.empty() ? "" : " shift") + ::text(p.act);
  }
};

struct Map {
  using Kernel = MapKernel;
  static constexpr const char* name = "map";
  static const std::vector<const Kernel*>& rows(const Table& t) { return t.Map; }
  MapProblem p{};
  Shape out{};
  Input a, b;
  Gaps y_gaps;

  explicit Map(Random& r, int64_t n) : out(image(r, n)), y_gaps(output_gaps(r)) {
    p.d = p.ad = p.bd = out.d, p.h = p.ah = p.bh = out.h, p.w = p.aw = p.bw = out.w, p.c = p.ac = p.bc = out.c;
    p.kind = r.chance(0.4) ? MapKind::kUnary : static_cast<MapKind>(r.in(1, 6));
    if (p.kind == MapKind::kUnary) {
      p.act = activation(r, static_cast<Act>(r.in(0, static_cast<int>(Act::kExp))));
    } else {
      p.act = activation(r);
      for (int64_t* size : {&p.ad, &p.ah, &p.aw, &p.ac}) *size = r.chance(0.2) ? 1 : *size;
      for (int64_t* size : {&p.bd, &p.bh, &p.bw, &p.bc}) *size = r.chance(0.3) ? 1 : *size;
      out = {n, std::max(p.ad, p.bd), std::max(p.ah, p.bh), std::max(p.aw, p.bw), std::max(p.ac, p.bc)};
      p.d = out.d, p.h = out.h, p.w = out.w, p.c = out.c;
      b = input(r, {n, p.bd, p.bh, p.bw, p.bc});
    }
    a = input(r, {n, p.ad, p.ah, p.aw, p.ac});
    const bool strange = p.kind == MapKind::kMax || p.kind == MapKind::kMin || (p.kind == MapKind::kUnary && r.chance(0.3));
    for (double& v : a.values) {
      if (p.kind == MapKind::kUnary) v = r.chance(0.9) ? static_cast<float>(2 * r.normal()) : static_cast<float>(40 * r.normal());
      if (strange && r.chance(0.1)) v = r.of({kNan, kInf, -kInf, 0.0, -0.0, 1e30, -1e30, 1e-30, 88.5, -87.25, -104.0, 1e4, -1e4});
    }
    if (strange)
      for (double& v : b.values)
        if (r.chance(0.1)) v = r.of({kNan, kInf, -kInf});
    for (Values* values : {&a.values, &b.values})
      for (double& v : *values) v = static_cast<float>(v);
  }
  template <class T>
  Result run(const Kernel& row, int64_t images, Random& r) const {
    Tensor<T> ta = a.tensor<T>(images), tb = b.tensor<T>(images), ty(out.images(images), y_gaps, T(-12345.5));
    launch(row, p, MapArgs{ta.view(), b.view(tb), ty.view()}, images, r);
    Result result;
    result.y = ty.take(&result.intact);
    return result;
  }
  Values bounds(const Values& want, Random&) const {
    Values bound(want.size(), 0);
    if (piecewise(p.act.kind) && p.kind != MapKind::kUnary && p.kind != MapKind::kDiv) return bound;
    for (size_t i = 0; i < want.size(); ++i) {
      const double v = p.kind == MapKind::kUnary && std::isfinite(a.values[i]) ? std::fabs(a.values[i]) : 16;  // a op b of small integers
      bound[i] = 8 * kU * (p.act.kind == Act::kExp ? std::fabs(want[i]) : 1 + v + std::fabs(want[i])) + kTiny;
    }
    return bound;
  }
  std::string text() const { return ::text(a.shape) + " and " + ::text(b.shape) + list("kind", static_cast<int>(p.kind)) + ::text(p.act); }
};

struct Move {
  using Kernel = MoveKernel;
  static constexpr const char* name = "move";
  static const std::vector<const Kernel*>& rows(const Table& t) { return t.Move; }
  MoveProblem p{};
  Shape out{};
  Input x;
  Gaps y_gaps;

  explicit Move(Random& r, int64_t n) : y_gaps(output_gaps(r)) {
    const Shape s = image(r, n, 40);
    const int64_t in[4] = {s.d, s.h, s.w, s.c};
    p.border = static_cast<Border>(r.in(0, 3)), p.value = 2.5;
    for (int i = 0; i < 4; ++i) p.in[i] = in[i], p.perm[i] = i;
    if (r.chance(0.6)) std::shuffle(p.perm, p.perm + 4, r.engine);
    const bool pads = r.chance(0.6);
    for (int i = 0; i < 4; ++i) {
      const int64_t size = in[p.perm[i]], most = std::min<int64_t>(size, 4);
      p.lo[i] = pads && r.chance(0.6) ? r.in(-most + 1, most) : 0;
      p.out[i] = std::max<int64_t>(1, size + p.lo[i] + (pads && r.chance(0.6) ? r.in(-most + 1, most) : 0));
    }
    out = {n, p.out[0], p.out[1], p.out[2], p.out[3]};
    x = input(r, s);
    if (r.chance(0.3)) x.gaps = {0, 0, 0, 0, true};
    if (r.chance(0.3)) y_gaps = {0, 0, 0, 0, true};
  }
  template <class T>
  Result run(const Kernel& row, int64_t images, Random& r) const {
    Tensor<T> tx = x.tensor<T>(images), ty(out.images(images), y_gaps, T(-12345.5));
    launch(row, p, MoveArgs{tx.view(), ty.view(), tx.channel, ty.channel}, images, r);
    Result result;
    result.y = ty.take(&result.intact);
    return result;
  }
  Values bounds(const Values& want, Random&) const { return Values(want.size(), 0); }
  std::string text() const {
    return ::text(x.shape) + " -> " + ::text(out) + list("perm", p.perm[0], p.perm[1], p.perm[2], p.perm[3]) +
           list("lo", p.lo[0], p.lo[1], p.lo[2], p.lo[3]) + list("border", static_cast<int>(p.border)) +
           (x.gaps.channels_first ? " from channels first" : "") + (y_gaps.channels_first ? " to channels first" : "");
  }
};

struct Resize {
  using Kernel = ResizeKernel;
  static constexpr const char* name = "resize";
  static const std::vector<const Kernel*>& rows(const Table& t) { return t.Resize; }
  ResizeProblem p{};
  Shape out{};
  Input x;
  Gaps y_gaps;

  explicit Resize(Random& r, int64_t n) : y_gaps(output_gaps(r)) {
    const Shape s = image(r, n, 12);
    p.d = s.d, p.h = s.h, p.w = s.w, p.c = s.c, p.kind = static_cast<ResizeKind>(r.in(0, 3));
    p.z = p.d == 1 ? 1 : r.in(1, 6), p.p = p.h == 1 ? 1 : r.in(1, 20), p.q = r.in(1, 20);
    p.align_corners = (p.kind == ResizeKind::kLinear || p.kind == ResizeKind::kCubic) && r.chance(0.5);
    if (r.chance(0.3)) p.scale_d = p.scale_h = p.scale_w = r.of({0.4, 0.5, 1.7, 2.0});
    out = {n, p.z, p.p, p.q, p.c};
    x = input(r, s);
  }
  template <class T>
  Result run(const Kernel& row, int64_t images, Random& r) const {
    Tensor<T> tx = x.tensor<T>(images), ty(out.images(images), y_gaps, T(-12345.5));
    launch(row, p, ResizeArgs{tx.view(), ty.view()}, images, r);
    Result result;
    result.y = ty.take(&result.intact);
    return result;
  }
  // Positions are float32 in every row but the float64 one: off by an ulp of the largest coordinate, which moves the weights as much.
  Values bounds(const Values& want, Random&) const {
    const bool nearest = p.kind == ResizeKind::kNearest || p.kind == ResizeKind::kNearestExact;
    return Values(want.size(), nearest ? 0 : kU * 4 * (64 + 16 * static_cast<double>(p.d + p.h + p.w)));
  }
  std::string text() const {
    return ::text(x.shape) + " -> " + ::text(out) + list("kind", static_cast<int>(p.kind)) +
           list("scale", p.scale_d, p.scale_h, p.scale_w) + (p.align_corners ? " align_corners" : "");
  }
};

// Checks

struct Tally {
  int checked = 0, refused = 0;
};
std::map<std::string, Tally> g_tally;  // isa, family and name of a row
int g_failures = 0;

void fail(const std::string& what) {
  if (++g_failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

bool same(double a, double b) { return a == b || (a != a && b != b); }

std::string difference(const Values& got, const Values& want, const Values& bound) {
  size_t wrong = 0, first = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double w = static_cast<float>(want[i]);
    if (same(got[i], w) || (std::isfinite(w) && std::fabs(got[i] - want[i]) <= bound[i])) continue;
    if (!wrong++) first = i;
  }
  if (!wrong) return "";
  char line[200];
  std::snprintf(line, sizeof line, "%zu of %zu values; at %zu got %.9g, want %.9g, bound %.2g", wrong, want.size(), first, got[first],
                static_cast<double>(static_cast<float>(want[first])), bound[first]);
  return line;
}

template <class F>
void check_row(const F& problem, const typename F::Kernel& row, const Table& table, const Result& want, const Values& bound,
               const std::string& label, Random& r) {
  Tally& tally = g_tally[std::string(table.isa) + "\t" + F::name + "\t" + row.name];
  const std::string what = std::string(table.isa) + " " + row.name + ", " + label + problem.text() + ": ";
  ++tally.checked;
  const Result got = problem.template run<float>(row, problem.out.n, r);
  const std::string wrong = difference(got.y, want.y, bound);
  if (!wrong.empty()) fail(what + wrong);
  if (got.index != want.index) fail(what + "indices");
  if (std::is_same_v<F, ConvWeight>) {  // a sum over the batch; in another order of tasks the same bits
    const Result again = problem.template run<float>(row, problem.out.n, r);
    if (!got.intact || again.y != got.y) fail(what + "the order of tasks shows");
    return;
  }
  const Result alone = problem.template run<float>(row, 1, r);
  if (!got.intact || !alone.intact) fail(what + "wrote outside of the result");
  for (size_t i = 0; i < alone.y.size(); ++i)
    if (!same(alone.y[i], got.y[i])) return fail(what + "one image alone gives other bits than in a batch");
}

// Every row of a family that accepts the problem. `exact` rows first, then those that are not.
template <class F>
void check(F problem, const std::string& label, Random& r) {
  for (const bool exact : {true, false}) {
    if constexpr (kRounds<F>) {
      if (!exact) problem.make_inexact(r);
    } else if (!exact) {
      return;
    }
    const typename F::Kernel& reference = *F::rows(reference64()).back();
    Result want;
    Values bound;
    for (const Table* table : tables())
      for (const typename F::Kernel* row : F::rows(*table)) {
        if (row == F::rows(*table).back() && table != tables().front()) continue;  // the reference is the same code for all
        Tally& tally = g_tally[std::string(table->isa) + "\t" + F::name + "\t" + row->name];
        bool mine = true;  // inexact rows take part in the second round only, exact ones in the first
        if constexpr (std::is_same_v<F, Conv> || std::is_same_v<F, Pool> || std::is_same_v<F, Map>)
          problem.p.bf16 = row->bf16 ? bf16() : Bf16::kOff;  // small integers are exact in bfloat16, too
        if constexpr (kRounds<F>) {
          ConvProblem strict = problem.p;
          strict.exact = 1;
          mine = exact || row->refuse(strict);
        }
        if (!mine) continue;
        if (row->refuse(problem.p)) {
          tally.refused += !exact || !kRounds<F>;
          continue;
        }
        if (want.y.empty()) {
          want = problem.template run<double>(reference, problem.out.n, r);
          if constexpr (std::is_same_v<F, Resize>) want = problem.template run<float>(*F::rows(*table).back(), problem.out.n, r);
          bound = problem.bounds(want.y, r);
        }
        check_row(problem, *row, *table, want, bound, label, r);
      }
  }
}

// A network of most kinds of steps, exact in integers: a float plan on every ISA against the float64 plan.
template <class T>
std::vector<T> run_plan(int64_t n, int threads, bool strips, const Values& x, const Values& weights) {
  Plan::Kind kind;
  kind.float64 = sizeof(T) == 8, kind.exact = true, kind.strips = strips;
  Plan plan(kind);
  const auto parameter = [&](std::array<int64_t, 5> shape) {
    auto values = std::make_shared<std::vector<T>>(cast<T>(weights));
    return std::make_shared<Parameter>(shape, static_cast<int>(sizeof(T)), values->data(), values, Buffer());
  };
  const auto ones = [](int64_t k) {
    Buffer b(k * static_cast<int64_t>(sizeof(T)));
    for (int64_t i = 0; i < k; ++i) reinterpret_cast<T*>(b.data())[i] = 1;
    return b;
  };
  Plan::ConvOptions same, depthwise, plain;
  same.pad_lo = same.pad_hi = {0, 1, 1}, same.act = {Act::kClamp, 0, 6};
  depthwise = same, depthwise.groups = 19;
  const int in = plan.input({1, 13, 11, 5});
  const int a = plan.conv(in, parameter({1, 3, 3, 5, 19}), ones(19), -1, same, -1, "a");
  const int b = plan.conv(a, parameter({1, 3, 3, 1, 19}), Buffer(), a, depthwise, -1, "b");
  PoolProblem pool{};
  pool.kind = PoolKind::kMax, pool.z = 1, pool.p = 6, pool.q = 5, pool.t = 1, pool.r = pool.s = 2, pool.stride_d = 1,
  pool.stride_h = pool.stride_w = 2;
  pool.dil_d = pool.dil_h = pool.dil_w = 1;
  const int c = plan.pool(b, pool, -1, "c").first, d = plan.pool(a, pool, -1, "d").first;
  const int e = plan.concat({c, d, c}, 3, "e");
  const int f =
      plan.map(e, plan.pad(e, {0, 0, 0, 0}, {0, 0, 0, 0}, Border::kConstant, 0, "pad"), MapKind::kAdd, {Act::kNone, 0, 0}, "add", "f");
  const int g = plan.conv(plan.reshape(f, {1, 1, 1, 6 * 5 * 57}), parameter({1, 1, 1, 6 * 5 * 57, 10}), ones(10), -1, plain, -1, "g");
  plan.finish({g, e});
  std::vector<T> image = cast<T>(x), y(static_cast<size_t>(n * 10)), inner(static_cast<size_t>(n * 6 * 5 * 57));
  plan.run(n, {External{image.data(), 13 * 11 * 5, 13 * 11 * 5, 11 * 5, 5, 1}}, {y.data(), inner.data()}, false, threads);
  y.insert(y.end(), inner.begin(), inner.end());
  return y;
}

void check_plans(Random& r) {
  const Values x = integers(r, 5 * 13 * 11 * 5), weights = integers(r, 6 * 5 * 57 * 10, 1);
  for (const int64_t n : {1, 5}) {
    const std::vector<double> want = run_plan<double>(n, 1, false, x, weights);
    for (const Table* table : tables()) {
      set_isa(table->isa);
      for (const int threads : {1, 2, 3})
        for (const bool strips : {false, true}) {
          const std::vector<float> got = run_plan<float>(n, threads, strips, x, weights);
          ++g_tally[std::string(table->isa) + "\tplan\tseven steps"].checked;
          if (std::vector<double>(got.begin(), got.end()) != want)
            fail(std::string(table->isa) + " plan" + list("images", n) + list("threads", threads) + (strips ? " strips" : ""));
        }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t count = argc > 1 ? std::atoll(argv[1]) : 300, seed = argc > 2 ? std::atoll(argv[2]) : 0,
                only = argc > 3 ? std::atoll(argv[3]) : -1;
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = only < 0 ? 0 : only; i < (only < 0 ? count : only + 1); ++i) {
    // Each problem has its own generator, so that one can be run again alone.
    const auto with = [&](int family, auto make) {
      Random r{std::mt19937_64(static_cast<uint64_t>((seed * 1000003 + i) * 16 + family))};
      check(make(r, r.in(1, 3)), "problem " + std::to_string(i) + ", ", r);
    };
    with(0, [](Random& r, int64_t n) { return Conv(r, n); });
    with(1, [](Random& r, int64_t n) { return Pool(r, n); });
    with(2, [](Random& r, int64_t n) { return Norm(r, n); });
    with(3, [](Random& r, int64_t n) { return Map(r, n); });
    with(4, [](Random& r, int64_t n) { return Move(r, n); });
    with(5, [](Random& r, int64_t n) { return Resize(r, n); });
    with(6, [](Random& r, int64_t n) { return ConvWeight(r, n); });
  }
  Random r{std::mt19937_64(static_cast<uint64_t>(seed))};
  check_plans(r);
  for (const Table* table : tables())
    if (!(table->fma_loop(1000) > 0)) fail(std::string(table->isa) + " fma_loop");

  std::printf("%-8s %-8s %-16s %8s %8s\n", "isa", "family", "kernel", "checked", "refused");
  for (const auto& [key, tally] : g_tally) {
    const size_t first = key.find('\t'), second = key.find('\t', first + 1);
    std::printf("%-8s %-8s %-16s %8d %8d\n", key.substr(0, first).c_str(), key.substr(first + 1, second - first - 1).c_str(),
                key.substr(second + 1).c_str(), tally.checked, tally.refused);
    if (!tally.checked && only < 0 && count >= 100) fail(key + " accepted no problem");
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%d failures in %.1f s\n", g_failures, seconds);
  return g_failures != 0;
}
