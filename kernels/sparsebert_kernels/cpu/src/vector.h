// V x 1 vectors times a token panel: an activation is loaded once and used for V rows.
#pragma once
#include "token_panel.h"

namespace SB_ISA {

// Multiplies one unit of V x 1 vectors with T vectors of a token panel whose rows are WIDTH tokens apart: one fp32
// vector, or two bf16 vectors widened on use.
template <class StoredValue>
struct WidenedVectors {
  typedef StoredValue Value;
  typedef float PanelValue;
  static constexpr int UNIT = sizeof(Value) == 4 ? 1 : 2;
  template <int V, int T, int WIDTH>
  static SB_INLINE void multiply(Simd::F (&sums)[V][T], const Value* values, const uint16_t* columns,
                                 const float* token_panel) {
#pragma GCC unroll 2
    for (int u = 0; u < UNIT; u++) {
      const float* x = token_panel + int64_t{columns[u]} * WIDTH;
      Simd::F token[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) token[t] = Simd::load(x + t * LANES);
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) {
        const Simd::F weight = Simd::set1(to_float(values[v * UNIT + u]));
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) sums[v][t] += weight * token[t];
      }
    }
  }
};

// Computes one row block x column block. The row block has `count` vector rows of V rows of W. `token_panel` begins at
// the column block, `out` and `bias` at the row block. The first column block of a row block starts its sums from the
// bias, the others continue from `out`. Rows of both token panels are WIDTH tokens apart.
template <class Policy, int V, int T, bool FIRST, int WIDTH = T * LANES>
void vector_block(const sb_weight& w, int64_t block, int64_t count,
                  const typename Policy::PanelValue* token_panel, float* out, const float* bias) {
  constexpr int UNIT = Policy::UNIT;
  const int32_t* starts = w.starts + block * (w.block_rows / V);
  const uint16_t* columns = static_cast<const uint16_t*>(w.columns) + int64_t{starts[0]} * UNIT;
  const auto* values = static_cast<const typename Policy::Value*>(w.values) + int64_t{starts[0]} * UNIT * V;
  for (int64_t vector_row = 0; vector_row < count; vector_row++, out += V * WIDTH) {
    Simd::F sums[V][T];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++)
        sums[v][t] = FIRST ? Simd::set1(bias[vector_row * V + v]) : Simd::load(out + v * WIDTH + t * LANES);
    const int32_t end = starts[vector_row + 1];
    for (int32_t unit = starts[vector_row]; unit < end; unit++, columns += UNIT, values += UNIT * V)
      Policy::template multiply<V, T, WIDTH>(sums, values, columns, token_panel);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++)
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) Simd::store(out + v * WIDTH + t * LANES, sums[v][t]);
  }
}

}  // namespace SB_ISA
