// Row panels through dot products of NEON: two bf16 or four int8 weights of a row, taken from a vector of 16 bytes, times
// a line in four vectors.
#pragma once
#include <arm_neon.h>

namespace SB_ISA {

constexpr int DOT_ROWS = 4;         // rows that are computed together
constexpr int64_t UNIT_PANELS = 1;  // paired panels that are
constexpr int VECTORS = 4;          // of a line
constexpr int VECTOR_LINES = 4;     // whose weights fill a vector

struct UnitScope {
  UnitScope() {}  // dot products need no set-up
};

template <int LANE>
SB_INLINE float32x4_t dot_lane(float32x4_t sum, const char* line, uint8x16_t weights) {
  const auto x = vreinterpretq_bf16_u8(vld1q_u8(reinterpret_cast<const uint8_t*>(line)));
  return vbfdotq_laneq_f32(sum, x, vreinterpretq_bf16_u8(weights), LANE);
}

template <int LANE>
SB_INLINE int32x4_t dot_lane(int32x4_t sum, const char* line, uint8x16_t weights) {
  const auto x = vreinterpretq_s8_u8(vld1q_u8(reinterpret_cast<const uint8_t*>(line)));
  return vdotq_laneq_s32(sum, x, vreinterpretq_s8_u8(weights), LANE);
}

SB_INLINE float32x4_t zeros(const Floats*) { return vdupq_n_f32(0.0f); }
SB_INLINE int32x4_t zeros(const Ints*) { return vdupq_n_s32(0); }

// sums[row] += the product of DOT_ROWS rows, `row_stride` bytes apart, with the line for LANE of their weights.
template <int LANE, class Vector>
SB_INLINE void dot_rows(Vector (&sums)[DOT_ROWS][VECTORS], const uint8x16_t (&weights)[DOT_ROWS], const char* line) {
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; v++)
#pragma GCC unroll 4
    for (int i = 0; i < DOT_ROWS; i++) sums[i][v] = dot_lane<LANE>(sums[i][v], line + 16 * v, weights[i]);
}

// The same for the VECTOR_LINES lines that `line` gives.
template <class Vector, class Lines>
SB_INLINE void dot_lines(Vector (&sums)[DOT_ROWS][VECTORS], const char* values, int64_t row_stride, Lines line) {
  uint8x16_t weights[DOT_ROWS];
#pragma GCC unroll 4
  for (int i = 0; i < DOT_ROWS; i++)
    weights[i] = vld1q_u8(reinterpret_cast<const uint8_t*>(values + i * row_stride));
  dot_rows<0>(sums, weights, line(0));
  dot_rows<1>(sums, weights, line(1));
  dot_rows<2>(sums, weights, line(2));
  dot_rows<3>(sums, weights, line(3));
}

template <class Sums, class Vector>
SB_INLINE Sums whole(const Vector (&vectors)[VECTORS]) {
  Sums sum;
  memcpy(&sum, vectors, sizeof(sum));
  return sum;
}

template <class Product, int L>
class RowPanelUnit {
 public:
  explicit RowPanelUnit(const sb_weight&) {}

  // The first `rows` rows of a row panel times all panels of x.
  void multiply(const RowPanel& w, const RowPanel&, int64_t rows, const Lines& x, const Results& y,
                const Epilogue& epilogue, int64_t panels) {
    for (int64_t t = 0; t < panels; t++)
      for (int64_t row = 0; row < rows; row += DOT_ROWS)
        block(w, row, x.from(t), y.from(t, row), epilogue.from(row));
  }

  void finish() {}

 private:
  typedef typename Product::Sums Sums;
  typedef decltype(zeros(static_cast<const Sums*>(nullptr))) Vector;

  static void block(const RowPanel& w, int64_t row, const Lines& x, const Results& y, const Epilogue& epilogue) {
    Vector sums[DOT_ROWS][VECTORS];
    for (auto& each : sums)
      for (Vector& vector : each) vector = zeros(static_cast<const Sums*>(nullptr));
    const char *values = w.values + row * LINE_BYTES, *const end = values + w.count * w.step;
    for (const uint16_t* columns = w.columns; values != end; values += w.step, columns += L ? STEP_LINES / L : 32)
      for (int j = 0; j < STEP_LINES; j += VECTOR_LINES) {
        alignas(64) Line gathered[VECTOR_LINES];
        dot_lines(sums, values + 4 * j, LINE_BYTES, [&](int line) {
          if constexpr (L > 0) return x.data + (int64_t{columns[(j + line) / L]} + (j + line) % L) * LINE_BYTES;
          gathered[line] = kept_line<L>(x.data, columns, j + line);
          return reinterpret_cast<const char*>(gathered + line);
        });
      }
    with_activation(epilogue.activation, [&](auto activation) {
      const Floats tokens = x.scales ? load_floats(x.scales) : Floats{};
      for (int i = 0; i < DOT_ROWS; i += 2)
        Product::template finish<decltype(activation)::VALUE, 2>({whole<Sums>(sums[i]), whole<Sums>(sums[i + 1])},
                                                                 epilogue.from(i), tokens, y.from(0, i).data);
    });
  }
};

}  // namespace SB_ISA
