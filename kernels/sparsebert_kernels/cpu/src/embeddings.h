// What runs before the first layer and after the last: embeddings with their LayerNorm, and the pooler.
#pragma once
#include "layer_norm.h"
#include "packed_tokens.h"
#include "panel_linear.h"

namespace SB_ISA {

enum End { PROJECTION, POOLER };

// token panel[feature][token] = word + type + position of the token; tokens past the last are zero.
inline void sum_embeddings(const sb_encoder_call& call, const KeptTokens& tokens, const Panels& to, int64_t tile) {
  const sb_ends& ends = *call.ends;
  const int64_t panel_width = to.width(tile), width = ends.width;
  auto row_of = [&](const void* table, int64_t index) { return static_cast<const float*>(table) + index * width; };
  Writer<Stored> writer;
  for (int64_t column = 0; column < panel_width; column += LANES) {
    const float *words[LANES], *types[LANES], *positions[LANES];
    for (int j = 0; j < LANES; j++) {
      const int64_t token = tile * PANEL_TOKENS + column + j;
      words[j] = types[j] = positions[j] = nullptr;
      if (token >= tokens.count) continue;
      const int64_t row = tokens.rows[token];
      words[j] = row_of(ends.words, call.ids[row]);
      if (ends.types) types[j] = row_of(ends.types, call.types ? call.types[row] : 0);
      if (ends.positions) positions[j] = row_of(ends.positions, tokens.positions[token]);
    }
    Stored* lanes = to.token_panel(tile) + column;
    load_lanes(width, lanes, panel_width, writer, [&](int j, int64_t k, int64_t valid, float* square) {
      load_row(words[j], k, valid, square);
      if (types[j]) add_row(types[j], k, valid, square);
      if (positions[j]) add_row(positions[j], k, valid, square);
    });
  }
  to.note(writer);
}

// The input of the first layer, for the token panels [begin, end).
inline void embed(const sb_encoder_call& call, const KeptTokens& tokens, const Panels& hidden, int64_t begin,
                  int64_t end) {
  static thread_local Scratch scratch;
  const sb_ends& ends = *call.ends;
  const bool projected = ends.weights[PROJECTION].out_features > 0;
  Panels sums = hidden;
  if (projected) {
    const size_t values = static_cast<size_t>((end - begin) * PANEL_TOKENS * ends.width);
    sums = {hidden.layout, static_cast<Stored*>(scratch.get(sizeof(Stored) * values)), ends.width, begin};
  }
  for (int64_t tile = begin; tile < end; tile++) sum_embeddings(call, tokens, sums, tile);
  if (ends.embedding_gamma)
    layer_norm(sums, sums, ends.width, {ends.embedding_gamma, ends.embedding_beta, ends.embedding_epsilon}, begin,
               end);
  if (projected) panel_linear(ends.weights[PROJECTION], sums, hidden, 0, SB_NONE, begin, end);
}

// pooled[sequence] = tanh(pooler(first token)) for a dense pooler and `count` sequences from `first` on.
inline void pool_densely(const sb_encoder_call& call, const KeptTokens& tokens, const Panels& hidden, int64_t first,
                         int64_t count) {
  static thread_local Scratch scratch;
  const sb_weight& pooler = call.ends->weights[POOLER];
  const int64_t rows = padded_rows(pooler.out_features), features = call.hidden;
  const int64_t values = count * (features * DENSE_ROWS + rows) + LANES;
  float* spread = static_cast<float*>(scratch.get(sizeof(float) * values));
  float *y = spread + count * features * DENSE_ROWS, *to = spread;
  for (int64_t s = first; s < first + count; s++) {
    const bool some = tokens.starts[s] < tokens.starts[s + 1];
    const PanelRow from = some ? hidden.row(0, tokens.starts[s]) : PanelRow{};
    for (int64_t k = 0; k < features; k++)
      for (int r = 0; r < DENSE_ROWS; r++) *to++ = some ? to_float(from.data[k * from.width]) : 0.0f;
  }
  dense_vectors(pooler, count, spread, y, rows);
  for (int64_t i = 0; i < count * rows; i += LANES) Simd::storeu(y + i, tanh(Simd::loadu(y + i)));
  for (int64_t s = 0; s < count; s++)
    memcpy(call.pooled + (first + s) * pooler.out_features, y + s * rows, sizeof(float) * pooler.out_features);
}

// pooled[sequence] = tanh(pooler(first token)) for the sequences of one token panel; those without tokens count as zero.
inline void pool_first_tokens(const sb_encoder_call& call, const KeptTokens& tokens, const Panels& hidden,
                              const PanelLayout& sequences, int64_t tile) {
  static thread_local Scratch scratch;
  const sb_weight& pooler = call.ends->weights[POOLER];
  const int64_t rows = padded_rows(pooler.out_features), features = call.hidden, first = tile * PANEL_TOKENS;
  const int64_t rest = call.sequences - first;
  if (pooler.format == SB_DENSE)
    return pool_densely(call, tokens, hidden, first, rest < PANEL_TOKENS ? rest : PANEL_TOKENS);
  auto* memory = static_cast<Stored*>(scratch.get(sizeof(Stored) * PANEL_TOKENS * (features + rows)));
  const Panels x{&sequences, memory, features, tile}, y{&sequences, memory + features * PANEL_TOKENS, rows, tile};
  const int64_t width = x.width(tile);
  for (int64_t lane = 0; lane < width; lane++) {
    const int64_t s = first + lane;
    const bool some = s < call.sequences && tokens.starts[s] < tokens.starts[s + 1];
    const PanelRow from = some ? hidden.row(0, tokens.starts[s]) : PanelRow{};
    for (int64_t k = 0; k < features; k++) memory[k * width + lane] = some ? from.data[k * from.width] : Stored{};
  }
  panel_linear(pooler, x, y, 0, SB_NONE, tile, tile + 1);
  alignas(64) float lanes[LANES];
  for (int64_t lane = 0; lane < width && first + lane < call.sequences; lane += LANES)
    for (int64_t row = 0; row < pooler.out_features; row++) {
      Simd::store(lanes, tanh(load_values(y.token_panel(tile) + row * width + lane)));
      for (int64_t j = 0; j < LANES && first + lane + j < call.sequences; j++)
        call.pooled[(first + lane + j) * pooler.out_features + row] = lanes[j];
    }
}

}  // namespace SB_ISA
