// Row panels through dot products of AVX-512: two or four weights of a row, broadcast, times a line.
#pragma once

namespace SB_ISA {

constexpr int DOT_ROWS = 8;         // rows that are computed together
constexpr int64_t UNIT_PANELS = 3;  // paired panels that are

struct UnitScope {
  UnitScope() {}  // dot products need no set-up
};

SB_INLINE Floats dot(Floats sum, Line line, const uint16_t* pair) {
  uint32_t both;
  memcpy(&both, pair, 4);
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(line), reinterpret_cast<__m512bh>(Line{} + both));
}

SB_INLINE Line as_operand(const Bf16Product*, Line line) { return line; }
SB_INLINE Floats dot(Floats sum, Line line, const char* values) {
  return dot(sum, line, reinterpret_cast<const uint16_t*>(values));
}

// vpdpbusd multiplies unsigned with signed bytes: 128 is added to the activations by flipping their sign bits, and
// 128 times the sum of a row's weights is subtracted, where the sums start.
SB_INLINE Line as_operand(const Int8Product*, Line line) { return line ^ 0x80808080u; }
SB_INLINE Ints dot(Ints sum, Line line, const char* values) {
  uint32_t four;
  memcpy(&four, values, 4);
  return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(line),
                                                    reinterpret_cast<__m512i>(Line{} + four)));
}

SB_INLINE void initial_sums(const Bf16Product*, const RowPanel&, int64_t rows, Floats* sums) {
  for (int64_t row = 0; row < rows; row++) sums[row] = Floats{};
}
inline void initial_sums(const Int8Product*, const RowPanel& w, int64_t rows, Ints* sums) {
  const __m512i offsets = _mm512_set1_epi8(static_cast<char>(128));
  for (int64_t row = 0; row < rows; row++) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t k = 0; k < w.count; k++)
      sum = _mm512_dpbusd_epi32(sum, offsets, _mm512_loadu_si512(w.values + k * w.step + row * LINE_BYTES));
    sums[row] = Ints{} - _mm512_reduce_add_epi32(sum);
  }
}

// DOT_ROWS rows of a row panel times T panels. `row` is the first of the rows.
template <class Product, int L, int T>
void dot_block(const RowPanel& w, int64_t row, const typename Product::Sums* initial, const Lines& x, const Results& y,
               const Epilogue& epilogue) {
  constexpr auto* PRODUCT = static_cast<const Product*>(nullptr);
  typename Product::Sums sums[DOT_ROWS][T];
#pragma GCC unroll 8
  for (int i = 0; i < DOT_ROWS; i++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) sums[i][t] = initial[row + i];
  const char *values = w.values + row * LINE_BYTES, *const end = values + w.count * w.step;
  for (const uint16_t* columns = w.columns; values != end; values += w.step, columns += L ? STEP_LINES / L : 32)
    for (int j = 0; j < STEP_LINES; j++) {
      Line lines[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) lines[t] = as_operand(PRODUCT, kept_line<L>(x.data + t * x.stride, columns, j));
#pragma GCC unroll 8
      for (int i = 0; i < DOT_ROWS; i++)
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) sums[i][t] = dot(sums[i][t], lines[t], values + i * LINE_BYTES + 4 * j);
    }
  with_activation(epilogue.activation, [&](auto activation) {
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      const Floats tokens = x.scales ? load_floats(x.scales + t * PAIRED_TOKENS) : Floats{};
#pragma GCC unroll 4
      for (int i = 0; i < DOT_ROWS; i += 2)
        Product::template finish<decltype(activation)::VALUE, 2>({sums[i][t], sums[i + 1][t]}, epilogue.from(row + i),
                                                                 tokens, y.from(t, row + i).data);
    }
  });
}

template <class Product, int L>
class RowPanelUnit {
 public:
  explicit RowPanelUnit(const sb_weight&) {}

  // The first `rows` rows of a row panel times all panels of x.
  void multiply(const RowPanel& w, const RowPanel&, int64_t rows, const Lines& x, const Results& y,
                const Epilogue& epilogue, int64_t panels) {
    typename Product::Sums initial[64];
    initial_sums(static_cast<const Product*>(nullptr), w, rows, initial);
    for (int64_t t = 0; t < panels;) {
      // Four panels in twos: a single one loads as many weights.
      const int64_t left = panels - t, together = left == 4 ? 2 : left < UNIT_PANELS ? left : UNIT_PANELS;
      const Lines from = x.from(t);
      const Results to = y.from(t, 0);
      for (int64_t row = 0; row < rows; row += DOT_ROWS) {
        if (together == 3) dot_block<Product, L, 3>(w, row, initial, from, to, epilogue);
        else if (together == 2) dot_block<Product, L, 2>(w, row, initial, from, to, epilogue);
        else dot_block<Product, L, 1>(w, row, initial, from, to, epilogue);
      }
      t += together;
    }
  }

  void finish() {}
};

}  // namespace SB_ISA
