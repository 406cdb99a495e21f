// All layers of an encoder. Activations stay in token panels from the first layer to the last.
//
// Embeddings come before them and the pooler after them, where the call has these. Tokens of all sequences follow one
// another without padding. Two steps alternate: attention, one task for each
// sequence and head, and everything between two attentions, one task for each chunk of token panels: output projection,
// LayerNorm, feed-forward network, LayerNorm, and query, key and value of the next layer.
#pragma once
#include "attention.h"
#include "embeddings.h"
#include "laps.h"
#include "rotary.h"

namespace SB_ISA {

// Panels of a chunk: their activations of one feed-forward network and its dense weights' blocks stay in L2.
constexpr int64_t CHUNK_PANELS = 2;
// Tokens of one thread that pass all layers together: query, key and value of a layer stay near the core until attention
// reads them, and this bounds the memory of a batch of any size.
constexpr int64_t GROUP_TOKENS = 256;

enum Matrix { QUERY, KEY, VALUE, OUTPUT, UP, DOWN };

// Rows of the projections in one token panel: query, key and value, each from a multiple of eight rows on.
struct ProjectedRows {
  explicit ProjectedRows(const sb_layer& layer) {
    const int64_t rows = layer.weights[QUERY].out_features, values = layer.weights[OUTPUT].in_features;
    joint = layer.weights[KEY].out_features == 0;  // one matrix computes all three
    key = joint ? (rows - values) / 2 : padded_rows(rows);
    value = joint ? rows - values : key + padded_rows(layer.weights[KEY].out_features);
    count = joint ? padded_rows(rows) : value + padded_rows(values);
  }
  int64_t key, value, count;
  bool joint;
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
  const int64_t width = hidden.width(tile);
  Writer<Stored> writer;
  for (int64_t column = 0; column < width; column += LANES) {
    const float* rows[LANES];
    vector_rows(static_cast<const float*>(call.x), tokens, tile * PANEL_TOKENS + column, call.hidden, rows);
    Stored* lanes = hidden.token_panel(tile) + column;
    load_lanes(call.hidden, lanes, width, writer, [&](int j, int64_t k, int64_t valid, float* to) {
      load_row(rows[j], k, valid, to);
    });
  }
  hidden.note(writer);
}

// y[token][feature] = token panel[feature][token].
inline void store_panel(const sb_encoder_call& call, const KeptTokens& tokens, const Panels& hidden, int64_t tile) {
  const int64_t width = hidden.width(tile), features = call.hidden;
  Simd::F transposed[LANES];
  for (int64_t column = 0; column < width; column += LANES) {
    float* rows[LANES];
    vector_rows(static_cast<float*>(call.y), tokens, tile * PANEL_TOKENS + column, features, rows);
    const Stored* from = hidden.token_panel(tile) + column;
    int64_t k = 0;
    for (; k + LANES <= features; k += LANES) {
      load_transposed(from + k * width, width, transposed);
      for (int j = 0; j < LANES; j++)
        if (rows[j]) Simd::storeu(rows[j] + k, transposed[j]);
    }
    for (; k < features; k++)
      for (int j = 0; j < LANES; j++)
        if (rows[j]) rows[j][k] = to_float(from[k * width + j]);
  }
}

struct EncoderBuffers {
  Panels hidden, projected, context;
};

// Query, key and value of the token panels [begin, end).
inline void project(const sb_encoder_call& call, const sb_layer& layer, const KeptTokens& tokens,
                    const EncoderBuffers& buffers, int64_t begin, int64_t end) {
  static thread_local Scratch scratch;
  Stopwatch watch;
  const ProjectedRows rows(layer);
  Panels x = buffers.hidden;
  if (layer.pre_norm && layer.attention_gamma) {
    auto* memory = static_cast<Stored*>(scratch.get(sizeof(Stored) * (end - begin) * PANEL_TOKENS * x.features));
    x = {buffers.hidden.layout, memory, x.features, begin};
    layer_norm(buffers.hidden, x, call.hidden,
               {layer.attention_gamma, layer.attention_beta, layer.attention_epsilon}, begin, end);
    watch.lap(sb::NORM_LAP);
  }
  const int64_t first[] = {0, rows.key, rows.value};
  for (int i = QUERY; i <= (rows.joint ? QUERY : VALUE); i++)
    panel_linear(layer.weights[i], x, buffers.projected, first[i], SB_NONE, begin, end);
  watch.lap(sb::QKV_LAP);
  if (layer.rotary) {
    const int64_t size = layer.heads[1], heads = head_count(layer);
    for (int i = QUERY; i <= KEY; i++)
      rotate(layer.rotary, tokens, call.length, buffers.projected, first[i], heads, size, begin, end);
    watch.lap(sb::ATTENTION_LAP);
  }
}

// Rows of the feed-forward network's input, times `activation` and gate where the layer has one.
inline void up_projection(const sb_layer& layer, const Panels& x, const Panels& neurons, int64_t begin, int64_t end) {
  if (!layer.gated) return panel_linear(layer.weights[UP], x, neurons, 0, layer.activation, begin, end);
  panel_linear(layer.weights[UP], x, neurons, 0, SB_NONE, begin, end);
  for (int64_t tile = begin; tile < end; tile++) {
    Stored* values = neurons.token_panel(tile);
    const int64_t count = layer.weights[DOWN].in_features * neurons.width(tile);
    neurons.note(gate_values(values, values + count, count, layer.activation));
  }
}

// x += y over the token panels [begin, end).
inline void add_panels(const Panels& y, const Panels& x, int64_t features, int64_t begin, int64_t end) {
  Writer<Stored> writer;
  for (int64_t tile = begin; tile < end; tile++) {
    Stored* to = x.token_panel(tile);
    const Stored* from = y.token_panel(tile);
    for (int64_t i = 0; i < features * x.width(tile); i += LANES)
      writer.store(to + i, load_values(to + i) + load_values(from + i));
  }
  x.note(writer);
}

// Everything between two attentions, for the token panels [begin, end).
inline void after_attention(const sb_layer& layer, int64_t hidden, const EncoderBuffers& buffers, int64_t begin,
                            int64_t end) {
  static thread_local Scratch scratch;
  Stopwatch watch;
  const PanelLayout* layout = buffers.hidden.layout;
  const int64_t width = padded_rows(hidden), inner = padded_rows(layer.weights[UP].out_features);
  const int64_t room = (end - begin) * PANEL_TOKENS;
  auto* memory = static_cast<Stored*>(scratch.get(sizeof(Stored) * room * (width + inner)));
  const Panels attended{layout, memory, width, begin}, neurons{layout, memory + room * width, inner, begin};
  const Norm after_attention{layer.attention_gamma, layer.attention_beta, layer.attention_epsilon};
  const Norm output{layer.output_gamma, layer.output_beta, layer.output_epsilon};
  panel_linear(layer.weights[OUTPUT], buffers.context, attended, 0, SB_NONE, begin, end);
  watch.lap(sb::OUTPUT_LAP);
  if (layer.pre_norm) {
    add_panels(attended, buffers.hidden, hidden, begin, end);
    layer_norm(buffers.hidden, attended, hidden, output, begin, end);
  } else {
    add_norm(buffers.hidden, attended, hidden, after_attention, begin, end);
  }
  watch.lap(sb::NORM_LAP);
  up_projection(layer, attended, neurons, begin, end);
  watch.lap(sb::UP_LAP);
  panel_linear(layer.weights[DOWN], neurons, layer.pre_norm ? attended : buffers.hidden, 0, SB_NONE, begin, end);
  watch.lap(sb::DOWN_LAP);
  if (layer.pre_norm)
    add_panels(attended, buffers.hidden, hidden, begin, end);
  else
    add_norm(attended, buffers.hidden, hidden, output, begin, end);
  watch.lap(sb::NORM_LAP);
}

// All layers for a group of sequences. Returns whether token panels could hold all values.
inline bool encoder_group(const sb_encoder_call& call) {
  static thread_local Scratch token_scratch, panel_scratch;
  const KeptTokens tokens = kept_tokens(call, token_scratch);
  bool lost = false;
  const PanelLayout layout(tokens.count, &lost);
  int64_t projected_rows = 0, context_rows = 0;
  for (int i = 0; i < call.count; i++) {
    const int64_t projected = ProjectedRows(call.layers[i]).count;
    const int64_t context = padded_rows(call.layers[i].weights[OUTPUT].in_features);
    projected_rows = projected > projected_rows ? projected : projected_rows;
    context_rows = context > context_rows ? context : context_rows;
  }
  const int64_t width = padded_rows(call.hidden), room = layout.room();
  auto* memory =
      static_cast<Stored*>(panel_scratch.get(sizeof(Stored) * room * (width + projected_rows + context_rows)));
  const EncoderBuffers buffers{{&layout, memory, width},
                               {&layout, memory + room * width, projected_rows},
                               {&layout, memory + room * (width + projected_rows), context_rows}};
  // Attention leaves out tokens past the last. The linear layer after it does not, and they must be in range.
  if (sizeof(Stored) < sizeof(float) && layout.count * PANEL_TOKENS > tokens.count)
    memset(buffers.context.token_panel(layout.count - 1), 0, sizeof(Stored) * context_rows * PANEL_TOKENS);
  const int threads = call.threads;
  const int64_t share = divide_up(layout.count, threads), chunk = share < CHUNK_PANELS ? share : CHUNK_PANELS;
  const int64_t chunks = chunk ? divide_up(layout.count, chunk) : 0;

#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < call.sequences * call.length; row++)
      if (!sb::keeps(call.mask, call.mask_bytes, row))
        memset(static_cast<float*>(call.y) + row * call.hidden, 0, sizeof(float) * call.hidden);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < chunks; i++) {
      const int64_t begin = i * chunk, end = begin + chunk < layout.count ? begin + chunk : layout.count;
      const bool embeds = call.ends && call.ends->words;
      Stopwatch watch;
      if (embeds) embed(call, tokens, buffers.hidden, begin, end);
      else
        for (int64_t tile = begin; tile < end; tile++) load_panel(call, tokens, buffers.hidden, tile);
      watch.lap(embeds ? sb::EMBEDDINGS_LAP : sb::LAYOUT_LAP);
      if (call.count) project(call, call.layers[0], tokens, buffers, begin, end);
    }
    for (int n = 0; n < call.count; n++) {
      const sb_layer& layer = call.layers[n];
      const int64_t heads = head_count(layer);
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < heads * call.sequences; i++) {
        const int64_t begin = tokens.starts[i / heads], end = tokens.starts[i / heads + 1];
        if (begin == end) continue;
        Stopwatch watch;
        // Lanes of other sequences lie up to two vectors before and after the tokens.
        const ScoreBias bias{bias_line(layer, i % heads, end - begin + 2 * LANES), layer.window};
        attention_head(buffers.projected, buffers.context, head_rows(layer, i % heads), layer.scale, bias, begin, end);
        watch.lap(sb::ATTENTION_LAP);
      }
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < chunks; i++) {
        const int64_t begin = i * chunk, end = begin + chunk < layout.count ? begin + chunk : layout.count;
        after_attention(layer, call.hidden, buffers, begin, end);
        if (n + 1 < call.count) project(call, call.layers[n + 1], tokens, buffers, begin, end);
        else if (call.ends && call.ends->final_gamma) {
          Stopwatch watch;
          layer_norm(buffers.hidden, buffers.hidden, call.hidden,
                     {call.ends->final_gamma, call.ends->final_beta, call.ends->final_epsilon}, begin, end);
          watch.lap(sb::NORM_LAP);
        }
      }
    }
#pragma omp for schedule(static) nowait
    for (int64_t tile = 0; tile < layout.count; tile++) {
      Stopwatch watch;
      store_panel(call, tokens, buffers.hidden, tile);
      watch.lap(sb::LAYOUT_LAP);
    }
    if (call.pooled) {
      const PanelLayout sequences(call.sequences, &lost);
#pragma omp for schedule(dynamic, 1)
      for (int64_t tile = 0; tile < sequences.count; tile++) {
        Stopwatch watch;
        pool_first_tokens(call, tokens, buffers.hidden, sequences, tile);
        watch.lap(sb::POOLER_LAP);
      }
    }
  }
  return !lost;
}

// The whole call, group by group. A sequence has the same result in every group. Returns whether token panels could
// hold all values; else the results are of no use.
inline bool encoder(const sb_encoder_call& call) {
  sb_encoder_call group = call;
  const int64_t most = GROUP_TOKENS * call.threads;
  for (int64_t first = 0, count; first < call.sequences; first += count) {
    int64_t tokens = 0;
    for (count = 0; first + count < call.sequences; count++) {
      int64_t kept = 0;
      for (int64_t i = 0; i < call.length; i++)
        kept += sb::keeps(call.mask, call.mask_bytes, (first + count) * call.length + i);
      if (count && tokens + kept > most) break;
      tokens += kept;
    }
    const int64_t token = first * call.length;
    group.sequences = count;
    group.x = call.x ? static_cast<const float*>(call.x) + token * call.hidden : nullptr;
    group.y = static_cast<float*>(call.y) + token * call.hidden;
    group.mask = call.mask ? static_cast<const char*>(call.mask) + token * call.mask_bytes : nullptr;
    group.ids = call.ids ? call.ids + token : nullptr;
    group.types = call.types ? call.types + token : nullptr;
    group.pooled = call.pooled ? call.pooled + first * call.ends->weights[POOLER].out_features : nullptr;
    if (!encoder_group(group)) return false;
  }
  return true;
}

}  // namespace SB_ISA
