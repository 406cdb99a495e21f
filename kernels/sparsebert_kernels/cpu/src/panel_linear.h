// Linear layers from token panels to token panels.
#pragma once
#include "dense.h"
#include "element.h"
#include "token_panels.h"
#include "tiled_linear.h"
#include "vector.h"
#ifdef SB_FP16_PANELS
#include "panel_block_fp16.h"
#endif

namespace SB_ISA {

// One row block x column block of one token panel of T vectors.
template <int V, int T, bool FIRST>
void vector_panel_block(const sb_weight& w, int64_t index, int64_t features, const float* x, float* y,
                        const float* bias) {
  // V * STEP sums fill half of the registers, as in linear_kernels.h.
  constexpr int MOST = (LANES == 16 ? 32 : 16) / 2 / V, STEP = MOST < T ? MOST : T;
  for (int t = 0; t < T; t += STEP)
    vector_block<WidenedVectors<float>, V, STEP, FIRST, T * LANES>(w, index, divide_up(features, V), x + t * LANES,
                                                                   y + t * LANES, bias);
}

template <int T, bool FIRST>
SB_INLINE void panel_block(const sb_weight& w, int64_t index, int64_t features, const float* x, float* y,
                           const float* bias) {
  if (w.format == SB_ELEMENT) return element_block<Fp32Weights, T, FIRST>(w, index, x, y, bias);
  if (w.format == SB_DENSE) return dense_block<T, FIRST>(w, index, features, x, y, bias);
  switch (w.vector_rows) {
    case 2: return vector_panel_block<2, T, FIRST>(w, index, features, x, y, bias);
    case 4: return vector_panel_block<4, T, FIRST>(w, index, features, x, y, bias);
    case 8: return vector_panel_block<8, T, FIRST>(w, index, features, x, y, bias);
  }
}

template <int ACTIVATION>
SB_INLINE void activate_values(float* values, int64_t count) {
  for (int64_t i = 0; i < count; i += LANES) Simd::store(values + i, activate<ACTIVATION>(Simd::load(values + i)));
}

// values = activation(values) * factors.
template <int ACTIVATION>
Writer<Stored> gate_values(Stored* values, const Stored* factors, int64_t count) {
  Writer<Stored> writer;
  for (int64_t i = 0; i < count; i += LANES)
    writer.store(values + i, activate<ACTIVATION>(load_values(values + i)) * load_values(factors + i));
  return writer;
}

inline Writer<Stored> gate_values(Stored* values, const Stored* factors, int64_t count, int activation) {
  switch (activation) {
    case SB_RELU: return gate_values<SB_RELU>(values, factors, count);
    case SB_GELU: return gate_values<SB_GELU>(values, factors, count);
    case SB_GELU_TANH: return gate_values<SB_GELU_TANH>(values, factors, count);
  }
  return {};
}

inline void activate_values(float* values, int64_t count, int activation) {
  switch (activation) {
    case SB_RELU: return activate_values<SB_RELU>(values, count);
    case SB_GELU: return activate_values<SB_GELU>(values, count);
    case SB_GELU_TANH: return activate_values<SB_GELU_TANH>(values, count);
  }
}

// After the last column block; the sums began with the bias.
inline void finish_rows(const Panels&, float* sums, int64_t features, int64_t width, const float*, int activation) {
  activate_values(sums, features * width, activation);
}

// Kernels compute up to eight rows at a time and may write as many.
constexpr int64_t padded_rows(int64_t rows) { return divide_up(rows, 8) * 8; }

// y = activation(W x + bias) for one row block and the token panels [begin, end). `bias` begins at the first row of W;
// the result begins at row `row` of y.
//
// A sparse weight is small: the result of a token panel stays in cache while the row block passes by. A dense weight is
// large: the token panels share each of its blocks.
inline void linear_row_block(const sb_weight& w, const float* bias, int64_t block, const Panels& x, const Panels& y,
                             int64_t row, int activation, int64_t begin, int64_t end) {
  const int64_t column_blocks = divide_up(w.in_features, w.block_columns), first_row = block * w.block_rows;
  const int64_t features = w.out_features - first_row < w.block_rows ? w.out_features - first_row : w.block_rows;
  const bool dense = w.format == SB_DENSE;
  for (int64_t step = 0; step < (end - begin) * column_blocks; step++) {
    const int64_t tile = begin + (dense ? step % (end - begin) : step / column_blocks);
    const int64_t column_block = dense ? step / (end - begin) : step % column_blocks;
    const int64_t index = block * column_blocks + column_block, width = x.width(tile);
    const Stored* from = x.token_panel(tile) + column_block * w.block_columns * width;
    Stored* to = y.token_panel(tile) + (row + first_row) * width;
    with_panel_vectors(x.layout->vectors(tile), [&](auto vectors) {
      constexpr int T = decltype(vectors)::COUNT;
      if (column_block == 0) panel_block<T, true>(w, index, features, from, to, bias + first_row);
      else panel_block<T, false>(w, index, features, from, to, nullptr);
    });
    if (column_block + 1 == column_blocks) finish_rows(y, to, features, width, bias + first_row, activation);
  }
}

// All row blocks of one weight over the token panels [begin, end).
inline void panel_linear(const sb_weight& w, const Panels& x, const Panels& y, int64_t row, int activation,
                         int64_t begin, int64_t end) {
  for (int64_t block = 0; block < row_blocks(w); block++)
    linear_row_block(w, static_cast<const float*>(w.bias), block, x, y, row, activation, begin, end);
}

}  // namespace SB_ISA
