// AMX: row panels through tile products, on the hardware or, for tests on any machine, in plain C++
// (-DSB_AMX_EMULATED). Another instruction set serves all other calls.
#ifdef SB_AMX_EMULATED
#define SB_ISA amx_emulated
#define SB_OTHERS baseline
#else
#define SB_ISA amx
#define SB_OTHERS avx512_bf16
#endif
#define SB_TILES
#include "native.h"
#include "row_panel_linear.h"
#include "paired_encoder.h"

namespace SB_OTHERS {
extern const sb::Kernels kernels;
}

namespace SB_ISA {

extern const sb::Kernels kernels;
const sb::Kernels kernels = {
    [](int32_t format, int32_t dtype) {
      return format == SB_ROW_PANEL ? computes_row_panels(dtype) : SB_OTHERS::kernels.computes(format, dtype);
    },
    [](const sb::LinearCall& call) {
      if (call.weights[0].format == SB_ROW_PANEL) row_panel_linear(call);
      else SB_OTHERS::kernels.linear(call);
    },
    [](const sb::GradientCall& call) { SB_OTHERS::kernels.values_gradient(call); },
    [](const sb_encoder_call& call) { SB_OTHERS::kernels.encoder(call); },
    paired_encoder,
    [](const sb_pool_call& call) { SB_OTHERS::kernels.pool(call); },
};

}  // namespace SB_ISA
