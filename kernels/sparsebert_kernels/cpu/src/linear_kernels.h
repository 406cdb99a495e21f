// The kernel families of every instruction set: fp32 token panels, with fp32 or bf16 values and activations.
#pragma once
#include "tiled_linear.h"
#include "element.h"
#include "vector.h"

namespace SB_ISA {

struct FloatTokenPanel {
  typedef float PanelValue;
  template <int T, class X>
  static void load(const X* x, int64_t stride, int64_t tokens, int64_t begin, int64_t end, float* token_panel) {
    load_token_panel<T>(x, stride, tokens, begin, end, token_panel);
  }
};

template <class Policy>
struct Element : FloatTokenPanel {
  // 128 bytes per column with long vectors, so that a column block of 256 fits the L1 cache; with short vectors, the
  // number of independent sums matters more.
  static constexpr int MAX_VECTORS = LANES == 16 ? 2 : 4;
  template <int T, bool FIRST>
  static void block(const sb_weight& w, int64_t block, int64_t, const float* token_panel, float* out,
                    const float* bias) {
    element_block<Policy, T, FIRST>(w, block, token_panel, out, bias);
  }
};

template <class Value, int V>
struct Vector : FloatTokenPanel {
  // V * MAX_VECTORS sums fill half of the registers.
  static constexpr int REGISTERS = LANES == 16 ? 32 : 16;
  static constexpr int MAX_VECTORS = REGISTERS / 2 / V > 4 ? 4 : REGISTERS / 2 / V;
  template <int T, bool FIRST>
  static void block(const sb_weight& w, int64_t block, int64_t features, const float* token_panel, float* out,
                    const float* bias) {
    vector_block<WidenedVectors<Value>, V, T, FIRST>(w, block, divide_up(features, V), token_panel, out, bias);
  }
};

inline bool computes(int32_t format, int32_t dtype) {
  return (format == SB_ELEMENT || format == SB_VECTOR) && (dtype == SB_F32 || dtype == SB_BF16);
}

template <class X>
void linear_from(const sb::LinearCall& call) {
  const sb_weight& w = call.weights[0];
  if (w.format == SB_ELEMENT)
    return w.dtype == SB_F32 ? linear<Element<Fp32Weights>, X>(call) : linear<Element<WidenedWeights>, X>(call);
  switch (w.vector_rows) {
    case 2: return w.dtype == SB_F32 ? linear<Vector<float, 2>, X>(call) : linear<Vector<uint16_t, 2>, X>(call);
    case 4: return w.dtype == SB_F32 ? linear<Vector<float, 4>, X>(call) : linear<Vector<uint16_t, 4>, X>(call);
    case 8: return w.dtype == SB_F32 ? linear<Vector<float, 8>, X>(call) : linear<Vector<uint16_t, 8>, X>(call);
  }
}

}  // namespace SB_ISA
