// dispatch.h: kernels.def as lists, and the choice of a row.
#pragma once
#include <string>
#include <vector>

#include "core/error.h"
#include "cuda/kernel.cuh"

namespace ck::cuda {

struct Rows {
  std::vector<const ConvKernel*> Conv;
  std::vector<const PoolKernel*> Pool;
  std::vector<const NormKernel*> Norm;
  std::vector<const MapKernel*> Map;
  std::vector<const MoveKernel*> Move;
  std::vector<const ResizeKernel*> Resize;
};

const Rows& rows();

template <class K>
struct Selection {
  const K* kernel = nullptr;
  double cost = 0;
  std::string refused;  // "kernel: reason" lines
};

// The cheapest row that accepts; `forced` names one row.
template <class K, class Problem>
Selection<K> select(const std::vector<const K*>& rows, const Problem& problem, const Context& ctx, const std::string& forced = "") {
  Selection<K> best;
  bool known = forced.empty();
  for (const K* row : rows) {
    if (!forced.empty() && forced != row->name) continue;
    known = true;
    if (const char* reason = row->refuse(problem, ctx)) {
      best.refused += std::string(row->name) + ": " + reason + "\n";
      continue;
    }
    const double cost = row->cost(problem, ctx);
    if (!best.kernel || cost < best.cost) best.kernel = row, best.cost = cost;
  }
  if (!known) unsupported("no CUDA kernel is called '" + forced + "'");
  if (!best.kernel) unsupported("no CUDA kernel accepts this problem: " + best.refused);
  return best;
}

}  // namespace ck::cuda
