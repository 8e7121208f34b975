// tables.h: the kernels of each ISA as lists, in the order of kernels.def; which ISA is in use; how one row is chosen.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/kernel.h"

namespace ck {

struct Table {
  const char* isa;
  int lanes;
  double (*fma_loop)(int64_t iterations);  // runs a loop of pure FMAs, returns the FLOPs it did
  std::vector<const ConvKernel*> Conv{};
  std::vector<const PoolKernel*> Pool{};
  std::vector<const NormKernel*> Norm{};
  std::vector<const MapKernel*> Map{};
  std::vector<const MoveKernel*> Move{};
  std::vector<const ResizeKernel*> Resize{};
  std::vector<const ConvWeightKernel*> ConvWeight{};
  std::vector<const PoolBackKernel*> PoolBack{};
  std::vector<const NormBackKernel*> NormBack{};
  std::vector<const SumKernel*> Sum{};
  std::vector<const BatchNormKernel*> BatchNorm{};
  std::vector<const MapBackKernel*> MapBack{};
  std::vector<const DropoutKernel*> Dropout{};
  std::vector<const LossKernel*> Loss{};
  std::vector<const MoveBackKernel*> MoveBack{};
  std::vector<const ResizeBackKernel*> ResizeBack{};
  std::vector<const UpdateKernel*> Update{};
};

std::vector<const Table*> tables();  // what this machine can run, best first
const Table& table();                // the one in use: the best, or what CONVKERN_ISA or set_isa() lowered it to
void set_isa(const std::string& name);
const Table& reference64();  // the float64 rows
Bf16 bf16();                 // the bfloat16 arithmetic of the table in use; asks the operating system for AMX's tiles

template <class K>
struct Choice {
  const K* kernel = nullptr;
  double cost = 0;
  std::vector<std::pair<std::string, std::string>> refused;  // (kernel, reason)
};

// The cheapest row that accepts; `forced` names one row. Sees neither the batch nor the threads, so that bits do not depend on them.
template <class K, class Problem>
Choice<K> select(const std::vector<const K*>& rows, const Problem& problem, const std::string& forced = "") {
  Choice<K> best;
  bool known = forced.empty();
  for (const K* row : rows) {
    if (!forced.empty() && forced != row->name) continue;
    known = true;
    if (const char* reason = row->refuse(problem)) {
      best.refused.emplace_back(row->name, reason);
      continue;
    }
    const double cost = row->cost(problem);
    if (!best.kernel || cost < best.cost) best.kernel = row, best.cost = cost;
  }
  if (!known) unsupported("no kernel is called '" + forced + "'");
  if (!best.kernel) {
    std::string why = "no kernel accepts this problem:";
    for (const auto& [name, reason] : best.refused) why += " " + name + ": " + reason + ";";
    unsupported(why);
  }
  return best;
}

}  // namespace ck
