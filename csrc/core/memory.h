// memory.h: aligned memory owned by the host side (weights, arenas, scratch).
// Large blocks ask for huge pages: streaming 100 MB of weights through 4 KB pages costs a TLB miss every 64 cache lines.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

namespace ck {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t bytes) : bytes_(bytes) {
    if (bytes <= 0) return;
    const int64_t align = bytes >= kHugePage ? kHugePage : 64;
    if (posix_memalign(&data_, static_cast<size_t>(align), static_cast<size_t>((bytes + 63) / 64 * 64))) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    // Whole huge pages only: a rounded-up tail would cost up to 2 MB for each weight.
    if (bytes >= kHugePage) madvise(data_, static_cast<size_t>(bytes / kHugePage * kHugePage), MADV_HUGEPAGE);
#endif
  }
  Buffer(Buffer&& o) noexcept : data_(o.data_), bytes_(o.bytes_) { o.data_ = nullptr, o.bytes_ = 0; }
  Buffer& operator=(Buffer&& o) noexcept {
    if (this != &o) {
      std::free(data_);
      data_ = o.data_, bytes_ = o.bytes_;
      o.data_ = nullptr, o.bytes_ = 0;
    }
    return *this;
  }
  ~Buffer() { std::free(data_); }

  char* data() const { return static_cast<char*>(data_); }
  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kHugePage = 2 << 20;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace ck
