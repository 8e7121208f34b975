// random.h: counter-based random numbers: Philox 4x32-10. The number of an element depends on (seed, step, element) alone, so that a mask is the
// same for every number of threads, and a backward pass makes it again instead of storing it.
//
// Sixteen counters at once, as arrays that a compiler vectorises: element e of a batch has the counter e / 64 * 16 + e % 16 and of its four
// words the word e / 16 % 4, so the four words of sixteen counters are the numbers of 64 neighbouring elements.
// Source    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"
#pragma once
#include <cstdint>

namespace ck {

constexpr int kRandomBlock = 64;  // elements whose numbers are made together

// The numbers of the elements [64 * block, 64 * block + 64).
static inline __attribute__((always_inline)) void random_block(uint64_t seed, uint64_t step, uint64_t block, uint32_t* out) {
  uint32_t c0[16], c1[16], c2[16], c3[16];
  for (int i = 0; i < 16; ++i) {
    const uint64_t counter = block * 16 + static_cast<uint64_t>(i);
    c0[i] = static_cast<uint32_t>(counter), c1[i] = static_cast<uint32_t>(counter >> 32);
    c2[i] = static_cast<uint32_t>(step), c3[i] = static_cast<uint32_t>(step >> 32);
  }
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
    for (int i = 0; i < 16; ++i) {
      const uint64_t a = uint64_t{0xD2511F53u} * c0[i], b = uint64_t{0xCD9E8D57u} * c2[i];
      c0[i] = static_cast<uint32_t>(b >> 32) ^ c1[i] ^ k0;
      c1[i] = static_cast<uint32_t>(b);
      c2[i] = static_cast<uint32_t>(a >> 32) ^ c3[i] ^ k1;
      c3[i] = static_cast<uint32_t>(a);
    }
  for (int i = 0; i < 16; ++i) out[i] = c0[i], out[16 + i] = c1[i], out[32 + i] = c2[i], out[48 + i] = c3[i];
}

// An element is dropped if its number is below this.
static inline __attribute__((always_inline)) uint64_t drop_threshold(double rate) { return static_cast<uint64_t>(rate * 4294967296.0); }

}  // namespace ck
