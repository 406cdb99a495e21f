// AVX-512 (F, BW, VL, DQ).
#define SB_ISA avx512
#include "native.h"
#include "simd_avx512.h"
// The headers below need the vectors above.
#include "linear_kernels.h"
#include "gradient.h"
#include "encoder.h"
#include "pooling.h"

namespace avx2 {
extern const sb::Kernels kernels;
}

namespace SB_ISA {

extern const sb::Kernels kernels;
const sb::Kernels kernels = {
    computes,
    [](const sb::LinearCall& call) {
      // For up to eight tokens, vectors of half the width do the same work in half the cycles.
      if (call.tokens <= 8) avx2::kernels.linear(call);
      else call.x_dtype == SB_F32 ? linear_from<float>(call) : linear_from<uint16_t>(call);
    },
    [](const sb::GradientCall& call) {
      call.x_dtype == SB_F32 ? values_gradient<float>(call) : values_gradient<uint16_t>(call);
    },
    [](const sb_encoder_call& call) {
      if (call.sequences * call.length <= 8) avx2::kernels.encoder(call);
      else encoder(call);
    },
    nullptr,
    pool,
};

}  // namespace SB_ISA
