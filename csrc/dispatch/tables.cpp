// tables.cpp: kernels.def expanded once per ISA, and the choice of the ISA by cpuid.
#include "dispatch/tables.h"

#include <atomic>
#include <cstdlib>

// Declarations. An ISA that the build leaves out (CK_NO_AVX512 ...) has no table.
#define CK_REFERENCE(family, name)      \
  namespace ck::ref {                   \
  extern const family##Kernel name;     \
  extern const family##Kernel name##64; \
  }
#define CK_KERNEL(family, name)
#include "cpu/kernels.def"
#undef CK_REFERENCE
#undef CK_KERNEL

#define CK_REFERENCE(family, name)
#define CK_KERNEL(family, name)     \
  namespace ck::base {              \
  extern const family##Kernel name; \
  }                                 \
  CK_X86(namespace ck::avx2 { extern const family##Kernel name; } namespace ck::avx512 { extern const family##Kernel name; })
#if defined(__x86_64__)
#define CK_X86(...) __VA_ARGS__
#else
#define CK_X86(...)
#endif
#include "cpu/kernels.def"
#undef CK_REFERENCE
#undef CK_KERNEL
namespace ck::base {
double fma_loop(int64_t iterations);
}
CK_X86(namespace ck::avx2 { double fma_loop(int64_t iterations); } namespace ck::avx512 { double fma_loop(int64_t iterations); })

namespace ck {
namespace {

#define CK_REFERENCE(family, name) t.family.push_back(&ref::name);

#define CK_KERNEL(family, name) t.family.push_back(&base::name);
Table make_base() {
  Table t{"base", 4, base::fma_loop};
#include "cpu/kernels.def"
  return t;
}
#undef CK_KERNEL

#if defined(__x86_64__)
#define CK_KERNEL(family, name) t.family.push_back(&avx2::name);
Table make_avx2() {
  Table t{"avx2", 8, avx2::fma_loop};
#include "cpu/kernels.def"
  return t;
}
#undef CK_KERNEL
#define CK_KERNEL(family, name) t.family.push_back(&avx512::name);
Table make_avx512() {
  Table t{"avx512", 16, avx512::fma_loop};
#include "cpu/kernels.def"
  return t;
}
#undef CK_KERNEL
#endif
#undef CK_REFERENCE

#define CK_KERNEL(family, name)
#define CK_REFERENCE(family, name) t.family.push_back(&ref::name##64);
Table make_reference64() {
  Table t{"reference64", 1, nullptr};
#include "cpu/kernels.def"
  return t;
}
#undef CK_KERNEL
#undef CK_REFERENCE

std::vector<const Table*> detect() {
  std::vector<const Table*> found;
#if defined(__x86_64__)
  static const Table t512 = make_avx512(), t2 = make_avx2();
  __builtin_cpu_init();
  const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw"))
    found.push_back(&t512);
  if (fma) found.push_back(&t2);
#endif
  static const Table t0 = make_base();
  found.push_back(&t0);
  return found;
}

const Table* find(const std::string& name) {
  std::string have;
  for (const Table* t : tables()) {
    if (name == t->isa) return t;
    have += std::string(have.empty() ? "" : ", ") + t->isa;
  }
  unsupported("ISA '" + name + "' is not one this machine can run: " + have);
}

std::atomic<const Table*>& current() {
  static std::atomic<const Table*> t{[] {
    const char* name = std::getenv("CONVKERN_ISA");
    return name && *name ? find(name) : tables().front();
  }()};
  return t;
}

}  // namespace

std::vector<const Table*> tables() {
  static const std::vector<const Table*> found = detect();
  return found;
}

const Table& table() { return *current(); }
void set_isa(const std::string& name) { current() = find(name); }

const Table& reference64() {
  static const Table t = make_reference64();
  return t;
}

}  // namespace ck
