// The families that every instruction set has: fp32 panels, fp32 or bf16 values, fp32 or bf16 activations.
#pragma once
#include "tiled_linear.h"
#include "element.h"
#include "vector.h"

namespace SB_ISA {

struct FloatPanelIn {
  typedef float Panel;
  template <int T, class X>
  static void in(const X* x, int64_t stride, int64_t tokens, int64_t begin, int64_t end, float* panel) {
    panel_in<T>(x, stride, tokens, begin, end, panel);
  }
};

template <class Policy>
struct Element : FloatPanelIn {
  // 128 bytes a column, so that a column block of 256 fits the L1 cache; where vectors are short, the number of
  // independent sums counts more.
  static constexpr int MAX_VECTORS = LANES == 16 ? 2 : 4;
  template <int T, bool FIRST>
  static void block(const sb_weight& w, int64_t block, int64_t, const float* panel, float* out, const float* bias) {
    element_block<Policy, T, FIRST>(w, block, panel, out, bias);
  }
};

template <class Value, int V>
struct Vector : FloatPanelIn {
  // V * MAX_VECTORS sums fill half of the registers.
  static constexpr int REGISTERS = LANES == 16 ? 32 : 16;
  static constexpr int MAX_VECTORS = REGISTERS / 2 / V > 4 ? 4 : REGISTERS / 2 / V;
  template <int T, bool FIRST>
  static void block(const sb_weight& w, int64_t block, int64_t features, const float* panel, float* out,
                    const float* bias) {
    vector_block<WidenedVectors<Value>, V, T, FIRST>(w, block, divide_up(features, V), panel, out, bias);
  }
};

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
