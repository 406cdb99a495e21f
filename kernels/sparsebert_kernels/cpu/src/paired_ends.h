// What runs before the first layer and after the last on paired panels: embeddings with their LayerNorm, the pooler.
#pragma once
#include "paired_attention.h"
#include "paired_tokens.h"
#include "row_panel.h"

namespace SB_ISA {

enum PairedEnd { PAIRED_PROJECTION, PAIRED_POOLER };

SB_INLINE float sum_lanes(Floats v) {
  float sum = 0;
  for (int i = 0; i < 16; i++) sum += v[i];
  return sum;
}

// x = LayerNorm(x) for one row-major row. Its memory is a multiple of 16 values long, zeros past `features`.
inline void norm_row(float* x, int64_t features, const float* gamma, const float* beta, float epsilon) {
  const int64_t whole = features / 16 * 16, room = (features + 15) / 16 * 16;
  Floats sum{}, squares{};
  for (int64_t i = 0; i < room; i += 16) sum += load_floats(x + i);
  const float mean = sum_lanes(sum) / static_cast<float>(features);
  for (int64_t i = 0; i < whole; i += 16) {
    const Floats difference = load_floats(x + i) - mean;
    squares = fused(difference, difference, squares);
  }
  float square_sum = sum_lanes(squares);
  for (int64_t i = whole; i < features; i++) square_sum += (x[i] - mean) * (x[i] - mean);
  const float rate = 1.0f / __builtin_sqrtf(square_sum / static_cast<float>(features) + epsilon);
  for (int64_t i = 0; i < whole; i += 16) {
    const Floats scale = *reinterpret_cast<const LooseFloats*>(gamma + i) * rate;
    store_floats(x + i, fused(load_floats(x + i) - mean, scale, *reinterpret_cast<const LooseFloats*>(beta + i)));
  }
  for (int64_t i = whole; i < features; i++) x[i] = (x[i] - mean) * rate * gamma[i] + beta[i];
}

SB_INLINE Floats load_values(const float* p) { return *reinterpret_cast<const LooseFloats*>(p); }
SB_INLINE Floats load_values(const uint16_t* p) {
  typedef uint16_t Halves __attribute__((vector_size(32), aligned(2), may_alias));
  return reinterpret_cast<Floats>(__builtin_convertvector(*reinterpret_cast<const Halves*>(p), Line) << 16);
}
SB_INLINE float load_value(const float* p) { return *p; }
SB_INLINE float load_value(const uint16_t* p) { return from_bf16(*p); }

// x += row `index` of a table, or x = that row.
template <class Value>
SB_INLINE void add_row(float* x, const void* table, int64_t index, int64_t features, bool first) {
  const Value* row = static_cast<const Value*>(table) + index * features;
  int64_t i = 0;
  for (; i + 16 <= features; i += 16)
    store_floats(x + i, first ? load_values(row + i) : load_floats(x + i) + load_values(row + i));
  for (; i < features; i++) x[i] = first ? load_value(row + i) : x[i] + load_value(row + i);
}

// The input of the first layer for one paired panel, from the numbers of its tokens.
inline void embed_paired(const sb_encoder_call& call, const PairedTokens& tokens, const Paired& hidden,
                         int64_t panel) {
  static thread_local Scratch scratch;
  const sb_ends& ends = *call.ends;
  const sb_weight& projection = ends.weights[PAIRED_PROJECTION];
  const int64_t width = ends.width, stride = (width + 15) / 16 * 16, features = (width + 63) / 64 * 64;
  auto* sums = static_cast<float*>(scratch.get(PAIRED_TOKENS * (sizeof(float) * stride + sizeof(uint16_t) * features)));
  memset(sums, 0, sizeof(float) * PAIRED_TOKENS * stride);
  for (int i = 0; i < PAIRED_TOKENS; i++) {
    const int64_t token = tokens.rows[panel * PAIRED_TOKENS + i];
    if (token < 0) continue;
    float* sum = sums + i * stride;
    auto add = [&](const void* table, int64_t index, bool first) {
      if (ends.table_dtype == SB_F32) add_row<float>(sum, table, index, width, first);
      else add_row<uint16_t>(sum, table, index, width, first);
    };
    add(ends.words, call.ids[token], true);
    if (ends.types) add(ends.types, call.types ? call.types[token] : 0, false);
    if (ends.positions) add(ends.positions, tokens.positions[panel * PAIRED_TOKENS + i], false);
    if (ends.embedding_gamma) norm_row(sum, width, ends.embedding_gamma, ends.embedding_beta, ends.embedding_epsilon);
  }
  if (projection.out_features == 0) return pair_rows(sums, stride, PAIRED_TOKENS, width, hidden.panel(panel));
  auto* lines = reinterpret_cast<uint16_t*>(sums + PAIRED_TOKENS * stride);
  memset(lines, 0, sizeof(uint16_t) * PAIRED_TOKENS * features);
  pair_rows(sums, stride, PAIRED_TOKENS, width, lines);
  paired_linear(projection, {lines, features, panel}, hidden, 0, SB_NONE, panel, panel + 1);
}

SB_INLINE Floats tanh_paired(Floats x) {
  const Floats magnitude = larger(x, -x), power = exp2_negative(magnitude * splat(-2.88539008f));
  const Floats result = (splat(1.0f) - power) / (splat(1.0f) + power);
  return x < 0.0f ? -result : result;
}

// pooled[sequence] = tanh(pooler(first token)) for sixteen sequences; those without tokens count as zero.
inline void pool_paired(const sb_encoder_call& call, const PairedTokens& tokens, const Paired& hidden, int64_t first) {
  static thread_local Scratch scratch;
  const sb_weight& pooler = call.ends->weights[PAIRED_POOLER];
  const int64_t rows = whole_lines(pooler.out_features), features = hidden.features;
  const int64_t count = call.sequences - first < PAIRED_TOKENS ? call.sequences - first : PAIRED_TOKENS;
  auto* memory = static_cast<uint16_t*>(scratch.get(PAIRED_TOKENS * (2 * (features + rows) + sizeof(float) * rows)));
  memset(memory, 0, sizeof(uint16_t) * PAIRED_TOKENS * features);
  for (int64_t i = 0; i < count; i++) {
    const TokenRange& range = tokens.sequences[first + i];
    if (!range.count()) continue;
    const uint16_t* from = hidden.panel(range.begin / PAIRED_TOKENS) + range.begin % PAIRED_TOKENS * 2;
    for (int64_t f = 0; f < features * PAIRED_TOKENS; f += LINE_VALUES) memcpy(memory + f + 2 * i, from + f, 4);
  }
  const Paired x{memory, features}, y{memory + PAIRED_TOKENS * features, rows};
  paired_linear(pooler, x, y, 0, SB_NONE, 0, 1);
  auto* pooled = reinterpret_cast<float*>(memory + PAIRED_TOKENS * (features + rows));
  unpair_rows(y.data, PAIRED_TOKENS, rows, pooled, rows);
  for (int64_t i = 0; i < count; i++) {
    float* row = pooled + i * rows;
    for (int64_t f = 0; f < rows; f += 16) store_floats(row + f, tanh_paired(load_floats(row + f)));
    memcpy(call.pooled + (first + i) * pooler.out_features, row, sizeof(float) * pooler.out_features);
  }
}

}  // namespace SB_ISA
