// map.cu: elementwise operators with broadcast.
//
// Computes  y = act(a op b), op one of + - * / max min, or y = act(a); max and min give NaN where either operand is NaN
// Layout    a, b, y NDHWC; an operand's dimension of size 1 is repeated
// Tiling    map_vector: a thread = 16 bytes of channels of a pixel; map_any: a thread = an element
// Cost      bandwidth
// Refuses   map_vector: channels or strides that are no multiple of 16 bytes
// Source    torch.add, maximum, ... and the activations of torch.nn.functional
#include "cuda/kernel.cuh"

namespace ck::cuda {
namespace {

CK_DEVICE float combine(MapKind kind, float a, float b) {
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

struct Operand {
  View view;  // strides of 0 where a dimension is repeated
  bool one_channel;
};

Operand operand(View v, int64_t d, int64_t h, int64_t w, int64_t c) {
  if (d == 1) v.depth = 0;
  if (h == 1) v.row = 0;
  if (w == 1) v.pixel = 0;
  return {v, c == 1};
}

template <int kCount, class T>
CK_DEVICE void fetch(const Operand& o, int64_t n, int64_t d, int64_t h, int64_t w, int64_t c, float (&v)[kCount]) {
  const T* at_c = at<const T>(o.view, n, d, h, w);
  if (o.one_channel) {
    const float one = to_float(*at_c);
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = one;
  } else {
    load<kCount>(at_c + c, v);
  }
}

template <class T, int kCount, class I>
__global__ void map(MapKind kind, ActivationF act, Operand a, Operand b, View y, Divider<I> by_c, Divider<I> by_w, Divider<I> by_h,
                    Divider<I> by_d, I items) {
  const I step = static_cast<I>(gridDim.x) * blockDim.x;
  for (I item = static_cast<I>(blockIdx.x) * blockDim.x + threadIdx.x; item < items; item += step) {
    I c, w, h, d;
    const I pixel = by_c.divmod(item, c);
    const I row = by_w.divmod(pixel, w);
    const I slice = by_h.divmod(row, h);
    const I n = by_d.divmod(slice, d);
    const int64_t first = static_cast<int64_t>(c) * kCount;
    float u[kCount], v[kCount] = {};
    fetch<kCount, T>(a, n, d, h, w, first, u);
    if (kind != MapKind::kUnary) fetch<kCount, T>(b, n, d, h, w, first, v);
#pragma unroll
    for (int i = 0; i < kCount; ++i) u[i] = activate(combine(kind, u[i], v[i]), act);
    store<kCount>(at<T>(y, n, d, h, w) + first, u);
  }
}

template <class T, int kCount>
cudaError_t start(const MapProblem& p, const MapArgs& args, const Context& ctx, cudaStream_t stream) {
  const int64_t items = ctx.images * p.d * p.h * p.w * (p.c / kCount);
  if (!items) return cudaSuccess;
  return with_index(items, [&](auto zero) {
    using I = decltype(zero);
    return launch<false>(map<T, kCount, I>, dim3(blocks_for(items, 256)), dim3(256), 0, stream, p.kind, activation_f(p.act),
                         operand(args.a, p.ad, p.ah, p.aw, p.ac), operand(args.b, p.bd, p.bh, p.bw, p.bc), args.y, Divider<I>(p.c / kCount),
                         Divider<I>(p.w), Divider<I>(p.h), Divider<I>(p.d), static_cast<I>(items));
  });
}

double bytes(const MapProblem& p, const Context& ctx) {
  return double(ctx.images) * element_bytes(ctx.precision) *
         (double(p.d * p.h * p.w) * double(p.c) + double(p.ad * p.ah * p.aw) * double(p.ac) +
          (p.kind == MapKind::kUnary ? 0.0 : double(p.bd * p.bh * p.bw) * double(p.bc)));
}
const char* refuse_vector(const MapProblem& p, const Context& ctx) {
  if (p.c % (16 / element_bytes(ctx.precision))) return "channels are no multiple of 16 bytes";
  const bool a_whole = p.ac == p.c, b_whole = p.kind != MapKind::kUnary && p.bc == p.c;
  if (ctx.y_align < 16 || (a_whole && ctx.x_align < 16) || (b_whole && ctx.residual_align < 16))
    return "strides or addresses are no multiple of 16 bytes";
  return nullptr;
}
const char* refuse_none(const MapProblem&, const Context&) { return nullptr; }
double cost_vector(const MapProblem& p, const Context& ctx) { return 2.5 + bytes(p, ctx) / 2.5e6; }
double cost_any(const MapProblem& p, const Context& ctx) { return 3 + bytes(p, ctx) / 1e6; }
int64_t no_workspace(const MapProblem&, const Context&) { return 0; }

cudaError_t run_vector(const MapProblem& p, const MapArgs& args, const Context& ctx, void*, cudaStream_t stream) {
  return with_element(ctx.precision, [&](auto zero) {
    using T = decltype(zero);
    return start<T, kVector<T>>(p, args, ctx, stream);
  });
}
cudaError_t run_any(const MapProblem& p, const MapArgs& args, const Context& ctx, void*, cudaStream_t stream) {
  return with_element(ctx.precision, [&](auto zero) { return start<decltype(zero), 1>(p, args, ctx, stream); });
}

}  // namespace

extern const MapKernel map_vector, map_any;
const MapKernel map_vector = {"map_vector", refuse_vector, cost_vector, no_workspace, run_vector};
const MapKernel map_any = {"map_any", refuse_none, cost_any, no_workspace, run_any};

}  // namespace ck::cuda
