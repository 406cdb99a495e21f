// The tokens of a batch that its mask keeps, one after the other, and rows of matrices loaded for them.
#pragma once
#include "native.h"
#include "scratch.h"
#include "token_panels.h"

namespace SB_ISA {

struct KeptTokens {
  const int64_t* rows;       // row in x of each token
  const int64_t* positions;  // row of each token in the table of positions; null without one
  const int64_t* starts;     // first token of each sequence, one more than sequences
  int64_t count;
};

inline KeptTokens kept_tokens(const sb_encoder_call& call, Scratch& scratch) {
  const int64_t all = call.sequences * call.length;
  auto* starts = static_cast<int64_t*>(scratch.get(sizeof(int64_t) * (call.sequences + 1 + 2 * all)));
  int64_t *rows = starts + call.sequences + 1, *positions = rows + all, count = 0;
  const bool placed = call.ends && call.ends->words && call.ends->positions;
  for (int64_t s = 0; s < call.sequences; s++) {
    starts[s] = count;
    int64_t words = 0;
    for (int64_t i = s * call.length; i < (s + 1) * call.length; i++) {
      int64_t position = i - s * call.length;
      if (placed && call.ends->padding >= 0)
        position = call.ends->padding + (call.ids[i] == call.ends->padding ? 0 : ++words);
      if (!sb::keeps(call.mask, call.mask_bytes, i)) continue;
      positions[count] = position;
      rows[count++] = i;
    }
  }
  starts[call.sequences] = count;
  return {rows, placed ? positions : nullptr, starts, count};
}

// to[feature][lane] = from(lane)[feature], feature vectors `width` apart; a null row reads as zeros.
template <class Value, class Rows>
SB_INLINE void load_lanes(int64_t features, Value* to, int64_t width, Writer<Value>& writer, Rows add_rows) {
  alignas(64) float square[LANES * LANES];
  Simd::F transposed[LANES];
  for (int64_t k = 0; k < features; k += LANES) {
    const int64_t valid = features - k < LANES ? features - k : LANES;
    for (int j = 0; j < LANES; j++) add_rows(j, k, valid, square + j * LANES);
    Simd::load_transposed(square, LANES, transposed);
    for (int i = 0; i < valid; i++) writer.store(to + (k + i) * width, transposed[i]);
  }
}

// square row = `valid` values of a row from column k on, zero past them.
SB_INLINE void load_row(const float* row, int64_t k, int64_t valid, float* to) {
  if (!row || valid < LANES) memset(to, 0, sizeof(float) * LANES);
  if (row) memcpy(to, row + k, sizeof(float) * valid);
}

// square row += `valid` values of a row from column k on.
SB_INLINE void add_row(const float* row, int64_t k, int64_t valid, float* to) {
  if (valid == LANES) return Simd::store(to, Simd::load(to) + Simd::loadu(row + k));
  for (int64_t i = 0; i < valid; i++) to[i] += row[k + i];
}

}  // namespace SB_ISA
