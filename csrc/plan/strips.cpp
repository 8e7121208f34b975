// strips.cpp: fusion across steps. A chain such as 1x1 -> depthwise -> 1x1, or convolution -> max pooling, runs strip by strip:
// a thread computes a few rows of the first result, from them rows of the second, and so on, so that wide intermediate results
// (MobileNet's 112x112x96: 4.8 MB an image) stay in its second-level cache and are never written to memory.
//
//     x   rows |########|      strip: the output rows [r0, r1); from the last step back, the rows that each step must have made
//     a   rows  |######|       rows that the previous strip left in the buffer (the overlap of windows) are moved, not made again
//     y   rows   |####|
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

constexpr int64_t kWorthBytes = 512 << 10;   // an intermediate result smaller than this stays in the caches anyhow
constexpr int64_t kBufferBytes = 400 << 10;  // of the second-level cache
constexpr int64_t kWeightBytes = 256 << 10;  // the weights of a chain are read once per strip
// In bfloat16 the products cost so little that everything waits for memory: shorter chains pay, and a larger part of the second-level cache may
// hold weights (ResNet's blocks 1x1 -> 3x3 -> 1x1, whose residual is then read where the first convolution has just read it).
constexpr int64_t kWorthBytesBf16 = 128 << 10;

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

// Row `row` of image n of a tensor.
View rows_from(View v, int bytes, int64_t n, int64_t row) {
  v.data = static_cast<char*>(v.data) + (n * v.image + row * v.row) * bytes;
  return v;
}

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

}  // namespace

void Plan::count_uses(const std::vector<int>& outputs) {
  for (Root& root : roots_) root.first = 1 << 30, root.last = -1;
  for (int s = 0; s < static_cast<int>(steps_.size()); ++s) {
    each_tensor(steps_[s], [&](int t) { use(t, s); });
    if (const auto* strips = std::get_if<6>(&steps_[s].call))
      for (const Step& part : (*strips)->parts) use(part.x2, s);
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
    return p.kind == PoolKind::kMax && !p.adaptive && !p.indices && p.d == 1 && p.z == 1 && p.t == 1;
  }
  return false;
}

// `to` reads nothing but what `from` makes, and nobody else reads it.
bool Plan::feeds(const Step& from, const Step& to) const {
  const Root& root = roots_[tensor(from.y).root];
  const bool only = !root.is_input && root.aliases == 0 && root.last == root.first + 1;
  return to.x == from.y && to.x2 != from.y && only &&
         elements(tensor(from.y).dims) * bytes_of(root) >= (root.is_bf16 ? kWorthBytesBf16 : kWorthBytes);
}

void Plan::fuse_strips() {
  const auto sizes = [&](const Step& s) {
    const int64_t channels = tensor(s.y).dims[3];
    if (const auto* c = std::get_if<0>(&s.call)) return height(c->problem, channels);
    return height(std::get<1>(s.call).problem, channels);
  };
  const int64_t most_weights = bf16_ == Bf16::kOff ? kWeightBytes : std::max(kWeightBytes, l2_bytes * 3 / 8);
  std::vector<Step> steps;
  std::vector<Info> infos;
  for (size_t i = 0; i < steps_.size();) {
    size_t end = i + 1;  // the chain is [i, end)
    int64_t weights = steps_[i].weights ? steps_[i].weights->bytes() : 0;
    if (can_strip(steps_[i]))
      while (end < steps_.size() && end - i < 8 && can_strip(steps_[end]) && feeds(steps_[end - 1], steps_[end])) {
        const int64_t more = steps_[end].weights ? steps_[end].weights->bytes() : 0;
        if (weights + more > most_weights) break;
        weights += more;
        ++end;
      }
    if (end == i + 1) {
      steps.push_back(std::move(steps_[i]));
      infos.push_back(std::move(infos_[i]));
      ++i;
      continue;
    }
    auto strips = std::make_shared<Strips>();
    for (size_t s = i; s < end; ++s) strips->parts.push_back(steps_[s]);
    // As many rows as the buffers hold: each part needs stride * rows plus the overlap of its reader's windows.
    const int64_t out = sizes(strips->parts.back()).out;
    const auto buffers = [&](int64_t rows) {
      std::vector<int64_t> bytes(strips->parts.size() - 1);
      for (size_t s = strips->parts.size() - 1; s-- > 0;) {
        const Height next = sizes(strips->parts[s + 1]);
        rows = std::min(next.in, (rows - 1) * next.stride + (next.r - 1) * next.dil + 1);
        bytes[s] = align(rows * sizes(strips->parts[s]).row_bytes);
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
    const int64_t most_rows = bf16_ == Bf16::kOff ? out : out < 56 ? (out + 3) / 4 : (out + 7) / 8;
    while (strips->rows < most_rows && total(buffers(strips->rows + 1)) <= kBufferBytes) ++strips->rows;
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
      info.bytes += more.bytes - 2 * bytes_of(roots_[tensor(steps_[s].x).root]) * elements(more.in);  // neither written nor read
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
  const int64_t per_image = (out_rows + strips.rows - 1) / strips.rows;
  const auto heights = [&](size_t i) {
    const Step& s = strips.parts[i];
    const int64_t channels = tensor(s.y).dims[3];
    if (const auto* c = std::get_if<0>(&s.call)) return height(c->problem, channels);
    return height(std::get_if<1>(&s.call)->problem, channels);
  };
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
      for (size_t i = count - 1; i-- > 0;) need[i] = input_rows(heights(i + 1), need[i + 1]);
      for (size_t i = 0; i < count; ++i) {
        const Step& part = strips.parts[i];
        const Height h = heights(i);
        Rows make = need[i];
        const bool is_last = i + 1 == count;
        if (!is_last) {
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
        View x, y, residual{};
        if (i == 0) {
          x = rows_from(view(tensor(part.x), places), stored(part.x), n, in.from);
        } else {
          const Dims& d = tensor(part.x).dims;
          x = {buffer[i - 1] + (in.from - need[i - 1].from) * d[2] * d[3] * stored(part.x), 0, 0, d[2] * d[3], d[3]};
        }
        if (is_last) {
          y = rows_from(view(tensor(part.y), places), stored(part.y), n, make.from);
        } else {
          const Dims& d = tensor(part.y).dims;
          y = {buffer[i] + (make.from - need[i].from) * h.row_bytes, 0, 0, d[2] * d[3], d[3]};
        }
        if (part.x2 >= 0) residual = rows_from(view(tensor(part.x2), places), stored(part.x2), n, make.from);
        if (const auto* c = std::get_if<0>(&part.call)) {
          const ConvProblem p = part_of(c->problem, make, in);
          const ConvArgs args{x, y, residual, part.weights->data(), part.shift ? part.shift->data() : nullptr};
          c->kernel->run(p, args, 1, 0, c->kernel->tasks(p, 1), memory);
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
