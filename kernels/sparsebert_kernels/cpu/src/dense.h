// Dense weights times token panels: four rows of W are stored side by side, column by column.
#pragma once
#include "token_panel.h"

namespace SB_ISA {

constexpr int DENSE_ROWS = 4;  // as in the Python class DensePanel

// sums = (FIRST ? bias : out) + W[4 * GROUPS rows, `columns` columns] * T vectors of the token panel. The groups of
// four rows are `group_stride` values apart, rows of both token panels WIDTH tokens.
template <int GROUPS, int T, bool FIRST, int WIDTH>
SB_INLINE void dense_rows(const float* values, int64_t group_stride, int64_t columns, const float* token_panel,
                          float* out, const float* bias) {
  constexpr int ROWS = GROUPS * DENSE_ROWS;
  Simd::F sums[ROWS][T];
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 2
    for (int t = 0; t < T; t++)
      sums[row][t] = FIRST ? Simd::set1(bias[row]) : Simd::load(out + row * WIDTH + t * LANES);
  for (int64_t k = 0; k < columns; k++, values += DENSE_ROWS, token_panel += WIDTH) {
    Simd::F x[T];
#pragma GCC unroll 2
    for (int t = 0; t < T; t++) x[t] = Simd::load(token_panel + t * LANES);
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; row++) {
      const Simd::F weight = Simd::set1(values[row / DENSE_ROWS * group_stride + row % DENSE_ROWS]);
#pragma GCC unroll 2
      for (int t = 0; t < T; t++) sums[row][t] += weight * x[t];
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 2
    for (int t = 0; t < T; t++) Simd::store(out + row * WIDTH + t * LANES, sums[row][t]);
}

// Computes one row block x column block, `features` rows rounded up to a multiple of four. `token_panel` begins at the
// column block, `out` and `bias` at the row block. The first column block of a row block starts its sums from the
// bias, the others continue from `out`.
template <int T, bool FIRST>
void dense_block(const sb_weight& w, int64_t block, int64_t features, const float* token_panel, float* out,
                 const float* bias) {
  constexpr int WIDTH = T * LANES, STEP = T < 2 ? T : 2;
  // Up to 24 sums in 32 registers, or 8 in 16.
  constexpr int GROUPS = LANES == 16 ? 3 : 1;
  const int64_t column_blocks = (w.in_features + w.block_columns - 1) / w.block_columns;
  const int64_t first_row = block / column_blocks * w.block_rows, first = block % column_blocks * w.block_columns;
  const int64_t columns = w.in_features - first < w.block_columns ? w.in_features - first : w.block_columns;
  const int64_t group_stride = w.in_features * DENSE_ROWS, groups = (features + DENSE_ROWS - 1) / DENSE_ROWS;
  const float* values =
      static_cast<const float*>(w.values) + first_row / DENSE_ROWS * group_stride + first * DENSE_ROWS;
  for (int64_t group = 0; group < groups;) {
    const bool full = group + GROUPS <= groups;
    const int64_t row = group * DENSE_ROWS;
    const float* from = values + group * group_stride;
    for (int t = 0; t < T; t += STEP) {
      const float* x = token_panel + t * LANES;
      float* to = out + row * WIDTH + t * LANES;
      if (full) dense_rows<GROUPS, STEP, FIRST, WIDTH>(from, group_stride, columns, x, to, bias + row);
      else dense_rows<1, STEP, FIRST, WIDTH>(from, group_stride, columns, x, to, bias + row);
    }
    group += full ? GROUPS : 1;
  }
}

// y[i] = W x[i] + bias for `count` vectors, with columns of four rows as lanes: as fast for one vector as for many.
// `spread` is x with every value DENSE_ROWS times; y and the bias have whole groups of rows, `stride` values apart.
inline void dense_vectors(const sb_weight& w, int64_t count, const float* spread, float* y, int64_t stride) {
  constexpr int CHAINS = 4;
  const int64_t values = w.in_features * DENSE_ROWS, whole = values / (CHAINS * LANES) * (CHAINS * LANES);
  const auto *from = static_cast<const float*>(w.values), *bias = static_cast<const float*>(w.bias);
  for (int64_t row = 0; row < w.out_features; row += DENSE_ROWS, from += values)
    for (int64_t n = 0; n < count; n++) {
      const float* x = spread + n * values;
      float* to = y + n * stride + row;
      Simd::F sums[CHAINS] = {};
      for (int64_t i = 0; i < whole; i += CHAINS * LANES)
#pragma GCC unroll 4
        for (int chain = 0; chain < CHAINS; chain++)
          sums[chain] += Simd::loadu(from + i + chain * LANES) * Simd::loadu(x + i + chain * LANES);
      alignas(64) float lanes[LANES];
      Simd::store(lanes, (sums[0] + sums[1]) + (sums[2] + sums[3]));
      for (int64_t i = whole; i < values; i++) lanes[i % LANES] += from[i] * x[i];
      for (int r = 0; r < DENSE_ROWS; r++) {
        to[r] = bias[row + r];
        for (int lane = r; lane < LANES; lane += DENSE_ROWS) to[r] += lanes[lane];
      }
    }
}

}  // namespace SB_ISA
