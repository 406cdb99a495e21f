// The exported functions of the fp16 kernels.
#include <cstdint>

#include "native.h"

#define SB_DECLARE(ISA)                                       \
  namespace ISA {                                             \
  extern void (*const linear_fp16)(const sb::LinearCall&);    \
  extern bool (*const encoder_fp16)(const sb_encoder_call&);  \
  }
#ifdef SB_HAVE_AVX512_FP16
SB_DECLARE(avx512_fp16)
#endif
#ifdef SB_HAVE_FP16_EMULATED
SB_DECLARE(fp16_emulated)
#endif

#define SB_API extern "C" __attribute__((visibility("default")))

namespace {

struct Fp16Kernels {
  void (*linear)(const sb::LinearCall&);
  bool (*encoder)(const sb_encoder_call&);
};

// Nulls if this machine or build lacks the kernels.
Fp16Kernels find(bool emulated) {
  if (emulated) {
#ifdef SB_HAVE_FP16_EMULATED
    return {fp16_emulated::linear_fp16, fp16_emulated::encoder_fp16};
#endif
  } else {
#ifdef SB_HAVE_AVX512_FP16
    if (sb::usable("avx512_fp16")) return {avx512_fp16::linear_fp16, avx512_fp16::encoder_fp16};
#endif
  }
  return {};
}

}  // namespace

bool (*sb::fp16_encoder(bool emulated))(const sb_encoder_call&) { return find(emulated).encoder; }

// Returns 1 if the AVX512-FP16 kernels run here, else 0; with `emulated`, the same for their emulation.
SB_API int sb_fp16_supported(int emulated) { return find(emulated).linear != nullptr; }

// Computes y = activation(x @ W.T + bias) for element-sparse weights in fp16, which follow `call` in memory. Sums that
// leave the range of fp16 are NaN in y, and the int32 at the weight's `starts` becomes 1. Returns 0 on success, 1 if no
// kernel supports the call.
SB_API int sb_fp16_linear(const sb_call* call, int emulated) {
  const auto linear = find(emulated).linear;
  if (!linear || call->count < 1 || call->count > sb::MAX_WEIGHTS || call->threads < 1) return 1;
  const auto* weights = reinterpret_cast<const sb_weight*>(call + 1);
  for (int i = 0; i < call->count; i++) {
    const sb_weight& w = weights[i];
    if (w.format != SB_ELEMENT || w.dtype != SB_F16 || w.in_features != weights[0].in_features ||
        w.block_columns != weights[0].block_columns || !w.starts)
      return 1;
  }
  if (call->tokens > 0) linear({*call, weights});
  return 0;
}
