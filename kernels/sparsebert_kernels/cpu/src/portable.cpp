// Kernels through GCC's vector extensions; this file is compiled once per instruction set, whose name is SB_ISA.
#include "native.h"
#include "simd_portable.h"
// The headers below need the vectors above.
#include "linear_kernels.h"
#include "gradient.h"
#include "encoder.h"
#include "pooling.h"

namespace SB_ISA {

extern const sb::Kernels kernels;
const sb::Kernels kernels = {
    computes,
    [](const sb::LinearCall& call) {
      call.x_dtype == SB_F32 ? linear_from<float>(call) : linear_from<uint16_t>(call);
    },
    [](const sb::GradientCall& call) {
      call.x_dtype == SB_F32 ? values_gradient<float>(call) : values_gradient<uint16_t>(call);
    },
    [](const sb_encoder_call& call) { encoder(call); },
    nullptr,
    pool,
};

}  // namespace SB_ISA
