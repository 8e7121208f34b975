// conv_weight_ref.cpp: the gradient of a convolution's weights, the definition. Never optimised.
//
// Computes  dw[t,r,s,c,k] = sum_{n,z,p,q} x[n, z*sd-pd+t*dd, p*sh-ph+r*dh, q*sw-pw+s*dw, g*C/G+c] * dy[n,z,p,q,k],  g = k / (K/G)
//           transposed: x's and dy's positions change places in the index formula
// Layout    x NDHWC, dy NZPQK, dw T R S C/G K; sums in double
// Tiling    task = one tap and channel, all filters
// Refuses   nothing
// Source    Dumoulin and Visin 2016, arXiv:1603.07285
#include "core/kernel.h"

namespace ck::ref {
namespace {

// The positions o of the smaller image for which o * stride - pad + tap * dil lies in [0, in).
bool inside(int64_t o, int64_t tap, int64_t stride, int64_t pad, int64_t dil, int64_t in, int64_t* i) {
  *i = o * stride - pad + tap * dil;
  return *i >= 0 && *i < in;
}

template <class T>
void run(const ConvProblem& p, const ConvWeightArgs& a, int64_t images, int, int64_t first, int64_t last, void* scratch, void*) {
  const int64_t c_group = p.c / p.groups, k_group = p.k / p.groups;
  const int64_t small[3] = {p.transposed ? p.d : p.z, p.transposed ? p.h : p.p, p.transposed ? p.w : p.q};
  const int64_t big[3] = {p.transposed ? p.z : p.d, p.transposed ? p.p : p.h, p.transposed ? p.q : p.w};
  double* sums = static_cast<double*>(scratch);
  for (int64_t task = first; task < last; ++task) {
    const int64_t c = task % c_group, s = task / c_group % p.s, r = task / (c_group * p.s) % p.r, t = task / (c_group * p.s * p.r);
    for (int64_t k = 0; k < p.k; ++k) sums[k] = 0;
    for (int64_t n = 0; n < images; ++n)
      for (int64_t z = 0; z < small[0]; ++z)
        for (int64_t row = 0; row < small[1]; ++row)
          for (int64_t q = 0; q < small[2]; ++q) {
            int64_t d, h, w;
            if (!inside(z, t, p.stride_d, p.pad_d_lo, p.dil_d, big[0], &d) ||
                !inside(row, r, p.stride_h, p.pad_h_lo, p.dil_h, big[1], &h) || !inside(q, s, p.stride_w, p.pad_w_lo, p.dil_w, big[2], &w))
              continue;
            const T* x = p.transposed ? at<const T>(a.x, n, z, row, q) : at<const T>(a.x, n, d, h, w);
            const T* dy = p.transposed ? at<const T>(a.dy, n, d, h, w) : at<const T>(a.dy, n, z, row, q);
            for (int64_t k = 0; k < p.k; ++k) sums[k] += static_cast<double>(x[k / k_group * c_group + c]) * static_cast<double>(dy[k]);
          }
    T* dw = static_cast<T*>(a.dw) + task * p.k;
    for (int64_t k = 0; k < p.k; ++k) dw[k] = static_cast<T>(sums[k]);
  }
}

const char* refuse(const ConvProblem&) { return nullptr; }
double cost(const ConvProblem& p) { return 1e-3 * static_cast<double>(p.z * p.p * p.q * p.k * p.t * p.r * p.s * (p.c / p.groups)) + 1e6; }
int64_t scratch_bytes(const ConvProblem& p) { return p.k * 8; }
int64_t shared_bytes(const ConvProblem&, int64_t) { return 0; }
int64_t phases(const ConvProblem&, int64_t) { return 1; }
int64_t tasks(const ConvProblem& p, int64_t, int) { return p.t * p.r * p.s * (p.c / p.groups); }

}  // namespace

extern const ConvWeightKernel conv_weight_ref, conv_weight_ref64;
const ConvWeightKernel conv_weight_ref = {"conv_weight_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<float>};
const ConvWeightKernel conv_weight_ref64 = {"conv_weight_ref", refuse, cost, scratch_bytes, shared_bytes, phases, tasks, run<double>};

}  // namespace ck::ref
