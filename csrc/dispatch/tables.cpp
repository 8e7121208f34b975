// tables.cpp: kernels.def expanded once per ISA, and the choice of the ISA by cpuid.
#include "dispatch/tables.h"

#include <atomic>
#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// Declarations. An ISA that the build leaves out (CK_NO_AVX512 ...) has no table.
#define CK_REFERENCE(family, name)      \
  namespace ck::ref {                   \
  extern const family##Kernel name;     \
  extern const family##Kernel name##64; \
  }
#define CK_KERNEL(family, name)
#define CK_KERNEL_ON(family, feature, name)
#include "cpu/kernels.def"
#undef CK_REFERENCE
#undef CK_KERNEL
#undef CK_KERNEL_ON

#define CK_REFERENCE(family, name)
#define CK_KERNEL_ON(family, feature, name) \
  namespace ck::feature {                   \
  extern const family##Kernel name;         \
  }
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
#undef CK_KERNEL_ON
namespace ck::base {
double fma_loop(int64_t iterations);
}
CK_X86(namespace ck::avx2 { double fma_loop(int64_t iterations); } namespace ck::avx512 { double fma_loop(int64_t iterations); })

namespace ck {
namespace {

#define CK_REFERENCE(family, name) t.family.push_back(&ref::name);

#define CK_KERNEL_ON(family, feature, name)
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
#undef CK_KERNEL_ON

// Features beyond AVX-512: does the CPU have them, and does the build?
bool has_avx512bf16() {
#if defined(CK_BF16)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}
bool has_amx() {
#if defined(CK_BF16)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  return has_avx512bf16() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kBf16) && (edx & kTile);
#else
  return false;
#endif
}
#if defined(CK_BF16)
#define CK_KERNEL_ON(family, feature, name) \
  if (has_##feature()) t.family.push_back(&feature::name);
#else
#define CK_KERNEL_ON(family, feature, name)
#endif
#define CK_KERNEL(family, name) t.family.push_back(&avx512::name);
Table make_avx512() {
  Table t{"avx512", 16, avx512::fma_loop};
#include "cpu/kernels.def"
  return t;
}
#undef CK_KERNEL
#endif
#undef CK_KERNEL_ON
#undef CK_REFERENCE

#define CK_KERNEL(family, name)
#define CK_KERNEL_ON(family, feature, name)
#define CK_REFERENCE(family, name) t.family.push_back(&ref::name##64);
Table make_reference64() {
  Table t{"reference64", 1, nullptr};
#include "cpu/kernels.def"
  return t;
}
#undef CK_KERNEL
#undef CK_KERNEL_ON
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

// Linux saves the tiles of processes that have asked for them; asked once, and only by who wants bfloat16: the permission makes signal frames larger.
bool amx_granted() {
#if defined(CK_BF16) && defined(__linux__)
  static const bool granted = [] {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
    return has_amx() && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return granted;
#else
  return false;
#endif
}

Bf16 bf16() {
  for (const ConvKernel* row : table().Conv)
    if (row->bf16) return amx_granted() ? Bf16::kTiles : Bf16::kPairs;
  return Bf16::kOff;
}

const Table& reference64() {
  static const Table t = make_reference64();
  return t;
}

}  // namespace ck
