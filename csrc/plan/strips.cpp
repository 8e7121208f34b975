// strips.cpp: fusion across steps. A chain such as 1x1 -> depthwise -> 1x1, or convolution -> max pooling, runs strip by strip:
// a thread computes a few rows of the first result, from them rows of the second, and so on, so that wide intermediate results
// (MobileNet's 112x112x96: 4.8 MB an image) stay in its second-level cache and are never written to memory.
//
//     x   rows |########|      strip: the output rows [r0, r1); from the last step back, the rows that each step must have made
//     a   rows  |######|       rows that the previous strip left in the buffer (the overlap of windows) are moved, not made again
//     y   rows   |####|
//
// Squeeze and excitation joins in at both ends. Its multiplication by one factor a channel runs strip by strip before the convolution that reads
// the product. Its global pooling is two steps, sums of rows and their mean (the order of sums is pool_vector's own, so the bits are); the sums are
// taken of the rows that the convolution before has just made. These rows are kept: written to the arena, where the multiplication will read them.
//
// Any kernel whose outputs do not depend on how rows are grouped can take part: it is given the strip as a smaller problem with views into the
// buffers. So bits are those of the steps one by one, for any strip height and any number of threads.
#include <algorithm>
#include <cstring>

#include "core/machine.h"
#include "core/parallel.h"
#include "plan/plan.h"

namespace ck {
namespace {

constexpr int64_t kWorthBytes = 128 << 10;  // an intermediate result smaller than this stays in the caches anyhow
constexpr int64_t kOverlap = 7;             // rows of an image for each one that two threads, half of the image each, would both make
constexpr int64_t kEvenStrips = 16;         // as many for each thread, where there are fewer than this for each

// Of the second-level cache: a chain's buffers, and its weights, which are read once per strip. In bfloat16 the products cost so little that everything
// waits for memory: more of it may hold weights (ResNet's blocks 1x1 -> 3x3 -> 1x1, whose residual is then read where the first convolution has just
// read it). Tried: a 1x1 convolution's result that is kept for a later residual read by the next 1x1 in the same strip: no gain (ResNet-50), 2 % slower
// (MobileNet-v2); buffers of a fifth or a tenth of it, 2 to 5 % slower (MobileNet-v2, EfficientNet-B0, Granite Rapids, November 2026).
int64_t buffer_bytes(bool bf16) { return bf16 ? 400 << 10 : l2_bytes / 2; }
int64_t weight_bytes(bool bf16) { return bf16 ? std::max<int64_t>(256 << 10, l2_bytes * 3 / 8) : l2_bytes * 5 / 16; }

int64_t align(int64_t bytes) { return (bytes + 63) / 64 * 64; }

struct Rows {
  int64_t from, to;
};

// Sizes of a step along the height and of a row of its output, whatever its family.
struct Height {
  int64_t in, out, r, stride, pad, dil, row_bytes;
};

template <class P>
Height height(const P& p, int64_t channels) {
  return {p.h, p.p, p.r, p.stride_h, p.pad_h_lo, p.dil_h, p.q * channels * (p.y_bf16 ? 2 : 4)};
}
Height height(const ConvProblem& p) { return height(p, p.k); }
Height height(const PoolProblem& p) { return height(p, p.c); }
Height height(const MapProblem& p) { return {p.h, p.h, 1, 1, 0, 1, p.w * p.c * (p.y_bf16 ? 2 : 4)}; }

// A map times one factor a channel.
bool is_gate(const MapProblem& p) {
  return p.kind == MapKind::kMul && p.d == 1 && p.ad == 1 && p.ah == p.h && p.aw == p.w && p.ac == p.c && p.bd == 1 && p.bh == 1 &&
         p.bw == 1 && p.bc == p.c && !p.a_bf16;
}

// The sums (or means) of rows or parts of rows.
bool of_rows(const PoolProblem& p) {
  return p.kind == PoolKind::kAvg && !p.adaptive && p.r == 1 && p.stride_h == 1 && p.pad_h_lo == 0 && p.pad_h_hi == 0 && p.p == p.h;
}

template <class Step>
Height height_of(const Step& s) {
  if (const auto* c = std::get_if<0>(&s.call)) return height(c->problem);
  if (const auto* c = std::get_if<1>(&s.call)) return height(c->problem);
  return height(std::get_if<3>(&s.call)->problem);
}

// The mean of a whole image.
bool is_global(const PoolProblem& p) {
  const bool whole = p.t == 1 && p.r == p.h && p.s == p.w && p.dil_h == 1 && p.dil_w == 1 && p.divisor <= 0;
  return p.kind == PoolKind::kAvg && p.d == 1 && p.z == 1 && p.p == 1 && p.q == 1 && p.h > 1 && (p.adaptive || whole) &&
         p.pad_d_lo + p.pad_h_lo + p.pad_w_lo + p.pad_d_hi + p.pad_h_hi + p.pad_w_hi == 0;
}

// Row `row` of image n of a tensor.
View rows_from(View v, int bytes, int64_t n, int64_t row) {
  v.data = static_cast<char*>(v.data) + (n * v.image + row * v.row) * bytes;
  return v;
}

// Rows of the input that two neighbouring strips both need.
int64_t overlap(const Height& s) { return (s.r - 1) * s.dil + 1 - s.stride; }

Rows input_rows(const Height& s, Rows out) {
  return {std::max<int64_t>(0, out.from * s.stride - s.pad), std::min(s.in, (out.to - 1) * s.stride - s.pad + (s.r - 1) * s.dil + 1)};
}

// The problem of the output rows `out` alone, reading the input rows `in`.
template <class P>
P part_of(P p, Rows out, Rows in) {
  p.pad_h_lo = in.from - (out.from * p.stride_h - p.pad_h_lo);
  p.h = in.to - in.from;
  p.p = out.to - out.from;
  p.pad_h_hi = std::max<int64_t>(0, (p.p - 1) * p.stride_h + (p.r - 1) * p.dil_h + 1 - p.pad_h_lo - p.h);
  return p;
}

MapProblem part_of(MapProblem p, Rows out, Rows) {
  p.h = p.ah = out.to - out.from;
  return p;
}

}  // namespace

// A mean over a whole image as two steps, the first of which can be taken strip by strip: sums of rows, then their mean.
void Plan::halve_global_pool(size_t i) {
  const auto& pool = std::get<1>(steps_[i].call);
  PoolProblem sums = pool.problem;
  sums.adaptive = 0, sums.t = sums.r = 1, sums.dil_d = sums.dil_h = sums.dil_w = 1, sums.stride_d = sums.stride_h = sums.stride_w = 1;
  PoolProblem mean = sums;
  sums.s = sums.w, sums.p = sums.h, sums.divisor = 1;
  mean.r = mean.h, mean.s = mean.w = 1, mean.divisor = pool.problem.h * pool.problem.w;
  const int y = new_tensor({1, sums.h, 1, sums.c});
  Step first = steps_[i];
  first.y = steps_[i].x = y;
  roots_[tensor(y).root].first = static_cast<int>(i), roots_[tensor(y).root].last = static_cast<int>(i) + 1;
  std::get<1>(first.call).problem = sums, std::get<1>(steps_[i].call).problem = mean;
  Info info = infos_[i];
  info.label += " rows", info.out = infos_[i].in = tensor(y).dims;
  info.cost = pool.kernel->cost(sums), infos_[i].cost = pool.kernel->cost(mean);
  for (Info* half : {&info, &infos_[i]}) half->bytes = element_bytes_ * (elements(half->in) + elements(half->out));
  steps_.insert(steps_.begin() + static_cast<std::ptrdiff_t>(i), std::move(first));
  infos_.insert(infos_.begin() + static_cast<std::ptrdiff_t>(i), std::move(info));
}

void Plan::count_uses(const std::vector<int>& outputs) {
  for (Root& root : roots_) root.first = 1 << 30, root.last = -1;
  for (int s = 0; s < static_cast<int>(steps_.size()); ++s) {
    each_tensor(steps_[s], [&](int t) { use(t, s); });
    if (const auto* strips = std::get_if<6>(&steps_[s].call))
      for (size_t i = 0; i < (*strips)->parts.size(); ++i) {
        use((*strips)->parts[i].x2, s);
        if ((*strips)->kept[i]) use((*strips)->parts[i].y, s);
      }
  }
  for (int t : outputs) use(t, static_cast<int>(steps_.size()));
}

// Kernels whose outputs are the same bits however rows are grouped, on images.
bool Plan::can_strip(const Step& step) const {
  if (const auto* c = std::get_if<0>(&step.call)) {
    const ConvProblem& p = c->problem;
    if (p.d != 1 || p.z != 1 || p.t != 1 || p.transposed) return false;
    const std::string name = c->kernel->name;
    return name == "conv_depthwise" || c->kernel->bf16 ||
           (name == "conv_direct" && p.groups == 1 && (p.r * p.s == 1 || (p.c < 16 && p.dil_w == 1)));
  }
  if (const auto* c = std::get_if<1>(&step.call)) {
    const PoolProblem& p = c->problem;
    return (p.kind == PoolKind::kMax || of_rows(p)) && !p.adaptive && !p.indices && p.d == 1 && p.z == 1 && p.t == 1;
  }
  if (const auto* c = std::get_if<3>(&step.call)) return bf16_ == Bf16::kOff && is_gate(c->problem);
  return false;
}

// `to` reads nothing but what `from` makes, and nobody else reads it, unless it is to be kept.
bool Plan::feeds(const Step& from, const Step& to, bool keep) const {
  const Root& root = roots_[tensor(from.y).root];
  const bool only = !root.is_input && root.aliases == 0 && (keep || root.last == root.first + 1);
  return to.x == from.y && to.x2 != from.y && only && elements(tensor(from.y).dims) * bytes_of(root) >= kWorthBytes;
}

void Plan::fuse_strips() {
  const bool bf16 = bf16_ != Bf16::kOff;
  const int64_t most_weights = weight_bytes(bf16), most_buffers = buffer_bytes(bf16);
  // Weights that outweigh what they multiply come from memory at N=1 and are better shared by the threads than the pixels: none allowed.
  const auto weights_of = [&](const Step& s) {
    const int64_t bytes = s.weights ? s.weights->bytes() : 0;
    return !bf16 && bytes > element_bytes_ * (elements(tensor(s.x).dims) + elements(tensor(s.y).dims)) ? most_weights + 1 : bytes;
  };
  std::vector<Step> steps;
  std::vector<Info> infos;
  for (size_t i = 0; i < steps_.size();) {
    size_t end = i + 1;  // the chain is [i, end)
    int64_t weights = weights_of(steps_[i]);
    std::vector<char> kept{0};
    if (can_strip(steps_[i]) && weights <= most_weights)
      while (end < steps_.size() && end - i < 8) {
        const int64_t more = weights_of(steps_[end]);
        if (weights + more > most_weights) break;
        if (const auto* pool = std::get_if<1>(&steps_[end].call))
          if (!bf16 && is_global(pool->problem) && pool->kernel->name == std::string("pool_vector") &&
              feeds(steps_[end - 1], steps_[end], true))
            halve_global_pool(end);
        if (!can_strip(steps_[end])) break;
        const auto* pool = std::get_if<1>(&steps_[end].call);
        const bool sums = pool && of_rows(pool->problem);
        if (!feeds(steps_[end - 1], steps_[end], sums) || (!bf16 && overlap(height_of(steps_[end])) * kOverlap > height_of(steps_[end]).in))
          break;
        const Root& between = roots_[tensor(steps_[end].x).root];
        kept.back() = between.last > between.first + 1, kept.push_back(0);
        weights += more;
        ++end;
        if (kept[kept.size() - 2]) break;  // what follows could need rows of the strip before
      }
    if (end == i + 1) {
      steps.push_back(std::move(steps_[i]));
      infos.push_back(std::move(infos_[i]));
      ++i;
      continue;
    }
    auto strips = std::make_shared<Strips>();
    for (size_t s = i; s < end; ++s) strips->parts.push_back(steps_[s]);
    strips->kept = kept;
    // As many rows as the buffers hold: each part needs stride * rows plus the overlap of its reader's windows.
    const int64_t out = height_of(strips->parts.back()).out;
    const auto buffers = [&](int64_t rows) {
      std::vector<int64_t> bytes(strips->parts.size() - 1);
      for (size_t s = strips->parts.size() - 1; s-- > 0;) {
        const Height next = height_of(strips->parts[s + 1]);
        rows = std::min(next.in, (rows - 1) * next.stride + (next.r - 1) * next.dil + 1);
        bytes[s] = strips->kept[s] ? 0 : align(rows * height_of(strips->parts[s]).row_bytes);
      }
      return bytes;
    };
    const auto total = [](const std::vector<int64_t>& bytes) {
      int64_t sum = 0;
      for (int64_t b : bytes) sum += b;
      return sum;
    };
    strips->rows = 1;
    // In bfloat16 the buffers would hold half an image; eight strips or, of small maps, four let threads share evenly.
    const int64_t most_rows = !bf16 ? out : out < 56 ? (out + 3) / 4 : (out + 7) / 8;
    while (strips->rows < most_rows && total(buffers(strips->rows + 1)) <= most_buffers) ++strips->rows;
    strips->buffers = buffers(strips->rows);
    int64_t scratch = 0;
    for (const Step& part : strips->parts)
      std::visit(
          [&](const auto& call) {
            using Held = std::decay_t<decltype(call)>;
            if constexpr (!std::is_same_v<Held, std::shared_ptr<const Strips>> && !std::is_same_v<Held, std::shared_ptr<const Training>>)
              scratch = std::max(scratch, call.kernel->scratch_bytes(call.problem));
          },
          part.call);
    strips->scratch = total(strips->buffers) + align(scratch);
    Info info = infos_[i];
    info.why = "strips of " + std::to_string(strips->rows) + " rows: intermediate results stay in the cache";
    for (size_t s = i + 1; s < end; ++s) {
      const Info& more = infos_[s];
      info.op += " > " + more.op, info.label += " > " + more.label, info.kernel += " > " + more.kernel;
      info.out = more.out;
      info.macs += more.macs, info.packed += more.packed, info.cost += more.cost;
      const int saved = kept[s - i - 1] ? 1 : 2;  // neither written nor read
      info.bytes += more.bytes - saved * bytes_of(roots_[tensor(steps_[s].x).root]) * elements(more.in);
      info.refused.insert(info.refused.end(), more.refused.begin(), more.refused.end());
    }
    info.workspace = strips->scratch;
    scratch_bytes_ = std::max(scratch_bytes_, strips->scratch);
    const int x = strips->parts.front().x, y = strips->parts.back().y;
    Step step{std::shared_ptr<const Strips>(std::move(strips)), x, -1, y, -1, nullptr, nullptr};
    steps.push_back(std::move(step));
    infos.push_back(std::move(info));
    i = end;
  }
  steps_ = std::move(steps);
  infos_ = std::move(infos);
}

void Plan::run_strips(const Strips& strips, const std::vector<Place>& places, int64_t images, int threads, Lease& lease) const {
  const size_t count = strips.parts.size();
  for (const Step& part : strips.parts)
    if (part.packed) part.parameter->refresh(*part.packed, threads);
  const int64_t out_rows = tensor(strips.parts.back().y).dims[1];
  int64_t per_image = (out_rows + strips.rows - 1) / strips.rows;
  while (per_image < out_rows && images * per_image % threads && images * per_image < kEvenStrips * threads) ++per_image;
  parallel_ranges(images * per_image, threads, [&](int thread, int64_t first, int64_t last) {
    char* memory = lease.scratch.data() + thread * align(scratch_bytes_);
    std::array<char*, 8> buffer{};
    for (size_t i = 0; i + 1 < count; ++i) buffer[i] = memory, memory += strips.buffers[i];
    std::array<Rows, 8> have{};  // the rows that each buffer holds
    int64_t image = -1;
    for (int64_t task = first; task < last; ++task) {
      const int64_t n = task / per_image, s = task % per_image;
      if (n != image) have.fill({0, 0}), image = n;
      std::array<Rows, 8> need{};
      need[count - 1] = {out_rows * s / per_image, out_rows * (s + 1) / per_image};
      for (size_t i = count - 1; i-- > 0;) need[i] = input_rows(height_of(strips.parts[i + 1]), need[i + 1]);
      for (size_t i = 0; i < count; ++i) {
        const Step& part = strips.parts[i];
        const Height h = height_of(part);
        Rows make = need[i];
        const bool in_arena = i + 1 == count || strips.kept[i];
        if (!in_arena) {
          if (have[i].from <= need[i].from && need[i].from < have[i].to) {  // the overlap with the strip before
            std::memmove(buffer[i], buffer[i] + (need[i].from - have[i].from) * h.row_bytes,
                         static_cast<size_t>((have[i].to - need[i].from) * h.row_bytes));
            make.from = have[i].to;
          }
          have[i] = need[i];
          if (make.from >= make.to) continue;
        }
        const Rows in = input_rows(h, make);
        const auto stored = [&](int t) { return bytes_of(roots_[tensor(t).root]); };
        View x, y, second{};
        if (i == 0 || strips.kept[i - 1]) {
          x = rows_from(view(tensor(part.x), places), stored(part.x), n, in.from);
        } else {
          const Dims& d = tensor(part.x).dims;
          x = {buffer[i - 1] + (in.from - need[i - 1].from) * d[2] * d[3] * stored(part.x), 0, 0, d[2] * d[3], d[3]};
        }
        if (in_arena) {
          y = rows_from(view(tensor(part.y), places), stored(part.y), n, make.from);
        } else {
          const Dims& d = tensor(part.y).dims;
          y = {buffer[i] + (make.from - need[i].from) * h.row_bytes, 0, 0, d[2] * d[3], d[3]};
        }
        if (part.x2 >= 0) second = rows_from(view(tensor(part.x2), places), stored(part.x2), n, part.call.index() == 3 ? 0 : make.from);
        if (const auto* c = std::get_if<0>(&part.call)) {
          const ConvProblem p = part_of(c->problem, make, in);
          const ConvArgs args{x, y, second, part.weights->data(), part.shift ? part.shift->data() : nullptr};
          c->kernel->run(p, args, 1, 0, c->kernel->tasks(p, 1), memory);
        } else if (const auto* gate = std::get_if<3>(&part.call)) {
          const MapProblem p = part_of(gate->problem, make, in);
          gate->kernel->run(p, MapArgs{x, second, y}, 1, 0, gate->kernel->tasks(p, 1), memory);
        } else {
          const auto* pool = std::get_if<1>(&part.call);
          const PoolProblem p = part_of(pool->problem, make, in);
          pool->kernel->run(p, PoolArgs{x, y, View{}}, 1, 0, pool->kernel->tasks(p, 1), memory);
        }
      }
    }
  });
}

}  // namespace ck
