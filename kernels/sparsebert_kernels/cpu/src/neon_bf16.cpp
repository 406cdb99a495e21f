// NEON with dot products of bf16 and int8, for row panels and the paired engine. The neon object serves all other calls.
#define SB_ISA neon_bf16
#include "native.h"
#include "row_panel_linear.h"
#include "paired_encoder.h"

namespace neon {
extern const sb::Kernels kernels;
}

namespace SB_ISA {

extern const sb::Kernels kernels;
const sb::Kernels kernels = {
    [](int32_t format, int32_t dtype) {
      return format == SB_ROW_PANEL ? computes_row_panels(dtype) : neon::kernels.computes(format, dtype);
    },
    [](const sb::LinearCall& call) {
      if (call.weights[0].format == SB_ROW_PANEL) row_panel_linear(call);
      else neon::kernels.linear(call);
    },
    [](const sb::GradientCall& call) { neon::kernels.values_gradient(call); },
    [](const sb_encoder_call& call) { neon::kernels.encoder(call); },
    paired_encoder,
    [](const sb_pool_call& call) { neon::kernels.pool(call); },
};

}  // namespace SB_ISA
