// One block of a linear layer between token panels in fp16.
#pragma once
#include "element_fp16.h"
#include "token_panels.h"

namespace SB_ISA {

// The products of one row block x column block of one token panel of T vectors, added to y unless FIRST.
template <int T, bool FIRST>
SB_INLINE void panel_block(const sb_weight& w, int64_t index, int64_t, const Half* x, Half* y, const float*) {
  element_block_of_halves<T * LANES, FIRST>(w, index, x, y);
}

// sums = activation(sums + bias), [features][width]. Infinite sums count as out of range even where the activation is
// not: no activation is larger than its argument.
template <int ACTIVATION>
Writer<Half> finish_rows(Half* sums, int64_t features, int64_t width, const float* bias) {
  Writer<Half> writer;
  for (int64_t n = 0; n < features; n++, sums += width) {
    const Simd::F offset = Simd::set1(bias[n]);
    for (int64_t i = 0; i < width; i += LANES) {
      const Simd::F z = load_halves(sums + i) + offset;
      writer.see(z);
      store_halves(sums + i, activate<ACTIVATION>(z));
    }
  }
  return writer;
}

// After the last column block.
inline void finish_rows(const Panels& y, Half* sums, int64_t features, int64_t width, const float* bias,
                        int activation) {
  switch (activation) {
    case SB_RELU: return y.note(finish_rows<SB_RELU>(sums, features, width, bias));
    case SB_GELU: return y.note(finish_rows<SB_GELU>(sums, features, width, bias));
    case SB_GELU_TANH: return y.note(finish_rows<SB_GELU_TANH>(sums, features, width, bias));
    default: return y.note(finish_rows<SB_NONE>(sums, features, width, bias));
  }
}

}  // namespace SB_ISA
