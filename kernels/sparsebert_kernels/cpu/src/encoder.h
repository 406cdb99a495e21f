// All layers of an encoder. Activations stay in token panels from the first layer to the last.
//
// Tokens of all sequences follow one another without padding. Two steps alternate: attention, one task for each
// sequence and head, and everything between two attentions, one task for each chunk of token panels: output projection,
// LayerNorm, feed-forward network, LayerNorm, and query, key and value of the next layer.
#pragma once
#include "attention.h"
#include "layer_norm.h"
#include "panel_linear.h"

namespace SB_ISA {

// Panels of a chunk: their activations of one feed-forward network and its dense weights' blocks stay in L2.
constexpr int64_t CHUNK_PANELS = 2;
// Kernels compute up to eight rows at a time and may write as many.
constexpr int64_t padded_rows(int64_t rows) { return divide_up(rows, 8) * 8; }

enum Matrix { QUERY, KEY, VALUE, OUTPUT, UP, DOWN };

// The tokens that the mask keeps.
struct KeptTokens {
  const int64_t* rows;    // row in x of each token
  const int64_t* starts;  // first token of each sequence, one more than sequences
  int64_t count;
};

inline KeptTokens kept_tokens(const sb_encoder_call& call, Scratch& scratch) {
  auto* starts = static_cast<int64_t*>(scratch.get(sizeof(int64_t) * (call.sequences * (call.length + 1) + 1)));
  int64_t *rows = starts + call.sequences + 1, count = 0;
  for (int64_t s = 0; s < call.sequences; s++) {
    starts[s] = count;
    for (int64_t i = s * call.length; i < (s + 1) * call.length; i++)
      if (!call.mask || call.mask[i]) rows[count++] = i;
  }
  starts[call.sequences] = count;
  return {rows, starts, count};
}

// Rows of the projections in one token panel: query, key and value, each from a multiple of eight rows on.
struct ProjectedRows {
  explicit ProjectedRows(const sb_layer& layer)
      : key(padded_rows(layer.weights[QUERY].out_features)),
        value(key + padded_rows(layer.weights[KEY].out_features)),
        count(value + padded_rows(layer.weights[VALUE].out_features)) {}
  int64_t key, value, count;
};

inline int64_t head_count(const sb_layer& layer) {
  int64_t count = 0;
  for (int i = 0; i < layer.groups; i++) count += layer.heads[3 * i];
  return count;
}

inline Head head_rows(const sb_layer& layer, int64_t head) {
  const ProjectedRows rows(layer);
  int64_t score = 0, value = 0;
  const int32_t* group = layer.heads;
  for (; head >= group[0]; head -= group[0], group += 3) {
    score += int64_t{group[0]} * group[1];
    value += int64_t{group[0]} * group[2];
  }
  score += head * group[1];
  value += head * group[2];
  return {score, rows.key + score, rows.value + value, value, group[1], group[2]};
}

// Rows of x of the tokens in one vector; null past the last token.
template <class Row>
SB_INLINE void vector_rows(Row* x, const KeptTokens& tokens, int64_t first, int64_t hidden, Row* (&rows)[LANES]) {
  for (int j = 0; j < LANES; j++) rows[j] = first + j < tokens.count ? x + tokens.rows[first + j] * hidden : nullptr;
}

// token panel[feature][token] = x[token][feature]; tokens past the last are zero.
inline void load_panel(const sb_encoder_call& call, const KeptTokens& tokens, const Panels& hidden, int64_t tile) {
  const int64_t width = hidden.width(tile), features = call.hidden;
  alignas(64) float square[LANES * LANES];
  Simd::F transposed[LANES];
  for (int64_t column = 0; column < width; column += LANES) {
    const float* rows[LANES];
    vector_rows(static_cast<const float*>(call.x), tokens, tile * PANEL_TOKENS + column, features, rows);
    float* to = hidden.token_panel(tile) + column;
    for (int64_t k = 0; k < features; k += LANES) {
      const int64_t valid = features - k < LANES ? features - k : LANES;
      for (int j = 0; j < LANES; j++) {
        if (!rows[j] || valid < LANES) memset(square + j * LANES, 0, sizeof(float) * LANES);
        if (rows[j]) memcpy(square + j * LANES, rows[j] + k, sizeof(float) * valid);
      }
      Simd::load_transposed(square, LANES, transposed);
      for (int i = 0; i < valid; i++) Simd::store(to + (k + i) * width, transposed[i]);
    }
  }
}

// y[token][feature] = token panel[feature][token].
inline void store_panel(const sb_encoder_call& call, const KeptTokens& tokens, const Panels& hidden, int64_t tile) {
  const int64_t width = hidden.width(tile), features = call.hidden;
  Simd::F transposed[LANES];
  for (int64_t column = 0; column < width; column += LANES) {
    float* rows[LANES];
    vector_rows(static_cast<float*>(call.y), tokens, tile * PANEL_TOKENS + column, features, rows);
    const float* from = hidden.token_panel(tile) + column;
    int64_t k = 0;
    for (; k + LANES <= features; k += LANES) {
      Simd::load_transposed(from + k * width, width, transposed);
      for (int j = 0; j < LANES; j++)
        if (rows[j]) Simd::storeu(rows[j] + k, transposed[j]);
    }
    for (; k < features; k++)
      for (int j = 0; j < LANES; j++)
        if (rows[j]) rows[j][k] = from[k * width + j];
  }
}

// All row blocks of one weight over the token panels [begin, end).
inline void panel_linear(const sb_weight& w, const Panels& x, const Panels& y, int64_t row, int activation,
                         int64_t begin, int64_t end) {
  for (int64_t block = 0; block < row_blocks(w); block++)
    linear_row_block(w, static_cast<const float*>(w.bias), block, x, y, row, activation, begin, end);
}

struct EncoderBuffers {
  Panels hidden, projected, context;
};

inline void project(const sb_layer& layer, const EncoderBuffers& buffers, int64_t begin, int64_t end) {
  const ProjectedRows rows(layer);
  const int64_t first[] = {0, rows.key, rows.value};
  for (int i = QUERY; i <= VALUE; i++)
    panel_linear(layer.weights[i], buffers.hidden, buffers.projected, first[i], SB_NONE, begin, end);
}

// Everything between two attentions, for the token panels [begin, end).
inline void after_attention(const sb_layer& layer, int64_t hidden, const EncoderBuffers& buffers, int64_t begin,
                            int64_t end) {
  static thread_local Scratch scratch;
  const PanelLayout* layout = buffers.hidden.layout;
  const int64_t width = padded_rows(hidden), inner = padded_rows(layer.weights[UP].out_features);
  const int64_t room = (end - begin) * PANEL_TOKENS;
  float* memory = static_cast<float*>(scratch.get(sizeof(float) * room * (width + inner)));
  const Panels attended{layout, memory, width, begin}, neurons{layout, memory + room * width, inner, begin};
  panel_linear(layer.weights[OUTPUT], buffers.context, attended, 0, SB_NONE, begin, end);
  add_norm(buffers.hidden, attended, hidden, {layer.attention_gamma, layer.attention_beta, layer.attention_epsilon},
           begin, end);
  panel_linear(layer.weights[UP], attended, neurons, 0, layer.activation, begin, end);
  panel_linear(layer.weights[DOWN], neurons, buffers.hidden, 0, SB_NONE, begin, end);
  add_norm(attended, buffers.hidden, hidden, {layer.output_gamma, layer.output_beta, layer.output_epsilon}, begin,
           end);
}

inline void encoder(const sb_encoder_call& call) {
  static thread_local Scratch token_scratch, panel_scratch;
  const KeptTokens tokens = kept_tokens(call, token_scratch);
  const PanelLayout layout(tokens.count);
  int64_t projected_rows = 0, context_rows = 0;
  for (int i = 0; i < call.count; i++) {
    const int64_t projected = ProjectedRows(call.layers[i]).count;
    const int64_t context = padded_rows(call.layers[i].weights[VALUE].out_features);
    projected_rows = projected > projected_rows ? projected : projected_rows;
    context_rows = context > context_rows ? context : context_rows;
  }
  const int64_t width = padded_rows(call.hidden), room = layout.room();
  float* memory =
      static_cast<float*>(panel_scratch.get(sizeof(float) * room * (width + projected_rows + context_rows)));
  const EncoderBuffers buffers{{&layout, memory, width},
                               {&layout, memory + room * width, projected_rows},
                               {&layout, memory + room * (width + projected_rows), context_rows}};
  const int threads = call.threads;
  const int64_t share = divide_up(layout.count, threads), chunk = share < CHUNK_PANELS ? share : CHUNK_PANELS;
  const int64_t chunks = chunk ? divide_up(layout.count, chunk) : 0;

#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < call.sequences * call.length; row++)
      if (call.mask && !call.mask[row]) memset(static_cast<float*>(call.y) + row * call.hidden, 0, sizeof(float) * call.hidden);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < chunks; i++) {
      const int64_t begin = i * chunk, end = begin + chunk < layout.count ? begin + chunk : layout.count;
      for (int64_t tile = begin; tile < end; tile++) load_panel(call, tokens, buffers.hidden, tile);
      if (call.count) project(call.layers[0], buffers, begin, end);
    }
    for (int n = 0; n < call.count; n++) {
      const sb_layer& layer = call.layers[n];
      const int64_t heads = head_count(layer);
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < heads * call.sequences; i++) {
        const int64_t begin = tokens.starts[i / heads], end = tokens.starts[i / heads + 1];
        if (begin < end)
          attention_head(buffers.projected, buffers.context, head_rows(layer, i % heads), layer.scale, begin, end);
      }
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < chunks; i++) {
        const int64_t begin = i * chunk, end = begin + chunk < layout.count ? begin + chunk : layout.count;
        after_attention(layer, call.hidden, buffers, begin, end);
        if (n + 1 < call.count) project(call.layers[n + 1], buffers, begin, end);
      }
    }
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < layout.count; tile++) store_panel(call, tokens, buffers.hidden, tile);
  }
}

}  // namespace SB_ISA
