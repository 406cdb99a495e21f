// Row panels times paired panels: h rows of W share kept columns, in groups of g.
//
// A k-step is 32 kept columns of a row panel. Its values are h / 16 tiles of 16 rows x 32 columns, row-major, as the
// tile unit wants its left operand; `columns` has the line of each group, or with g = 1 each column.
#pragma once
#include "paired.h"

namespace SB_ISA {

constexpr int64_t STEP_COLUMNS = 32;  // of bf16
constexpr int64_t TILE_VALUES = 512;  // 16 rows x 32 columns

constexpr int64_t whole_lines(int64_t rows) { return (rows + PAIRED_FEATURES - 1) / PAIRED_FEATURES * PAIRED_FEATURES; }

// Line j of a k-step: two kept columns of 16 tokens. With g = 1 any two columns are combined: one load ends where its
// column is in the place of an even one, the other where it is in the place of an odd one.
template <int G>
SB_INLINE Line kept_line(const uint16_t* panel, const uint16_t* columns, int j) {
  if constexpr (G == 1) {
    const int64_t even = columns[2 * j], odd = columns[2 * j + 1];
    const uint16_t* first = panel + even / 2 * LINE_VALUES + even % 2;
    const uint16_t* second = panel + odd / 2 * LINE_VALUES + odd % 2;
#if defined(__AVX512BW__)
    const __m512i low = _mm512_maskz_loadu_epi16(0x55555555u, first);
    return reinterpret_cast<Line>(_mm512_mask_loadu_epi16(low, 0xaaaaaaaau, second - 1));
#else
    Line line;
    for (int i = 0; i < 16; i++) line[i] = first[2 * i] | static_cast<uint32_t>(second[2 * i]) << 16;
    return line;
#endif
  } else {
    return load_line(panel + (int64_t{columns[j / (G / 2)]} + j % (G / 2)) * LINE_VALUES);
  }
}

// Bias, activation and rounding of two rows of sums: one line of y.
template <int ACTIVATION>
SB_INLINE void finish_line(Floats even, Floats odd, const float* bias, uint16_t* y) {
  store_line(y, pair(activate_paired<ACTIVATION>(even + bias[0]), activate_paired<ACTIVATION>(odd + bias[1])));
}

}  // namespace SB_ISA

#include "row_panel_dot.h"

namespace SB_ISA {

// y rows [row, row + out_features rounded up to 32) = activation(w @ x + bias), for the paired panels [begin, end).
// Weight rows past out_features are zeros; the bias is fp32 and padded to the same multiple.
inline void paired_linear(const sb_weight& w, const Paired& x, const Paired& y, int64_t row, int activation,
                          int64_t begin, int64_t end) {
  with_group(w.block_columns, [&](auto group) {
    constexpr int G = decltype(group)::COUNT;
    switch (activation) {
      case SB_RELU: return row_panels<G, SB_RELU>(w, x, y, row, begin, end);
      case SB_GELU: return row_panels<G, SB_GELU>(w, x, y, row, begin, end);
      case SB_GELU_TANH: return row_panels<G, SB_GELU_TANH>(w, x, y, row, begin, end);
      default: return row_panels<G, SB_NONE>(w, x, y, row, begin, end);
    }
  });
}

}  // namespace SB_ISA
