// All layers of an encoder in bf16. Activations stay in paired panels from the first layer to the last.
//
// A group of sequences passes through a layer before the next group does, so that its activations stay in L2; all
// threads share its work. Between two attentions a token needs no other token: where there are enough paired panels,
// threads take chunks of them; else all work on the same panels, on other rows of the result.
#pragma once
#include "laps.h"
#include "paired_attention.h"
#include "paired_ends.h"
#include "paired_gate.h"
#include "paired_norm.h"
#include "paired_rotary.h"
#include "row_panel.h"

namespace SB_ISA {

constexpr int64_t GROUP_TOKENS = 256;  // of one thread
constexpr int64_t CHUNK_PAIRED = 8;    // paired panels whose activations and results stay in L2
constexpr int64_t LEAST_PAIRED = 4;    // of a thread that has panels of its own
constexpr int64_t QUANTUM = 64;        // features of all paired panels are a multiple

constexpr int64_t whole_quanta(int64_t rows) { return (rows + QUANTUM - 1) / QUANTUM * QUANTUM; }

enum PairedMatrix { PAIRED_QUERY, PAIRED_KEY, PAIRED_VALUE, PAIRED_OUTPUT, PAIRED_UP, PAIRED_DOWN };

// Runs `task` for each number below `tasks`: on this thread if `alone`, else on all threads, which then wait.
template <class Task>
SB_INLINE void share(bool alone, int64_t tasks, Task task) {
  if (alone) {
    for (int64_t i = 0; i < tasks; i++) task(i);
    return;
  }
#pragma omp for schedule(dynamic, 1)
  for (int64_t i = 0; i < tasks; i++) task(i);
}

// A weight, and the first row of its results.
struct PlacedWeight {
  const sb_weight* weight;
  int64_t row;
};

// Rows of a weight that one thread takes at once: whole row panels and whole lines. An int8 weight rounds all of its
// input for each part, so it has no more parts than threads.
inline int64_t shared_rows(const sb_weight& w, int64_t threads) {
  const int64_t least = w.block_rows > PAIRED_FEATURES ? w.block_rows : PAIRED_FEATURES;
  const int64_t parts = w.dtype == SB_INT8 ? threads : 4 * threads, rows = (w.out_features + parts - 1) / parts;
  return (rows + least - 1) / least * least;
}

// paired_linear for N weights on this thread if `alone`, else their rows on all threads.
template <int N>
void shared_linear(sb::Part lap, bool alone, int64_t threads, const PlacedWeight (&weights)[N], const Paired& x,
                   const Paired& y, int activation, int64_t begin, int64_t end) {
  int64_t rows[N], parts[N], all = 0;
  for (int i = 0; i < N; i++) {
    const sb_weight& w = *weights[i].weight;
    rows[i] = alone ? w.out_features : shared_rows(w, threads);
    all += parts[i] = (w.out_features + rows[i] - 1) / rows[i];
  }
  share(alone, all, [&](int64_t part) {
    Stopwatch watch;
    int i = 0;
    for (; part >= parts[i]; i++) part -= parts[i];
    const int64_t first = part * rows[i];
    paired_linear(weight_rows(*weights[i].weight, first, rows[i]), x, y, weights[i].row + first, activation, begin,
                  end);
    watch.lap(lap);
  });
}

// First rows of key and value in the projections, and the number of all rows.
struct ProjectedFeatures {
  explicit ProjectedFeatures(const sb_layer& layer) {
    const int64_t rows = layer.weights[PAIRED_QUERY].out_features, values = layer.weights[PAIRED_OUTPUT].in_features;
    joint = layer.weights[PAIRED_KEY].out_features == 0;  // one matrix computes all three
    key = joint ? (rows - values) / 2 : whole_lines(rows);
    value = joint ? rows - values : key + whole_lines(layer.weights[PAIRED_KEY].out_features);
    count = joint ? whole_lines(rows) : value + whole_lines(values);
  }
  int64_t key, value, count;
  bool joint;
};

// Features of the buffers of a layer.
struct LayerWidths {
  int64_t projected = 0, context = 0, neurons = 0, gated = 0;  // gated: 0 without gates

  int64_t sum() const { return projected + context + neurons + gated; }
  void include(const LayerWidths& other) {
    projected = other.projected > projected ? other.projected : projected;
    context = other.context > context ? other.context : context;
    neurons = other.neurons > neurons ? other.neurons : neurons;
    gated = other.gated > gated ? other.gated : gated;
  }
};

inline LayerWidths layer_widths(const sb_layer& layer) {
  return {ProjectedFeatures(layer).count, whole_quanta(layer.weights[PAIRED_OUTPUT].in_features),
          whole_quanta(layer.weights[PAIRED_UP].out_features),
          layer.gated ? whole_quanta(layer.weights[PAIRED_DOWN].in_features) : 0};
}

inline PairedHead paired_head(const sb_layer& layer, int64_t index) {
  const ProjectedFeatures rows(layer);
  int64_t score = 0, value = 0;
  const int32_t* group = layer.heads;
  for (; index >= group[0]; index -= group[0], group += 3) {
    score += int64_t{group[0]} * group[1];
    value += int64_t{group[0]} * group[2];
  }
  score += index * group[1];
  value += index * group[2];
  return {score, rows.key + score, rows.value + value, value, group[1], group[2]};
}

inline int64_t paired_heads(const sb_layer& layer) {
  int64_t count = 0;
  for (int i = 0; i < layer.groups; i++) count += layer.heads[3 * i];
  return count;
}

// The features [first, x.features) of the paired panels [begin, end) become zero.
inline void clear_features(const Paired& x, int64_t first, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; panel++)
    memset(x.panel(panel) + first * PAIRED_TOKENS, 0, sizeof(uint16_t) * (x.features - first) * PAIRED_TOKENS);
}

struct PairedBuffers {
  Paired hidden;
  uint16_t *projected, *context, *attended, *neurons, *gated;  // of one group
};

// The buffers of one layer, in panels of its widths.
struct PairedStates {
  Paired hidden, projected, context, attended, neurons, gated;
};

// Query, key and value of the paired panels [begin, end) of a group: on this thread if `alone`, else on all threads.
inline void project_paired(bool alone, const sb_encoder_call& call, const sb_layer& layer, const PairedTokens& tokens,
                           const PairedStates& states, int64_t begin, int64_t end) {
  const ProjectedFeatures rows(layer);
  const sb_weight* w = layer.weights;
  const bool normed = layer.pre_norm && layer.attention_gamma;
  const Paired &x = normed ? states.attended : states.hidden, &y = states.projected;
  if (normed)
    share(alone, end - begin, [&](int64_t i) {
      Stopwatch watch;
      const PairedNorm norm{layer.attention_gamma, layer.attention_beta, layer.attention_epsilon};
      norm_paired<X_ALONE>(states.hidden, states.attended, call.hidden, norm, begin + i);
      watch.lap(sb::NORM_LAP);
    });
  if (rows.joint)
    shared_linear(sb::QKV_LAP, alone, call.threads, {{w + PAIRED_QUERY, 0}}, x, y, SB_NONE, begin, end);
  else
    shared_linear(sb::QKV_LAP, alone, call.threads,
                  {{w + PAIRED_QUERY, 0}, {w + PAIRED_KEY, rows.key}, {w + PAIRED_VALUE, rows.value}}, x, y, SB_NONE,
                  begin, end);
  if (!layer.rotary) return;
  const int64_t heads = paired_heads(layer), size = layer.heads[1];
  share(alone, end - begin, [&](int64_t i) {
    Stopwatch watch;
    rotate_paired(layer.rotary, tokens, call.length, y, rows.key, heads, size, begin + i);
    watch.lap(sb::ATTENTION_LAP);
  });
}

// Everything between two attentions, for the paired panels [begin, end) of a group: on this thread if `alone`, else on
// all threads.
inline void after_paired_attention(bool alone, const sb_encoder_call& call, const sb_layer& layer,
                                   const PairedStates& states, int64_t begin, int64_t end) {
  const auto* w = layer.weights;
  const int64_t threads = call.threads;
  const PairedNorm attention_norm{layer.attention_gamma, layer.attention_beta, layer.attention_epsilon};
  const PairedNorm output_norm{layer.output_gamma, layer.output_beta, layer.output_epsilon};
  const auto &hidden = states.hidden, &attended = states.attended, &neurons = states.neurons;
  auto each_panel = [&](sb::Part lap, auto task) {
    share(alone, end - begin, [&](int64_t i) {
      Stopwatch watch;
      task(begin + i);
      watch.lap(lap);
    });
  };
  shared_linear(sb::OUTPUT_LAP, alone, threads, {{w + PAIRED_OUTPUT, 0}}, states.context, attended, SB_NONE, begin, end);
  each_panel(sb::NORM_LAP, [&](int64_t i) {
    if (layer.pre_norm) norm_paired<X_BECOMES_SUM>(hidden, attended, call.hidden, output_norm, i);
    else norm_paired<X_PLUS_Y>(hidden, attended, call.hidden, attention_norm, i);
  });
  const int activation = layer.gated ? SB_NONE : layer.activation;
  shared_linear(sb::UP_LAP, alone, threads, {{w + PAIRED_UP, 0}}, attended, neurons, activation, begin, end);
  const Paired& inner = layer.gated ? states.gated : neurons;
  if (layer.gated)
    each_panel(sb::UP_LAP, [&](int64_t i) {
      gate_paired(neurons.panel(i), inner.panel(i), w[PAIRED_DOWN].in_features, inner.features, layer.activation);
    });
  else if (whole_lines(w[PAIRED_UP].out_features) < neurons.features)
    each_panel(sb::UP_LAP,
               [&](int64_t i) { clear_features(neurons, whole_lines(w[PAIRED_UP].out_features), i, i + 1); });
  const Paired& outer = layer.pre_norm ? attended : hidden;
  shared_linear(sb::DOWN_LAP, alone, threads, {{w + PAIRED_DOWN, 0}}, inner, outer, SB_NONE, begin, end);
  each_panel(sb::NORM_LAP, [&](int64_t i) {
    if (layer.pre_norm) add_paired(hidden, attended, call.hidden, i);
    else norm_paired<X_PLUS_Y>(attended, hidden, call.hidden, output_norm, i);
  });
}

// One layer for one group, on all threads.
inline void paired_layer(const sb_encoder_call& call, const sb_layer& layer, const PairedTokens& tokens,
                         const TokenGroup& group, const PairedBuffers& buffers) {
  const int64_t threads = call.threads, begin = group.first_panel, end = begin + group.panels;
  const bool alone = threads == 1;
  const LayerWidths widths = layer_widths(layer);
  const PairedStates states{buffers.hidden,
                            {buffers.projected, widths.projected, begin},
                            {buffers.context, widths.context, begin},
                            {buffers.attended, buffers.hidden.features, begin},
                            {buffers.neurons, widths.neurons, begin},
                            {buffers.gated, widths.gated, begin}};

  // Chunks of about equal size, or all panels for all threads where these would leave some threads idle.
  const int64_t share_panels = (group.panels + threads - 1) / threads;
  const int64_t pieces = (share_panels + CHUNK_PAIRED - 1) / CHUNK_PAIRED;
  const int64_t chunk = (share_panels + pieces - 1) / pieces, chunks = (group.panels + chunk - 1) / chunk;
  const bool split_tokens = alone || (share_panels >= LEAST_PAIRED && share_panels * threads * 16 <= group.panels * 17);
  auto each_chunk = [&](auto task) {
    if (!split_tokens) return task(begin, end);
    share(alone, chunks, [&](int64_t i) {
      const int64_t first = begin + i * chunk;
      task(first, first + chunk < end ? first + chunk : end);
    });
  };

  each_chunk([&](int64_t from, int64_t to) { project_paired(split_tokens, call, layer, tokens, states, from, to); });

  // Panels may have more features than the heads fill.
  const int64_t context_rows = layer.weights[PAIRED_OUTPUT].in_features;
  const Paired& context = states.context;
  if (context_rows < context.features)
    share(alone, group.panels, [&](int64_t i) { clear_features(context, context_rows, begin + i, begin + i + 1); });
  const int64_t heads = paired_heads(layer), all = heads * group.sequences;
  const int64_t task = (all + 32 * threads - 1) / (32 * threads);
  share(alone, (all + task - 1) / task, [&](int64_t i) {
    Stopwatch watch;
    for (int64_t j = i * task; j < (i + 1) * task && j < all; j++) {
      const TokenRange& range = tokens.sequences[group.first_sequence + j / heads];
      if (!range.count()) continue;
      // Lanes of other sequences lie up to a panel before and after the tokens.
      const ScoreBias bias{bias_line(layer, j % heads, range.count() + 2 * PAIRED_TOKENS), layer.window};
      paired_attention(states.projected, context, paired_head(layer, j % heads), layer.scale, bias, range);
    }
    watch.lap(sb::ATTENTION_LAP);
  });

  each_chunk([&](int64_t from, int64_t to) { after_paired_attention(split_tokens, call, layer, states, from, to); });
}

template <class X>
void paired_encoder(const sb_encoder_call& call) {
  static thread_local Scratch token_scratch, panel_scratch;
  const auto* x = static_cast<const X*>(call.x);
  auto* y = static_cast<X*>(call.y);
  const PairedTokens tokens = group_tokens(call, GROUP_TOKENS * call.threads, token_scratch);
  LayerWidths widths;
  for (int i = 0; i < call.count; i++) widths.include(layer_widths(call.layers[i]));
  const int64_t hidden = whole_quanta(call.hidden), room = tokens.most_panels * PAIRED_TOKENS;
  const size_t values = tokens.panels * PAIRED_TOKENS * hidden + room * (hidden + widths.sum());
  auto* memory = static_cast<uint16_t*>(panel_scratch.get(sizeof(uint16_t) * values));
  PairedBuffers buffers{{memory, hidden}, memory + tokens.panels * PAIRED_TOKENS * hidden, nullptr, nullptr, nullptr,
                        nullptr};
  buffers.context = buffers.projected + room * widths.projected;
  buffers.attended = buffers.context + room * widths.context;
  buffers.neurons = buffers.attended + room * hidden;
  buffers.gated = buffers.neurons + room * widths.neurons;
  // Attention leaves out tokens past the last.
  memset(buffers.context, 0, sizeof(uint16_t) * room * widths.context);

#pragma omp parallel num_threads(call.threads) if (call.threads > 1)
  {
    const UnitScope scope;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < call.sequences * call.length; row++)
      if (!sb::keeps(call.mask, call.mask_bytes, row)) memset(y + row * call.hidden, 0, sizeof(X) * call.hidden);
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < tokens.panels; panel++) {
      const bool embedded = call.ends && call.ends->words;
      Stopwatch watch;
      if (embedded) embed_paired(call, tokens, buffers.hidden, panel);
      else load_paired(x, call.hidden, tokens, panel, buffers.hidden.panel(panel));
      clear_features(buffers.hidden, whole_lines(call.hidden), panel, panel + 1);
      watch.lap(embedded ? sb::EMBEDDINGS_LAP : sb::LAYOUT_LAP);
    }
    for (int i = 0; i < call.count; i++)
      for (int64_t g = 0; g < tokens.group_count; g++)
        paired_layer(call, call.layers[i], tokens, tokens.groups[g], buffers);
    if (call.ends && call.ends->final_gamma) {
      const PairedNorm norm{call.ends->final_gamma, call.ends->final_beta, call.ends->final_epsilon};
#pragma omp for schedule(static)
      for (int64_t panel = 0; panel < tokens.panels; panel++) {
        Stopwatch watch;
        norm_paired<X_ALONE>(buffers.hidden, buffers.hidden, call.hidden, norm, panel);
        watch.lap(sb::NORM_LAP);
      }
    }
#pragma omp for schedule(static) nowait
    for (int64_t panel = 0; panel < tokens.panels; panel++) {
      Stopwatch watch;
      store_paired(buffers.hidden.panel(panel), call.hidden, tokens, panel, y);
      watch.lap(sb::LAYOUT_LAP);
    }
    if (call.pooled) {
#pragma omp for schedule(static)
      for (int64_t first = 0; first < call.sequences; first += PAIRED_TOKENS) {
        Stopwatch watch;
        pool_paired(call, tokens, buffers.hidden, first);
        watch.lap(sb::POOLER_LAP);
      }
    }
  }
}

inline void paired_encoder(const sb_encoder_call& call) {
  call.x_dtype == SB_F32 ? paired_encoder<float>(call) : paired_encoder<uint16_t>(call);
}

}  // namespace SB_ISA
