// dispatch.cpp: kernels.def expanded. The emulation leaves out what needs nvcc (CK_TENSOR, CK_SM90), a build without 90a what is compiled for it
// alone (CK_NO_SM90).
#include "cuda/dispatch.h"

#define CK_DECLARE(family, name)    \
  namespace ck::cuda {              \
  extern const family##Kernel name; \
  }
#define CK_PORTABLE CK_DECLARE
#if defined(CK_EMULATE)
#define CK_TENSOR(family, name)
#define CK_SM90(family, name)
#else
#define CK_TENSOR CK_DECLARE
#if defined(CK_NO_SM90)
#define CK_SM90(family, name)
#else
#define CK_SM90 CK_DECLARE
#endif
#endif
#include "cuda/kernels.def"
#undef CK_PORTABLE

namespace ck::cuda {

#define CK_LIST(family, name) r.family.push_back(&name);
#define CK_PORTABLE CK_LIST
#if !defined(CK_EMULATE)
#undef CK_TENSOR
#define CK_TENSOR CK_LIST
#if !defined(CK_NO_SM90)
#undef CK_SM90
#define CK_SM90 CK_LIST
#endif
#endif
const Rows& rows() {
  static const Rows all = [] {
    Rows r;
#include "cuda/kernels.def"
    return r;
  }();
  return all;
}

}  // namespace ck::cuda
