/* mask_cpuid.c: a process that finds no AVX-512 and no AMX, whatever it asks: for libraries that have no switch for it (bench/limit.py).

   Preloaded, it has the kernel raise SIGSEGV at each CPUID instruction (arch_prctl ARCH_SET_CPUID, Linux on CPUs that can) and answers in its
   place, with those bits cleared. Source: Intel 64 and IA-32 Architectures Software Developer's Manual, vol. 2A, CPUID, leaf 7. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { kSetCpuid = 0x1012 };
enum { kInstructionBytes = 2 }; /* 0F A2 */

/* F DQ IFMA PF ER CD BW VL, then VBMI VBMI2 VNNI BITALG VPOPCNTDQ, then 4VNNIW 4FMAPS VP2INTERSECT AMX-BF16 FP16 AMX-TILE AMX-INT8 */
static const unsigned kEbx = 1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31;
static const unsigned kEcx = 1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14;
static const unsigned kEdx = 1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25;
static const unsigned kEax1 = 1u << 5 | 1u << 21; /* subleaf 1: AVX512_BF16, AMX-FP16 */

static void answer(int signal_number, siginfo_t* info, void* context) {
  greg_t* r = ((ucontext_t*)context)->uc_mcontext.gregs;
  const unsigned char* code = (const unsigned char*)r[REG_RIP];
  (void)info;
  if (code[0] != 0x0f || code[1] != 0xa2) { /* a real one: it happens again, and ends the process */
    signal(signal_number, SIG_DFL);
    return;
  }
  const unsigned leaf = (unsigned)r[REG_RAX], subleaf = (unsigned)r[REG_RCX];
  unsigned a, b, c, d;
  syscall(SYS_arch_prctl, kSetCpuid, 1L);
  __cpuid_count(leaf, subleaf, a, b, c, d);
  syscall(SYS_arch_prctl, kSetCpuid, 0L);
  if (leaf == 7 && subleaf == 0) b &= ~kEbx, c &= ~kEcx, d &= ~kEdx;
  if (leaf == 7 && subleaf == 1) a &= ~kEax1;
  r[REG_RAX] = a, r[REG_RBX] = b, r[REG_RCX] = c, r[REG_RDX] = d;
  r[REG_RIP] += kInstructionBytes;
}

__attribute__((constructor)) static void mask(void) {
  struct sigaction action = {0};
  action.sa_sigaction = answer;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, NULL);
  syscall(SYS_arch_prctl, kSetCpuid, 0L);
}
