// The fp16 kernels: linear layers and whole encoders. This file is compiled for AVX512-FP16, and in plain C++ with the
// same results of linear layers; where whole encoders compute in fp32, the last bits differ.
#define SB_FP16_PANELS
#include "native.h"
#ifdef __AVX512F__
#include "simd_avx512.h"
#else
#include "simd_portable.h"
#endif
// The header below needs the vectors above.
#include "element_fp16.h"
#include "encoder.h"

namespace SB_ISA {

extern void (*const linear_fp16)(const sb::LinearCall&);
void (*const linear_fp16)(const sb::LinearCall&) = [](const sb::LinearCall& call) {
  if (call.x_dtype == SB_F32) linear<ElementFp16, float>(call);
  else if (call.x_dtype == SB_BF16) linear<ElementFp16, uint16_t>(call);
  else linear<ElementFp16, Half>(call);
};

extern bool (*const encoder_fp16)(const sb_encoder_call&);
bool (*const encoder_fp16)(const sb_encoder_call&) = encoder;

}  // namespace SB_ISA
