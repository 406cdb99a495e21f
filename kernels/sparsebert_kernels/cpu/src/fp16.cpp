// The fp16 kernels; this file is compiled for AVX512-FP16, and in plain C++ with the same results.
#include "native.h"
#ifdef __AVX512F__
#include "simd_avx512.h"
#else
#include "simd_portable.h"
#endif
// The header below needs the vectors above.
#include "element_fp16.h"

namespace SB_ISA {

extern void (*const linear_fp16)(const sb::LinearCall&);
void (*const linear_fp16)(const sb::LinearCall&) = [](const sb::LinearCall& call) {
  if (call.x_dtype == SB_F32) linear<ElementFp16, float>(call);
  else if (call.x_dtype == SB_BF16) linear<ElementFp16, uint16_t>(call);
  else linear<ElementFp16, Half>(call);
};

}  // namespace SB_ISA
