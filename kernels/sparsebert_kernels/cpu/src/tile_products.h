// Products of dense tiles of 16 rows x 32 columns with lines of a paired panel.
#pragma once
#include "row_panel.h"

namespace SB_ISA {

// Tiles of 16 x 32 values: those of one k-step `row_stride` values apart, those of one row tile `step_stride`.
struct DenseTiles {
  const uint16_t* values;
  int64_t row_stride, step_stride;
};

#if defined(SB_TILES)

template <int I, int N>
SB_INLINE void each_row_tile(const uint16_t* values, int64_t stride) {
  if constexpr (I < N) {
    tile_load<4 + I % 2>(values + I * stride);
    tile_product_bf16<I, 4 + I % 2, 6>();
    each_row_tile<I + 1, N>(values, stride);
  }
}

template <int I, int N>
SB_INLINE void zero_tiles() {
  if constexpr (I < N) tile_zero<I>(), zero_tiles<I + 1, N>();
}

template <int I, int N>
SB_INLINE void store_tiles(float* sums) {
  if constexpr (I < N) tile_store<I>(sums + I * 16 * PAIRED_TOKENS), store_tiles<I + 1, N>(sums);
}

// N row tiles, which share the lines.
template <int N>
SB_INLINE void row_tiles(const DenseTiles& tiles, const uint16_t* lines, int64_t steps, float* sums) {
  zero_tiles<0, N>();
  for (int64_t step = 0; step < steps; step++) {
    tile_load<6>(lines + step * TILE_VALUES);
    each_row_tile<0, N>(tiles.values + step * tiles.step_stride, tiles.row_stride);
  }
  store_tiles<0, N>(sums);
}

#elif defined(__ARM_NEON)

template <int N>
SB_INLINE void row_tiles(const DenseTiles& tiles, const uint16_t* lines, int64_t steps, float* sums) {
  for (int row = 0; row < 16 * N; row += DOT_ROWS) {
    float32x4_t block[DOT_ROWS][VECTORS];
    for (auto& each : block)
      for (float32x4_t& vector : each) vector = vdupq_n_f32(0.0f);
    const uint16_t *a = tiles.values + row / 16 * tiles.row_stride + row % 16 * LINE_VALUES, *b = lines;
    for (int64_t step = 0; step < steps; step++, a += tiles.step_stride, b += TILE_VALUES)
      for (int j = 0; j < 16; j += VECTOR_LINES)
        dot_lines(block, reinterpret_cast<const char*>(a + 2 * j), LINE_BYTES,
                  [&](int line) { return reinterpret_cast<const char*>(b + (j + line) * LINE_VALUES); });
    memcpy(sums + row * PAIRED_TOKENS, block, sizeof(block));
  }
}

#else

template <int N>
SB_INLINE void row_tiles(const DenseTiles& tiles, const uint16_t* lines, int64_t steps, float* sums) {
  for (int tile = 0; tile < N; tile++, sums += 16 * PAIRED_TOKENS) {
    Floats rows[16] = {};
    const uint16_t *a = tiles.values + tile * tiles.row_stride, *b = lines;
    for (int64_t step = 0; step < steps; step++, a += tiles.step_stride, b += TILE_VALUES)
      for (int j = 0; j < 16; j++) {
        const Line line = load_line(b + j * LINE_VALUES);
#pragma GCC unroll 16
        for (int row = 0; row < 16; row++) rows[row] = dot(rows[row], line, a + row * LINE_VALUES + 2 * j);
      }
#pragma GCC unroll 16
    for (int row = 0; row < 16; row++) store_floats(sums + row * PAIRED_TOKENS, rows[row]);
  }
}

#endif

// sums[row][token] = the product of `count` row tiles of `steps` tiles each with as many k-steps of 16 lines.
inline void tile_products(DenseTiles tiles, int64_t count, const uint16_t* lines, int64_t steps, float* sums) {
  for (; count >= 4; count -= 4, tiles.values += 4 * tiles.row_stride, sums += 64 * PAIRED_TOKENS)
    row_tiles<4>(tiles, lines, steps, sums);
  for (; count > 0; count--, tiles.values += tiles.row_stride, sums += 16 * PAIRED_TOKENS)
    row_tiles<1>(tiles, lines, steps, sums);
}

}  // namespace SB_ISA
