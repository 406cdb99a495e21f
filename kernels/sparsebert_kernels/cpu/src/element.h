// Element-sparse weights times a token panel.
//
// Inside a (row block, column block), the rows are sorted into groups of equal length. A group runs with one trip
// count, and its remainder is a template parameter, which avoids tail loops and branches that depend on the row. A
// row's sums stay in registers. Each kept weight costs one broadcast, and one multiply-add per vector of tokens with
// the activation as memory operand. One 64-bit load reads eight column indices.
#pragma once
#include "token_panel.h"

namespace SB_ISA {

constexpr int log2_of(int value) { return value <= 1 ? 0 : 1 + log2_of(value / 2); }

// Byte J of `columns` times 2^SHIFT, which is the byte offset of that column in a token panel; costs one shift and
// one mask.
template <int SHIFT, int J>
SB_INLINE uint64_t column_offset(uint64_t columns) {
  constexpr uint64_t mask = uint64_t{0xff} << SHIFT;
  if constexpr (8 * J >= SHIFT) return (columns >> (8 * J - SHIFT)) & mask;
  else return (columns << (SHIFT - 8 * J)) & mask;
}

// sums[row] += weight J * token_panel[column J] for J in [0, COLUMNS), over an fp32 token panel.
template <int T, int ROWS, int COLUMNS, int J = 0, class Weights>
SB_INLINE void multiply(Simd::F (&sums)[ROWS][T], const Weights (&weights)[ROWS],
                        const uint64_t (&columns)[ROWS], const char* token_panel) {
  if constexpr (J < COLUMNS) {
    constexpr int VECTOR_BYTES = LANES * 4;
#pragma GCC unroll 4
    for (int row = 0; row < ROWS; row++) {
      const Simd::F weight = Simd::template broadcast<J>(weights[row]);
      const char* x = token_panel + column_offset<log2_of(T * VECTOR_BYTES), J>(columns[row]);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++)
        sums[row][t] += weight * Simd::load(reinterpret_cast<const float*>(x + t * VECTOR_BYTES));
    }
    multiply<T, ROWS, COLUMNS, J + 1>(sums, weights, columns, token_panel);
  }
}

// Multiplies kept weights with a token panel. UNIT is the number of weights per unit of storage; `load` loads at most
// the next eight weights, for products with T vectors each.
struct Fp32Weights {
  typedef float Value;
  typedef float PanelValue;
  static constexpr int UNIT = 1;
  template <int T>
  static SB_INLINE auto load(const float* values) {
    return Simd::weights<T>(values);
  }
  template <int T, int ROWS, int COLUMNS, class Weights>
  static SB_INLINE void multiply(Simd::F (&sums)[ROWS][T], const Weights (&weights)[ROWS],
                                 const uint64_t (&columns)[ROWS], const char* token_panel) {
    SB_ISA::multiply<T, ROWS, COLUMNS>(sums, weights, columns, token_panel);
  }
};

// bf16 pairs, widened to fp32 on use.
struct WidenedWeights {
  typedef uint16_t Value;
  typedef float PanelValue;
  static constexpr int UNIT = 2;
  template <int T>
  static SB_INLINE Simd::Pairs load(const uint16_t* values) {
    return Simd::pairs(values);
  }
  template <int T, int ROWS, int COLUMNS>
  static SB_INLINE void multiply(Simd::F (&sums)[ROWS][T], const Simd::Pairs (&weights)[ROWS],
                                 const uint64_t (&columns)[ROWS], const char* token_panel) {
    SB_ISA::multiply<T, ROWS, COLUMNS>(sums, weights, columns, token_panel);
  }
};

// Multiplies the next COLUMNS (at most eight) kept weights of ROWS rows; the rows are stored `length` weights apart.
template <class Policy, int T, int ROWS, int COLUMNS>
SB_INLINE void chunk(Simd::F (&sums)[ROWS][T], const typename Policy::Value* values, const uint8_t* columns,
                     int64_t length, const char* token_panel) {
  if constexpr (COLUMNS > 0) {
    decltype(Policy::template load<T>(values)) weights[ROWS];
    uint64_t packed[ROWS];
#pragma GCC unroll 4
    for (int row = 0; row < ROWS; row++) {
      weights[row] = Policy::template load<T>(values + row * length);
      memcpy(&packed[row], columns + row * length, 8);
    }
    Policy::template multiply<T, ROWS, COLUMNS>(sums, weights, packed, token_panel);
  }
}

// Requests what lies a page after `count` kept weights, which are read next: the weights of a model do not fit the caches,
// and the processor's own prefetch ends with the page.
template <class Value>
SB_INLINE void prefetch_weights(const Value* values, const uint8_t* columns, int64_t count) {
  constexpr int64_t AHEAD = 4096 / sizeof(Value), LINE = 64 / sizeof(Value);
  for (int64_t i = 0; i < count; i += LINE) __builtin_prefetch(values + AHEAD + i);
  __builtin_prefetch(columns + AHEAD);
}

// out[row] = (FIRST ? bias : out)[row] + sum of weight * token_panel[column], for ROWS rows of `length` weights.
template <class Policy, int T, int ROWS, int REMAINDER, bool FIRST>
SB_INLINE void sum_rows(const typename Policy::Value* values, const uint8_t* columns, int64_t length,
                        const uint16_t* rows, const char* token_panel, float* out, const float* bias) {
  Simd::F sums[ROWS][T];
#pragma GCC unroll 4
  for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++)
      sums[row][t] = FIRST ? Simd::set1(bias[rows[row]]) : Simd::load(out + (rows[row] * T + t) * LANES);
  if constexpr (T > 1) prefetch_weights(values, columns, ROWS * length);
  int64_t done = 0;
  for (; done + 8 <= length; done += 8)
    chunk<Policy, T, ROWS, 8>(sums, values + done, columns + done, length, token_panel);
  chunk<Policy, T, ROWS, REMAINDER>(sums, values + done, columns + done, length, token_panel);
#pragma GCC unroll 4
  for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) Simd::store(out + (rows[row] * T + t) * LANES, sums[row][t]);
}

// Not inlined, so that registers are allocated separately for each remainder.
template <class Policy, int T, int REMAINDER, bool FIRST>
__attribute__((noinline)) void sum_group(const typename Policy::Value* values, const uint8_t* columns,
                                         int64_t length, const uint16_t* rows, int count, const char* token_panel,
                                         float* out, const float* bias) {
  // Two rows at a time where the registers suffice, to overlap their chains of additions.
  constexpr int ROWS = 2 * T <= 8 ? 2 : 1;
  int row = 0;
  for (; row + ROWS <= count; row += ROWS, values += ROWS * length, columns += ROWS * length)
    sum_rows<Policy, T, ROWS, REMAINDER, FIRST>(values, columns, length, rows + row, token_panel, out, bias);
  for (; row < count; row++, values += length, columns += length)
    sum_rows<Policy, T, 1, REMAINDER, FIRST>(values, columns, length, rows + row, token_panel, out, bias);
}

// Computes one (row block, column block); `token_panel`, `out` and `bias` begin at the block. The first column block of
// a row block starts its sums from the bias, the others continue from `out`.
template <class Policy, int T, bool FIRST>
void element_block(const sb_weight& w, int64_t block, const void* token_panel_begin, float* out, const float* bias) {
  const int64_t* bounds = w.blocks + 3 * block;
  const uint16_t* rows = w.rows + bounds[1];
  const auto* values = static_cast<const typename Policy::Value*>(w.values) + bounds[2];
  const uint8_t* columns = static_cast<const uint8_t*>(w.columns) + bounds[2];
  const char* token_panel = static_cast<const char*>(token_panel_begin);
  for (int64_t group = bounds[0]; group < bounds[3]; group++) {
    const int64_t length = int64_t{w.groups[2 * group]} * Policy::UNIT;
    const int count = w.groups[2 * group + 1];
    switch (length % 8) {
#define SB_CASE(R)                                                                                  \
  case R:                                                                                           \
    if constexpr (R % Policy::UNIT == 0)                                                            \
      sum_group<Policy, T, R, FIRST>(values, columns, length, rows, count, token_panel, out, bias); \
    break;
      SB_CASE(0) SB_CASE(1) SB_CASE(2) SB_CASE(3) SB_CASE(4) SB_CASE(5) SB_CASE(6) SB_CASE(7)
#undef SB_CASE
    }
    rows += count;
    values += count * length;
    columns += count * length;
  }
}

}  // namespace SB_ISA
