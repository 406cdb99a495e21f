// AVX-512 with bf16 dot products, for bf16 activations and bf16 weights. avx512.cpp serves all other calls.
#define SB_ISA avx512_bf16
#include "native.h"
#include "simd_avx512.h"
// The headers below need the vectors above.
#include "dot_bf16.h"
#include "row_panel_linear.h"
#include "paired_encoder.h"

namespace avx512 {
extern const sb::Kernels kernels;
}

namespace SB_ISA {

extern const sb::Kernels kernels;
const sb::Kernels kernels = {
    [](int32_t format, int32_t dtype) {
      return format == SB_ROW_PANEL ? computes_row_panels(dtype) : avx512::kernels.computes(format, dtype);
    },
    [](const sb::LinearCall& call) {
      if (call.weights[0].format == SB_ROW_PANEL) row_panel_linear(call);
      else if (call.x_dtype == SB_BF16 && call.weights[0].dtype == SB_BF16) linear_dot(call);
      else avx512::kernels.linear(call);
    },
    [](const sb::GradientCall& call) { avx512::kernels.values_gradient(call); },
    [](const sb_encoder_call& call) { avx512::kernels.encoder(call); },
    paired_encoder,
    [](const sb_pool_call& call) { avx512::kernels.pool(call); },
};

}  // namespace SB_ISA
