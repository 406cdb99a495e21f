// Products of dense tiles of 16 rows x 32 columns with lines of a paired panel.
#pragma once
#include "row_panel.h"

namespace SB_ISA {

// sums[tile][row][token] = the product of `steps` tiles, `step_stride` values apart, with as many k-steps of 16 lines.
// Tiles of other rows are `tile_stride` values apart.
inline void tile_products(const uint16_t* values, int64_t tile_stride, int64_t step_stride, int64_t tiles,
                          const uint16_t* lines, int64_t steps, float* sums) {
  for (int64_t tile = 0; tile < tiles; tile++, values += tile_stride, sums += 16 * PAIRED_TOKENS) {
    Floats rows[16] = {};
    const uint16_t *a = values, *b = lines;
    for (int64_t step = 0; step < steps; step++, a += step_stride, b += TILE_VALUES)
      for (int j = 0; j < 16; j++) {
        const Line line = load_line(b + j * LINE_VALUES);
#pragma GCC unroll 16
        for (int row = 0; row < 16; row++) rows[row] = dot(rows[row], line, a + row * STEP_COLUMNS + 2 * j);
      }
#pragma GCC unroll 16
    for (int row = 0; row < 16; row++) store_floats(sums + row * PAIRED_TOKENS, rows[row]);
  }
}

}  // namespace SB_ISA
