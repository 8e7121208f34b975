// recycled.h: memory of result arrays, of weights on their way to a kernel and of partial sums, recycled.
//
// A fresh array of a few megabytes costs a page fault every 4 KB, which for depthwise and pooling layers is more than the arithmetic.
// When a result dies its memory is kept for the next one of about that size, the oldest goes first. What is kept and what is in use together
// stay below the most that was in use lately (a training step holds all activations, then none), or below kKeepBytes.
#pragma once
#include <algorithm>
#include <cstdint>
#include <list>
#include <mutex>

#include "core/memory.h"

namespace ck {

class Recycled {
 public:
  static Recycled& instance() {
    static Recycled* pool = new Recycled;  // never destroyed: arrays may outlive every static
    return *pool;
  }

  Buffer take(int64_t bytes) {
    if (bytes < kRecycleFrom) return Buffer(bytes);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto it = kept_.begin(); it != kept_.end(); ++it)
        if (it->bytes() >= bytes && it->bytes() <= bytes + bytes / 4) {
          Buffer b = std::move(*it);
          kept_bytes_ -= b.bytes();
          kept_.erase(it);
          use(b.bytes());
          return b;
        }
      use(bytes);
      trim();
    }
    return Buffer(bytes);
  }

  void give_back(Buffer b) {
    if (b.bytes() < kRecycleFrom) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_bytes_ += b.bytes(), used_bytes_ -= b.bytes();
    kept_.push_front(std::move(b));
    trim();
  }

  static constexpr int64_t kRecycleFrom = 64 << 10;  // smaller arrays come from the C library, which keeps them itself

 private:
  void use(int64_t bytes) {
    used_bytes_ += bytes;
    most_used_ = std::max(used_bytes_, most_used_ - most_used_ / 1024);  // a peak is forgotten within some thousand results
  }
  void trim() {
    const int64_t most = std::max(kKeepBytes, most_used_);
    while (!kept_.empty() && kept_bytes_ + used_bytes_ > most) {
      kept_bytes_ -= kept_.back().bytes();
      kept_.pop_back();
    }
  }

  static constexpr int64_t kKeepBytes = 256 << 20;
  std::mutex mutex_;
  std::list<Buffer> kept_;
  int64_t kept_bytes_ = 0, used_bytes_ = 0, most_used_ = 0;
};

}  // namespace ck
