// tuning.cpp: the table in use.
#include "dispatch/tuning.h"

#include <mutex>

namespace ck {
namespace {

std::mutex g_mutex;
std::map<std::string, Tuned>& rows() {
  static std::map<std::string, Tuned> table;
  return table;
}

}  // namespace

std::string tuning_key(const ConvProblem& p, const std::string& isa) {
  const auto triple = [](int64_t a, int64_t b, int64_t c) { return std::to_string(a) + "x" + std::to_string(b) + "x" + std::to_string(c); };
  std::string key = triple(p.d, p.h, p.w) + "x" + std::to_string(p.c) + " to " + triple(p.z, p.p, p.q) + "x" + std::to_string(p.k);
  key += " window " + triple(p.t, p.r, p.s) + " stride " + triple(p.stride_d, p.stride_h, p.stride_w);
  key += " pad " + triple(p.pad_d_lo, p.pad_h_lo, p.pad_w_lo) + " dilation " + triple(p.dil_d, p.dil_h, p.dil_w);
  key += " groups " + std::to_string(p.groups) + (p.transposed ? " transposed " : " ") + isa + (p.bf16 == Bf16::kOff ? "" : " bf16");
  return key;
}

void set_tuning(std::map<std::string, Tuned> table) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  rows() = std::move(table);
}

std::optional<Tuned> tuned(const std::string& key) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  const auto it = rows().find(key);
  return it == rows().end() ? std::nullopt : std::optional<Tuned>(it->second);
}

}  // namespace ck
