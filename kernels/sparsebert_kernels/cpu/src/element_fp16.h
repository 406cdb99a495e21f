// Element-sparse weights in fp16 times a token panel in fp16, with sums in fp16.
//
// AVX512-FP16 multiplies 32 tokens an instruction, twice as many as fp32. A kept weight is stored twice, as a dword, so
// that broadcasting it takes a load and no shuffle. The sums of a row stay in fp16 from the first column block to the
// last; bias and activation are applied in fp32. A sum that leaves the range of fp16 becomes NaN, and the weight's flag
// is set.
#pragma once
#include "element.h"
#include "half.h"
#include "tiled_linear.h"

namespace SB_ISA {

// sums[row] += weight J * token_panel[column J] for the next COLUMNS (at most eight) kept weights of ROWS rows.
template <int WIDTH, int ROWS, int COLUMNS, int J = 0>
SB_INLINE void multiply_halves(Halves<WIDTH> (&sums)[ROWS], const uint32_t* const (&values)[ROWS],
                               const uint64_t (&columns)[ROWS], const char* token_panel) {
  if constexpr (J < COLUMNS) {
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) {
      const char* x = token_panel + column_offset<log2_of(WIDTH * 2), J>(columns[row]);
      sums[row].add_product(values[row][J], reinterpret_cast<const Half*>(x));
    }
    multiply_halves<WIDTH, ROWS, COLUMNS, J + 1>(sums, values, columns, token_panel);
  }
}

template <int WIDTH, int ROWS, int COLUMNS>
SB_INLINE void chunk_of_halves(Halves<WIDTH> (&sums)[ROWS], const uint32_t* values, const uint8_t* columns,
                               int64_t length, const char* token_panel) {
  if constexpr (COLUMNS > 0) {
    uint64_t packed[ROWS];
    const uint32_t* begins[ROWS];
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) {
      memcpy(&packed[row], columns + row * length, 8);
      begins[row] = values + row * length;
      asm("" : "+r"(begins[row]));  // keeps the address; computed again for each weight, its parts would not fit
    }
    multiply_halves<WIDTH, ROWS, COLUMNS>(sums, begins, packed, token_panel);
  }
}

template <int WIDTH, int ROWS, int REMAINDER, bool FIRST>
SB_INLINE void sum_rows_of_halves(const uint32_t* values, const uint8_t* columns, int64_t length, const uint16_t* rows,
                                  const char* token_panel, Half* out) {
  Halves<WIDTH> sums[ROWS];
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; row++)
    sums[row] = FIRST ? Halves<WIDTH>::zero() : Halves<WIDTH>::load(out + rows[row] * WIDTH);
  prefetch_weights(values, columns, ROWS * length);
  int64_t done = 0;
  for (; done + 8 <= length; done += 8)
    chunk_of_halves<WIDTH, ROWS, 8>(sums, values + done, columns + done, length, token_panel);
  chunk_of_halves<WIDTH, ROWS, REMAINDER>(sums, values + done, columns + done, length, token_panel);
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; row++) sums[row].store(out + rows[row] * WIDTH);
}

// Not inlined, so that registers are allocated separately for each remainder.
template <int WIDTH, int REMAINDER, bool FIRST>
__attribute__((noinline)) void sum_group_of_halves(const uint32_t* values, const uint8_t* columns, int64_t length,
                                                   const uint16_t* rows, int count, const char* token_panel,
                                                   Half* out) {
  // Eight registers of sums, whose chains of additions overlap.
  constexpr int ROWS = WIDTH >= 64 ? 4 : 8;
  int row = 0;
  for (; row + ROWS <= count; row += ROWS, values += ROWS * length, columns += ROWS * length)
    sum_rows_of_halves<WIDTH, ROWS, REMAINDER, FIRST>(values, columns, length, rows + row, token_panel, out);
  for (; row < count; row++, values += length, columns += length)
    sum_rows_of_halves<WIDTH, 1, REMAINDER, FIRST>(values, columns, length, rows + row, token_panel, out);
}

// The products of one (row block, column block): out[row][token], which the first column block begins.
template <int WIDTH, bool FIRST>
void element_block_of_halves(const sb_weight& w, int64_t block, const Half* token_panel_begin, Half* out) {
  const int64_t* bounds = w.blocks + 3 * block;
  const uint16_t* rows = w.rows + bounds[1];
  const uint32_t* values = static_cast<const uint32_t*>(w.values) + bounds[2];
  const uint8_t* columns = static_cast<const uint8_t*>(w.columns) + bounds[2];
  const char* token_panel = reinterpret_cast<const char*>(token_panel_begin);
  for (int64_t group = bounds[0]; group < bounds[3]; group++) {
    const int64_t length = w.groups[2 * group];
    const int count = w.groups[2 * group + 1];
    switch (length % 8) {
#define SB_CASE(R)                                                                                      \
  case R:                                                                                               \
    sum_group_of_halves<WIDTH, R, FIRST>(values, columns, length, rows, count, token_panel, out);       \
    break;
      SB_CASE(0) SB_CASE(1) SB_CASE(2) SB_CASE(3) SB_CASE(4) SB_CASE(5) SB_CASE(6) SB_CASE(7)
#undef SB_CASE
    }
    rows += count;
    values += count * length;
    columns += count * length;
  }
}

// out[n][token] = bias[n] + sums[n][token] in fp32. Returns whether a sum is infinite or NaN; it becomes NaN, which
// every activation keeps.
template <int T>
bool widen_sums(const Half* sums, int64_t features, const float* bias, float* out) {
  constexpr int WIDTH = T * LANES;
  Simd::F lost{};
  for (int64_t n = 0; n < features; n++)
    for (int t = 0; t < WIDTH; t += LANES) {
      Simd::F sum = load_halves(sums + n * WIDTH + t);
      sum = sum + (sum - sum);  // x - x is 0, or NaN for infinite x
      lost = lost + (sum - sum);
      Simd::store(out + n * WIDTH + t, sum + Simd::set1(bias[n]));
    }
  const float total = Simd::sum(lost);
  return total != total;
}

// A family of tiled_linear.h.
struct ElementFp16 {
  typedef Half PanelValue;
  // 128 bytes per column, so that a column block of 256 fits the L1 cache.
  static constexpr int MAX_VECTORS = 64 / LANES;

  template <int T, class X>
  static void load(const X* x, int64_t stride, int64_t tokens, int64_t begin, int64_t end, Half* token_panel) {
    constexpr int WIDTH = T * LANES;
    for (int group = 0; group < WIDTH; group += LANES) {
      const int valid = tokens - group < LANES ? static_cast<int>(tokens > group ? tokens - group : 0) : LANES;
      const X* rows = x + group * stride;
      Simd::F square[LANES];
      for (int64_t k = begin; k < end; k += LANES) {
        const int columns = end - k < LANES ? static_cast<int>(end - k) : LANES;
        load_square(rows + k, stride, valid, columns, square);
        for (int i = 0; i < columns; i++) store_halves(token_panel + (k - begin + i) * WIDTH + group, square[i]);
      }
    }
  }

  template <int T, bool FIRST>
  static void block(const sb_weight& w, int64_t block, int64_t features, const Half* token_panel, float* out,
                    const float* bias) {
    constexpr int WIDTH = T * LANES;
    const int64_t column_blocks = divide_up(w.in_features, w.block_columns);
    RowBlock& row_block = this_row_block();
    Half* sums = static_cast<Half*>(row_block.sums.get(sizeof(Half) * w.block_rows * WIDTH));
    if (FIRST) row_block.bias = bias;
    element_block_of_halves<WIDTH, FIRST>(w, block, token_panel, sums);
    if (block % column_blocks + 1 < column_blocks) return;
    if (widen_sums<T>(sums, features, row_block.bias, out))
      __atomic_store_n(const_cast<int32_t*>(w.starts), 1, __ATOMIC_RELAXED);
  }

 private:
  // What the column blocks of a row block, which a thread computes one after another, share.
  struct RowBlock {
    Scratch sums;
    const float* bias = nullptr;  // of the first column block; the others get none
  };
  static RowBlock& this_row_block() {
    static thread_local RowBlock row_block;
    return row_block;
  }
  // square[i][j] = x[j * stride + i] for i < columns and j < rows; 0 for the other j.
  static SB_INLINE void load_square(const float* x, int64_t stride, int rows, int columns, Simd::F (&square)[LANES]) {
    if (rows == LANES && columns == LANES) Simd::load_transposed(x, stride, square);
    else load_padded(x, stride, rows, columns, square);
  }
  static SB_INLINE void load_square(const uint16_t* x, int64_t stride, int rows, int columns,
                                    Simd::F (&square)[LANES]) {
    if (rows == LANES && columns == LANES) Simd::load_transposed(x, stride, square);
    else load_padded(x, stride, rows, columns, square);
  }
  static SB_INLINE void load_square(const Half* x, int64_t stride, int rows, int columns, Simd::F (&square)[LANES]) {
    if (rows < LANES || columns < LANES) return load_padded(x, stride, rows, columns, square);
    alignas(64) float wide[LANES * LANES];
    for (int j = 0; j < LANES; j++) Simd::store(wide + j * LANES, load_halves(x + j * stride));
    Simd::load_transposed(wide, LANES, square);
  }
  template <class X>
  static void load_padded(const X* x, int64_t stride, int rows, int columns, Simd::F (&square)[LANES]) {
    alignas(64) float wide[LANES * LANES] = {};
    for (int j = 0; j < rows; j++)
      for (int i = 0; i < columns; i++) wide[j * LANES + i] = to_float(x[j * stride + i]);
    Simd::load_transposed(wide, LANES, square);
  }
};

// Called by tiled_linear.h for y in fp16.
template <int T>
void store_token_panel(const float* token_panel, int64_t tokens, int64_t features, int activation, Half* y,
                       int64_t stride) {
  static thread_local Scratch scratch;
  const int64_t width = divide_up(features, LANES) * LANES;
  float* rows = static_cast<float*>(scratch.get(sizeof(float) * width * T * LANES));
  store_token_panel<T>(token_panel, tokens, features, activation, rows, width);
  for (int64_t m = 0; m < tokens; m++) {
    int64_t n = 0;
    for (; n + LANES <= features; n += LANES) store_halves(y + m * stride + n, Simd::load(rows + m * width + n));
    for (; n < features; n++) y[m * stride + n] = to_half(rows[m * width + n]);
  }
}

}  // namespace SB_ISA
