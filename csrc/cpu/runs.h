// runs.h: cuts the pixels of an image into tasks of about 16 KB, and a task into runs of pixels along a row.
// For the kernels that treat every pixel alike; where rows follow each other without gaps, a whole task is one run.
#pragma once
#include "core/kernel.h"

namespace ck {

struct Runs {
  int64_t d, h, w;
  int64_t chunk;      // pixels per task
  int64_t per_image;  // tasks per image

  static inline __attribute__((always_inline)) Runs of(int64_t d, int64_t h, int64_t w, int64_t bytes_per_pixel) {
    const int64_t chunk = bytes_per_pixel > 0 && bytes_per_pixel < 16384 ? 16384 / bytes_per_pixel : 1;
    return {d, h, w, chunk, (d * h * w + chunk - 1) / chunk};
  }

  // f(n, d, h, w, count) for the runs of the tasks [first, last). `dense`: no tensor has a gap between its rows.
  template <class F>
  inline __attribute__((always_inline)) void each(int64_t first, int64_t last, bool dense, const F& f) const {
    for (int64_t task = first; task < last; ++task) {
      const int64_t n = task / per_image, all = d * h * w;
      int64_t at = (task - n * per_image) * chunk;
      const int64_t end = at + chunk < all ? at + chunk : all;
      if (dense) {
        f(n, int64_t{0}, int64_t{0}, at, end - at);
        continue;
      }
      while (at < end) {
        const int64_t row = at / w, column = at - row * w;
        const int64_t count = w - column < end - at ? w - column : end - at;
        f(n, row / h, row % h, column, count);
        at += count;
      }
    }
  }
};

// Rows of w pixels and slices of h rows follow each other without gaps.
static inline __attribute__((always_inline)) bool dense_rows(const View& v, int64_t d, int64_t h, int64_t w) {
  return (h == 1 || v.row == w * v.pixel) && (d == 1 || v.depth == h * w * v.pixel);
}

}  // namespace ck
