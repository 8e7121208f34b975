// conv_ref.cpp: convolution and transposed convolution, the definition. Never optimised.
//
// Computes  y[n,z,p,q,k] = act(sum_{t,r,s,c} x[n, z*sd-pd+t*dd, p*sh-ph+r*dh, q*sw-pw+s*dw, g*C/G+c] * w[t,r,s,c,k] + bias[k] + residual)
//           with g = k / (K/G); transposed: x's and y's positions change places in the index formula
// Layout    x NDHWC, w T R S C/G K as given, y NZPQK; sums in T (float or double), in the order t r s c
// Refuses   nothing
// Source    Dumoulin and Visin 2016, arXiv:1603.07285
#include "core/activation.h"
#include "core/kernel.h"

namespace ck {
namespace ref {
namespace {

// The input position that output `o` reads through tap `tap`, or -1.
int64_t source(int64_t o, int64_t tap, int64_t stride, int64_t pad, int64_t dil, int64_t in, bool transposed) {
  int64_t i = o * stride - pad + tap * dil;
  if (transposed) {
    i = o + pad - tap * dil;
    if (i < 0 || i % stride) return -1;
    i /= stride;
  }
  return i >= 0 && i < in ? i : -1;
}

template <class T>
void run(const ConvProblem& p, const ConvArgs& a, int64_t, int64_t first, int64_t last, void*) {
  const T* weights = static_cast<const T*>(a.weights);
  const T* bias = static_cast<const T*>(a.bias);
  const int64_t c_group = p.c / p.groups, k_group = p.k / p.groups;
  for (int64_t task = first; task < last; ++task) {
    const int64_t n = task / (p.z * p.p), z = task / p.p % p.z, row = task % p.p;
    for (int64_t q = 0; q < p.q; ++q) {
      T* y = at<T>(a.y, n, z, row, q);
      for (int64_t k = 0; k < p.k; ++k) {
        T sum = 0;
        for (int64_t t = 0; t < p.t; ++t)
          for (int64_t r = 0; r < p.r; ++r)
            for (int64_t s = 0; s < p.s; ++s) {
              const int64_t d = source(z, t, p.stride_d, p.pad_d_lo, p.dil_d, p.d, p.transposed);
              const int64_t h = source(row, r, p.stride_h, p.pad_h_lo, p.dil_h, p.h, p.transposed);
              const int64_t w = source(q, s, p.stride_w, p.pad_w_lo, p.dil_w, p.w, p.transposed);
              if (d < 0 || h < 0 || w < 0) continue;
              const T* x = at<const T>(a.x, n, d, h, w) + k / k_group * c_group;
              const T* w_trs = weights + ((t * p.r + r) * p.s + s) * c_group * p.k;
              for (int64_t c = 0; c < c_group; ++c) sum += x[c] * w_trs[c * p.k + k];
            }
        if (bias) sum += bias[k];
        if (a.residual.data) sum += at<T>(a.residual, n, z, row, q)[k];
        y[k] = activate(sum, p.act);
      }
    }
  }
}

template <class T>
void pack(const ConvProblem& p, const void* weights, const void* scale, void* packed, int64_t, int64_t) {
  const int64_t rows = p.t * p.r * p.s * (p.c / p.groups);
  const T* w = static_cast<const T*>(weights);
  const T* s = static_cast<const T*>(scale);
  T* out = static_cast<T*>(packed);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t k = 0; k < p.k; ++k) out[i * p.k + k] = s ? w[i * p.k + k] * s[k] : w[i * p.k + k];
}

template <class T>
int64_t packed_bytes(const ConvProblem& p) {
  return p.t * p.r * p.s * (p.c / p.groups) * p.k * static_cast<int64_t>(sizeof(T));
}

const char* refuse(const ConvProblem&) { return nullptr; }
double cost(const ConvProblem& p) { return 1e-3 * static_cast<double>(p.z * p.p * p.q * p.k * p.t * p.r * p.s * (p.c / p.groups)) + 1e6; }
int64_t scratch_bytes(const ConvProblem&) { return 0; }
int64_t pack_tasks(const ConvProblem&) { return 1; }
int64_t tasks(const ConvProblem& p, int64_t images) { return images * p.z * p.p; }

}  // namespace

extern const ConvKernel conv_ref, conv_ref64;
const ConvKernel conv_ref = {"conv_ref", refuse, cost, scratch_bytes, tasks, run<float>, packed_bytes<float>, pack_tasks, pack<float>};
const ConvKernel conv_ref64 = {"conv_ref64",         refuse,     cost,        scratch_bytes, tasks, run<double>,
                               packed_bytes<double>, pack_tasks, pack<double>};

}  // namespace ref
}  // namespace ck
