// warp.h: an affine warp of one image, the only resampling of data augmentation.
#pragma once
#include <cstdint>

namespace ck {

enum class Fill { kConstant, kNearest, kReflect, kWrap };

struct WarpProblem {
  int64_t h, w, c;  // the source
  int64_t p, q;     // the result
  double m[6];      // result pixel (i, j) shows the source at row m0*i + m1*j + m2, column m3*i + m4*j + m5
  Fill fill;
  float cval;   // what Fill::kConstant shows outside
  bool linear;  // false: the nearest pixel
};

// Strides in elements, of rows and pixels; channels are contiguous. Negative strides of the result are flips.
template <class T>
struct WarpArgs {
  const T* x;
  int64_t x_row, x_pixel;
  float* y;
  int64_t y_row, y_pixel;
};

// Rows [first, last) of the result; T is uint8_t or float.
template <class T>
void warp(const WarpProblem& p, const WarpArgs<T>& a, int64_t first, int64_t last);

}  // namespace ck
