// outputs.h: memory of result arrays, recycled.
//
// A fresh array of a few megabytes costs a page fault every 4 KB, which for depthwise and pooling layers is more than the arithmetic.
// When a result dies its memory is kept for the next result of about that size; at most kKeepBytes are kept, the oldest go first.
#pragma once
#include <cstdint>
#include <list>
#include <mutex>

#include "core/memory.h"

namespace ck {

class Outputs {
 public:
  static Outputs& instance() {
    static Outputs* pool = new Outputs;  // never destroyed: arrays may outlive every static
    return *pool;
  }

  Buffer take(int64_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto it = kept_.begin(); it != kept_.end(); ++it)
        if (it->bytes() >= bytes && it->bytes() <= bytes + bytes / 4) {
          Buffer b = std::move(*it);
          kept_bytes_ -= b.bytes();
          kept_.erase(it);
          return b;
        }
    }
    return Buffer(bytes);
  }

  void give_back(Buffer b) {
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_bytes_ += b.bytes();
    kept_.push_front(std::move(b));
    while (kept_bytes_ > kKeepBytes) {
      kept_bytes_ -= kept_.back().bytes();
      kept_.pop_back();
    }
  }

  static constexpr int64_t kRecycleFrom = 64 << 10;  // smaller arrays come from the C library, which keeps them itself

 private:
  static constexpr int64_t kKeepBytes = 256 << 20;
  std::mutex mutex_;
  std::list<Buffer> kept_;
  int64_t kept_bytes_ = 0;
};

}  // namespace ck
