// Row panels times paired panels: h rows of W share kept columns, in groups of g.
//
// A k-step is 32 kept columns of a row panel in bf16, 64 in int8. Its values are h / 16 tiles of 16 rows x 64 bytes,
// row-major: the left operand of a tile product. Its 16 lines of activations are the right operand. `columns` has the
// number of the first line of each group; with g = 1, of each column.
//
// A unit (dots or tiles) computes row panels; a product (bf16 or int8) says what a step multiplies and how its sums
// become bf16 values.
#pragma once
#include "paired_quads.h"
#include "scratch.h"

namespace SB_ISA {

constexpr int64_t STEP_COLUMNS = 32;  // of bf16
constexpr int64_t TILE_VALUES = 512;  // 16 rows x 32 columns of bf16
constexpr int64_t CHUNK_BYTES = 1 << 20;
constexpr int64_t LINE_BYTES = 64, STEP_LINES = 16, TILE_BYTES = STEP_LINES * LINE_BYTES;

constexpr int64_t whole_lines(int64_t rows) { return (rows + PAIRED_FEATURES - 1) / PAIRED_FEATURES * PAIRED_FEATURES; }

template <int N>
struct Constant {
  static constexpr int VALUE = N;
};

// Activations as a unit reads them: lines of panels that are `stride` bytes apart.
struct Lines {
  const char* data;
  int64_t stride;
  const float* scales;  // int8: of each token

  Lines from(int64_t panel) const {
    return {data + panel * stride, stride, scales ? scales + panel * PAIRED_TOKENS : nullptr};
  }
};

// Rows of paired panels, `stride` values apart.
struct Results {
  uint16_t* data;
  int64_t stride;

  Results from(int64_t panel, int64_t row) const { return {data + panel * stride + row * PAIRED_TOKENS, stride}; }
};

// What the epilogue applies to the rows from one on.
struct Epilogue {
  const float* bias;
  const float* scales;  // int8: of each row
  int activation;

  Epilogue from(int64_t row) const { return {bias + row, scales ? scales + row : nullptr, activation}; }
};

// One row panel: `count` k-steps, `step` bytes apart.
struct RowPanel {
  const char* values;
  const uint16_t* columns;
  int64_t count, step;
};

// Groups have `lines` lines, none where g = 1.
inline RowPanel row_panel(const sb_weight& w, int64_t index, int lines) {
  const int64_t start = w.starts[index], step = w.block_rows * LINE_BYTES, per_step = lines ? STEP_LINES / lines : 32;
  return {static_cast<const char*>(w.values) + start * step, static_cast<const uint16_t*>(w.columns) + start * per_step,
          w.starts[index + 1] - start, step};
}

// Line j of a k-step. With g = 1 any two columns are combined: one load begins at the first column, the other a value
// before the second, and each fills every other place.
template <int L>
SB_INLINE Line kept_line(const char* panel, const uint16_t* columns, int j) {
  if constexpr (L == 0) {
    const int64_t even = columns[2 * j], odd = columns[2 * j + 1];
    const auto* first = reinterpret_cast<const uint16_t*>(panel) + even / 2 * LINE_VALUES + even % 2;
    const auto* second = reinterpret_cast<const uint16_t*>(panel) + odd / 2 * LINE_VALUES + odd % 2;
#if defined(__AVX512BW__)
    const __m512i low = _mm512_maskz_loadu_epi16(0x55555555u, first);
    return reinterpret_cast<Line>(_mm512_mask_loadu_epi16(low, 0xaaaaaaaau, second - 1));
#else
    Line line;
    for (int i = 0; i < 16; i++) line[i] = first[2 * i] | static_cast<uint32_t>(second[2 * i]) << 16;
    return line;
#endif
  } else {
    return load_line(panel + (int64_t{columns[j / L]} + j % L) * LINE_BYTES);
  }
}

// y[row] = activation(rows[row]), as bf16.
template <int ACTIVATION, int ROWS>
SB_INLINE void store_activated(Floats (&rows)[ROWS], uint16_t* y) {
  activate_paired<ACTIVATION>(rows);
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; row += 2) store_line(y + row * PAIRED_TOKENS, pair(rows[row], rows[row + 1]));
}

// bf16 weights and activations.
struct Bf16Product {
  typedef Floats Sums;
  template <int ACTIVATION, int ROWS>
  static SB_INLINE void finish(const Sums (&sums)[ROWS], const Epilogue& epilogue, Floats, uint16_t* y) {
    Floats rows[ROWS];
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) rows[row] = sums[row] + epilogue.bias[row];
    store_activated<ACTIVATION>(rows, y);
  }
};

// int8 weights and activations; `tokens` are the scales of the tokens.
struct Int8Product {
  typedef Ints Sums;
  template <int ACTIVATION, int ROWS>
  static SB_INLINE void finish(const Sums (&sums)[ROWS], const Epilogue& epilogue, Floats tokens, uint16_t* y) {
    Floats rows[ROWS];
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++)
      rows[row] = fused(__builtin_convertvector(sums[row], Floats) * tokens, splat(epilogue.scales[row]),
                        splat(epilogue.bias[row]));
    store_activated<ACTIVATION>(rows, y);
  }
};

// Calls `f` with the activation as a type.
template <class Function>
SB_INLINE void with_activation(int activation, Function f) {
  switch (activation) {
    case SB_RELU: return f(Constant<SB_RELU>{});
    case SB_GELU: return f(Constant<SB_GELU>{});
    case SB_GELU_TANH: return f(Constant<SB_GELU_TANH>{});
    default: return f(Constant<SB_NONE>{});
  }
}

}  // namespace SB_ISA

#if defined(SB_TILES)
#include "row_panel_tiles.h"
#elif defined(__ARM_NEON)
#include "row_panel_neon.h"
#else
#include "row_panel_dots.h"
#endif

namespace SB_ISA {

// Panels whose activations and results stay in L2 together while all weights pass by, in units of those that the unit
// computes at once.
inline int64_t chunk_panels(int64_t features) {
  const int64_t panels = CHUNK_BYTES / (features * PAIRED_TOKENS * 2) / UNIT_PANELS * UNIT_PANELS;
  return panels > UNIT_PANELS ? panels : UNIT_PANELS;
}

template <class Product, int L>
void all_row_panels(const sb_weight& w, const Lines& x, const Results& y, int activation, int64_t panels) {
  const int64_t rows = whole_lines(w.out_features);
  const Epilogue epilogue{static_cast<const float*>(w.bias), w.scales, activation};
  RowPanelUnit<Product, L> unit(w);
  for (int64_t row = 0; row < rows; row += w.block_rows) {
    const int64_t count = rows - row < w.block_rows ? rows - row : w.block_rows;
    const int64_t index = row / w.block_rows;
    const bool last = row + w.block_rows >= rows;
    const RowPanel next = last ? RowPanel{} : row_panel(w, index + 1, L);
    unit.multiply(row_panel(w, index, L), next, count, x, y.from(0, row), epilogue.from(row), panels);
  }
  unit.finish();
}

inline void bf16_row_panels(const sb_weight& w, const Lines& x, const Results& y, int activation, int64_t panels) {
  switch (w.block_columns) {
    case 1: return all_row_panels<Bf16Product, 0>(w, x, y, activation, panels);
    case 2: return all_row_panels<Bf16Product, 1>(w, x, y, activation, panels);
    case 4: return all_row_panels<Bf16Product, 2>(w, x, y, activation, panels);
    case 8: return all_row_panels<Bf16Product, 4>(w, x, y, activation, panels);
    case 16: return all_row_panels<Bf16Product, 8>(w, x, y, activation, panels);
    case 32: return all_row_panels<Bf16Product, 16>(w, x, y, activation, panels);
  }
}

inline void int8_row_panels(const sb_weight& w, const Lines& x, const Results& y, int activation, int64_t panels) {
  switch (w.block_columns) {
    case 4: return all_row_panels<Int8Product, 1>(w, x, y, activation, panels);
    case 8: return all_row_panels<Int8Product, 2>(w, x, y, activation, panels);
    case 16: return all_row_panels<Int8Product, 4>(w, x, y, activation, panels);
    case 32: return all_row_panels<Int8Product, 8>(w, x, y, activation, panels);
    case 64: return all_row_panels<Int8Product, 16>(w, x, y, activation, panels);
  }
}

// Whether paired_linear computes a weight of this value type.
inline bool computes_row_panels(int32_t dtype) { return dtype == SB_BF16 || dtype == SB_INT8; }

// The rows [first, first + rows) of a weight, which begin with a row panel.
inline sb_weight weight_rows(const sb_weight& w, int64_t first, int64_t rows) {
  sb_weight part = w;
  part.out_features = w.out_features - first < rows ? w.out_features - first : rows;
  part.starts += first / w.block_rows;
  part.bias = static_cast<const float*>(w.bias) + first;
  if (w.scales) part.scales += first;
  return part;
}

// y rows [row, row + out_features rounded up to 32) = activation(w @ x + bias), for the paired panels [begin, end).
// Weight rows past out_features are zeros; the bias is fp32 and padded to the same multiple. For an int8 weight the
// activations are rounded to int8 on the way, each token with a scale of its own.
inline void paired_linear(const sb_weight& w, const Paired& x, const Paired& y, int64_t row, int activation,
                          int64_t begin, int64_t end) {
  static thread_local Scratch scratch;
  const bool int8 = w.dtype == SB_INT8;
  const int64_t chunk = chunk_panels(x.features + whole_lines(w.out_features));
  const int64_t size = x.features * PAIRED_TOKENS;  // bytes of a panel of quads
  const UnitScope scope;
  for (int64_t first = begin; first < end; first += chunk) {
    const int64_t panels = end - first < chunk ? end - first : chunk;
    const Results to{y.panel(first) + row * PAIRED_TOKENS, y.features * PAIRED_TOKENS};
    if (!int8) {
      bf16_row_panels(w, {reinterpret_cast<const char*>(x.panel(first)), 2 * size, nullptr}, to, activation, panels);
      continue;
    }
    auto* quads = static_cast<int8_t*>(scratch.get(chunk * (size + sizeof(float) * PAIRED_TOKENS)));
    auto* scales = reinterpret_cast<float*>(quads + chunk * size);
    for (int64_t i = 0; i < panels; i++)
      quantize_panel(x.panel(first + i), x.features, quads + i * size, scales + i * PAIRED_TOKENS);
    int8_row_panels(w, {reinterpret_cast<const char*>(quads), size, scales}, to, activation, panels);
  }
}

}  // namespace SB_ISA
