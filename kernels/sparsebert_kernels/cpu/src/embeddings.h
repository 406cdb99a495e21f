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
  for (int64_t column = 0; column < panel_width; column += LANES) {
    const float *words[LANES], *types[LANES], *positions[LANES];
    for (int j = 0; j < LANES; j++) {
      const int64_t token = tile * PANEL_TOKENS + column + j;
      words[j] = types[j] = positions[j] = nullptr;
      if (token >= tokens.count) continue;
      const int64_t row = tokens.rows[token];
      words[j] = ends.words + call.ids[row] * width;
      if (ends.types) types[j] = ends.types + (call.types ? call.types[row] * width : 0);
      if (ends.positions) positions[j] = ends.positions + tokens.positions[token] * width;
    }
    load_lanes(width, to.token_panel(tile) + column, panel_width, [&](int j, int64_t k, int64_t valid, float* square) {
      load_row(words[j], k, valid, square);
      if (types[j]) add_row(types[j], k, valid, square);
      if (positions[j]) add_row(positions[j], k, valid, square);
    });
  }
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
    sums = {hidden.layout, static_cast<float*>(scratch.get(sizeof(float) * values)), ends.width, begin};
  }
  for (int64_t tile = begin; tile < end; tile++) sum_embeddings(call, tokens, sums, tile);
  if (ends.embedding_gamma)
    layer_norm(sums, sums, ends.width, {ends.embedding_gamma, ends.embedding_beta, ends.embedding_epsilon}, begin,
               end);
  if (projected) panel_linear(ends.weights[PROJECTION], sums, hidden, 0, SB_NONE, begin, end);
}

// pooled[sequence] = tanh(pooler(first token)) for the sequences of one token panel; those without tokens count as zero.
inline void pool_first_tokens(const sb_encoder_call& call, const KeptTokens& tokens, const Panels& hidden,
                              const PanelLayout& sequences, int64_t tile) {
  static thread_local Scratch scratch;
  const sb_weight& pooler = call.ends->weights[POOLER];
  const bool dense = pooler.format == SB_DENSE;
  const int64_t rows = padded_rows(pooler.out_features), features = call.hidden, first = tile * PANEL_TOKENS;
  const int64_t count = call.sequences - first < PANEL_TOKENS ? call.sequences - first : PANEL_TOKENS;
  const int64_t room = PANEL_TOKENS * features * (dense ? DENSE_ROWS : 1);
  float* memory = static_cast<float*>(scratch.get(sizeof(float) * (room + PANEL_TOKENS * rows)));
  float* result = memory + room;
  const Panels x{&sequences, memory, features, tile}, y{&sequences, result, rows, tile};
  const int64_t width = x.width(tile);
  for (int64_t lane = 0; lane < (dense ? count : width); lane++) {
    const int64_t s = first + lane;
    const bool some = s < call.sequences && tokens.starts[s] < tokens.starts[s + 1];
    const PanelRow from = some ? hidden.row(0, tokens.starts[s]) : PanelRow{};
    for (int64_t k = 0; k < features; k++) {
      const float value = some ? from.data[k * from.width] : 0.0f;
      if (!dense) memory[k * width + lane] = value;
      else
        for (int r = 0; r < DENSE_ROWS; r++) memory[(lane * features + k) * DENSE_ROWS + r] = value;
    }
  }
  if (dense) dense_vectors(pooler, count, memory, result, rows);
  else panel_linear(pooler, x, y, 0, SB_NONE, tile, tile + 1);
  const int64_t row_step = dense ? 1 : width, lane_step = dense ? rows : 1;
  for (int64_t i = 0; i < rows * (dense ? count : width); i += LANES)
    Simd::store(result + i, tanh(Simd::load(result + i)));
  for (int64_t lane = 0; lane < count; lane++)
    for (int64_t row = 0; row < pooler.out_features; row++)
      call.pooled[(first + lane) * pooler.out_features + row] = result[row * row_step + lane * lane_step];
}

}  // namespace SB_ISA
