// Row panels through the bf16 dot product: a pair of weights, broadcast, times a line.
#pragma once

namespace SB_ISA {

constexpr int DOT_ROWS = 8;    // rows that are computed together
constexpr int DOT_PANELS = 3;  // paired panels that are

SB_INLINE Floats dot(Floats sum, Line line, const uint16_t* pair) {
  uint32_t both;
  memcpy(&both, pair, 4);
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(line), reinterpret_cast<__m512bh>(Line{} + both));
}

// sums[row][t] = W[row, kept] @ x of paired panel t, for DOT_ROWS rows. `values` begins at the first row in the first
// of `count` k-steps, which are `step` values apart; paired panels of x are `stride` values apart.
template <int G, int T>
SB_INLINE void dot_rows(const uint16_t* values, int64_t step, const uint16_t* columns, int64_t count,
                        const uint16_t* x, int64_t stride, Floats (&sums)[DOT_ROWS][T]) {
#pragma GCC unroll 8
  for (int row = 0; row < DOT_ROWS; row++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) sums[row][t] = Floats{};
  for (int64_t k = 0; k < count; k++, values += step, columns += STEP_COLUMNS / G)
    for (int j = 0; j < 16; j++) {
      Line lines[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) lines[t] = kept_line<G>(x + t * stride, columns, j);
#pragma GCC unroll 8
      for (int row = 0; row < DOT_ROWS; row++)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++)
          sums[row][t] = dot(sums[row][t], lines[t], values + row * STEP_COLUMNS + 2 * j);
    }
}

template <int N>
struct Constant {
  static constexpr int COUNT = N;
};

template <class Function>
SB_INLINE void with_group(int64_t group, Function f) {
  switch (group) {
    case 1: return f(Constant<1>{});
    case 2: return f(Constant<2>{});
    case 4: return f(Constant<4>{});
    case 8: return f(Constant<8>{});
    case 16: return f(Constant<16>{});
    case 32: return f(Constant<32>{});
  }
}

// DOT_ROWS rows of one row panel, T paired panels.
template <int G, int T, int ACTIVATION>
void dot_block(const uint16_t* values, int64_t step, const uint16_t* columns, int64_t count, const uint16_t* x,
               int64_t x_stride, const float* bias, uint16_t* y, int64_t y_stride) {
  Floats sums[DOT_ROWS][T];
  dot_rows<G, T>(values, step, columns, count, x, x_stride, sums);
#pragma GCC unroll 4
  for (int t = 0; t < T; t++)
#pragma GCC unroll 4
    for (int row = 0; row < DOT_ROWS; row += 2)
      finish_line<ACTIVATION>(sums[row][t], sums[row + 1][t], bias + row, y + t * y_stride + row * PAIRED_TOKENS);
}

// All row panels of a weight; see paired_linear.
template <int G, int ACTIVATION>
void row_panels(const sb_weight& w, const Paired& x, const Paired& y, int64_t row, int64_t begin, int64_t end) {
  const int64_t height = w.block_rows, rows = whole_lines(w.out_features), step = height * STEP_COLUMNS;
  const int64_t x_stride = x.features * PAIRED_TOKENS, y_stride = y.features * PAIRED_TOKENS;
  const float* bias = static_cast<const float*>(w.bias);
  for (int64_t first = 0; first < rows; first += height) {
    const int64_t start = w.starts[first / height], count = w.starts[first / height + 1] - start;
    const uint16_t* values = static_cast<const uint16_t*>(w.values) + start * step;
    const uint16_t* columns = static_cast<const uint16_t*>(w.columns) + start * (STEP_COLUMNS / G);
    const int64_t last = first + height < rows ? first + height : rows;
    for (int64_t t = begin; t < end;) {
      const int64_t panels = end - t < DOT_PANELS ? end - t : end - t == 4 ? 2 : DOT_PANELS;
      for (int64_t r = first; r < last; r += DOT_ROWS) {
        const uint16_t* a = values + (r - first) * STEP_COLUMNS;
        const uint16_t* from = x.panel(t);
        uint16_t* to = y.panel(t) + (row + r) * PAIRED_TOKENS;
        if (panels == 3) dot_block<G, 3, ACTIVATION>(a, step, columns, count, from, x_stride, bias + r, to, y_stride);
        else if (panels == 2) dot_block<G, 2, ACTIVATION>(a, step, columns, count, from, x_stride, bias + r, to, y_stride);
        else dot_block<G, 1, ACTIVATION>(a, step, columns, count, from, x_stride, bias + r, to, y_stride);
      }
      t += panels;
    }
  }
}

}  // namespace SB_ISA
