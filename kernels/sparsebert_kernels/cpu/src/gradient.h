// Gradient of the kept values: one dot product over tokens per value.
#pragma once
#include "tiled_linear.h"

namespace SB_ISA {

// 128 tokens per token panel, so that the horizontal sum at the end of a dot product costs little.
constexpr int GRADIENT_VECTORS = 128 / LANES;

SB_INLINE float dot(const float* a, const float* b) {
  constexpr int CHAINS = 4;
  Simd::F sums[CHAINS] = {};
  for (int t = 0; t < GRADIENT_VECTORS; t += CHAINS)
#pragma GCC unroll 4
    for (int i = 0; i < CHAINS; i++)
      sums[i] += Simd::load(a + (t + i) * LANES) * Simd::load(b + (t + i) * LANES);
  return Simd::sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

inline void element_gradient(const sb_weight& w, int64_t block, const float* dy, const float* x, float* dvalues) {
  constexpr int WIDTH = GRADIENT_VECTORS * LANES;
  const int unit = w.dtype == SB_F32 ? 1 : 2;
  const int64_t column_blocks = divide_up(w.in_features, w.block_columns);
  const int64_t* bounds = w.blocks + 3 * block;
  const uint16_t* rows = w.rows + bounds[1];
  const uint8_t* columns = static_cast<const uint8_t*>(w.columns) + bounds[2];
  const float* token_panel = x + block % column_blocks * w.block_columns * WIDTH;
  dvalues += bounds[2];
  for (int64_t group = bounds[0]; group < bounds[3]; group++) {
    const int length = w.groups[2 * group] * unit;
    for (int i = 0; i < w.groups[2 * group + 1]; i++, rows++, columns += length, dvalues += length) {
      const float* from = dy + (block / column_blocks * w.block_rows + *rows) * WIDTH;
      for (int j = 0; j < length; j++) {
        // The padding of an odd pair repeats a column. It stands for no weight and gets no gradient.
        if (j > 0 && columns[j] == columns[j - 1]) continue;
        dvalues[j] += dot(from, token_panel + columns[j] * WIDTH);
      }
    }
  }
}

inline void vector_gradient(const sb_weight& w, int64_t block, const float* dy, const float* x, float* dvalues) {
  constexpr int WIDTH = GRADIENT_VECTORS * LANES;
  const int unit = w.dtype == SB_F32 ? 1 : 2, height = w.vector_rows, vector_rows = w.block_rows / height;
  const int64_t column_blocks = divide_up(w.in_features, w.block_columns);
  const int32_t* starts = w.starts + block * vector_rows;
  const uint16_t* columns = static_cast<const uint16_t*>(w.columns);
  const float* token_panel = x + block % column_blocks * w.block_columns * WIDTH;
  for (int r = 0; r < vector_rows; r++) {
    const int64_t first_row = block / column_blocks * w.block_rows + r * height;
    for (int64_t i = int64_t{starts[r]} * unit; i < int64_t{starts[r + 1]} * unit; i++) {
      if (i % unit == 1 && columns[i] == columns[i - 1]) continue;
      for (int v = 0; v < height && first_row + v < w.out_features; v++)
        dvalues[(i / unit * height + v) * unit + i % unit] +=
            dot(dy + (first_row + v) * WIDTH, token_panel + int64_t{columns[i]} * WIDTH);
    }
  }
}

template <class X>
void values_gradient(const sb::GradientCall& call) {
  static thread_local Scratch scratch;
  const sb_weight& w = *call.weight;
  constexpr int WIDTH = GRADIENT_VECTORS * LANES;
  const int64_t N = w.out_features, K = w.in_features;
  float* dy = static_cast<float*>(scratch.get(size_t{4} * (N + K) * WIDTH));
  float* x = dy + N * WIDTH;
  const int64_t blocks = row_blocks(w) * divide_up(K, w.block_columns);
  constexpr int64_t SLICE = 64;  // features per task while token panels are filled
  const int64_t dy_slices = divide_up(N, SLICE), slices = dy_slices + divide_up(K, SLICE);
  for (int64_t begin = 0; begin < call.tokens; begin += WIDTH) {
    const int64_t tokens = call.tokens - begin < WIDTH ? call.tokens - begin : WIDTH;
#pragma omp parallel num_threads(call.threads) if (call.threads > 1)
    {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < slices; i++) {
        const bool from_dy = i < dy_slices;
        const int64_t features = from_dy ? N : K, first = (from_dy ? i : i - dy_slices) * SLICE;
        const int64_t last = first + SLICE < features ? first + SLICE : features;
        const X* source = static_cast<const X*>(from_dy ? call.dy : call.x) + begin * features;
        load_token_panel<GRADIENT_VECTORS>(source, features, tokens, first, last, (from_dy ? dy : x) + first * WIDTH);
      }
#pragma omp for schedule(dynamic, 1)
      for (int64_t block = 0; block < blocks; block++) {
        if (w.format == SB_ELEMENT) element_gradient(w, block, dy, x, call.dvalues);
        else vector_gradient(w, block, dy, x, call.dvalues);
      }
    }
  }
}

}  // namespace SB_ISA
