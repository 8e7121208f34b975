// tuning.h: measured choices of convolution kernels: a table from problems to kernels that goes before the cost model (`convkern tune` makes it).
// The key is the problem of one image, so that a choice, and with it the bits of a result, cannot depend on the batch.
#pragma once
#include <map>
#include <optional>
#include <string>

#include "core/problem.h"

namespace ck {

struct Tuned {
  std::string kernel;
  double us;  // measured, for one image
};

// The geometry, the instruction set and the arithmetic; not the epilogue, which all kernels share.
std::string tuning_key(const ConvProblem& problem, const std::string& isa);

void set_tuning(std::map<std::string, Tuned> table);  // for plans made from now on
std::optional<Tuned> tuned(const std::string& key);

}  // namespace ck
