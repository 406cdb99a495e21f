// Attention of one head over one sequence, on token panels.
//
// Scores are computed transposed, scores[key][query], with queries as lanes: softmax runs down the rows without
// horizontal sums, keys and values are read one by one and broadcast, and nothing is transposed.
#pragma once
#include "score_bias.h"
#include "token_panels.h"

namespace SB_ISA {

// exp(x) for x <= 0 to a relative error of 2e-7; below -87 it stays exp(-87). NaN stays NaN.
SB_INLINE Simd::F exp_negative(Simd::F x) {
  typedef uint32_t U __attribute__((vector_size(LANES * 4)));
  static const float coefficients[] = {1.9875691e-4f, 1.3981999e-3f, 8.3334519e-3f, 4.1665796e-2f,
                                       1.6666665e-1f, 5.0000001e-1f, 1.0f,          1.0f};
  x = Simd::max(Simd::set1(-87.0f), x);  // this order of the operands keeps NaN
  // Adding 1.5 * 2^23 rounds to an integer, which the low bits of the sum hold.
  const Simd::F shifter = Simd::set1(12582912.0f), shifted = x * Simd::set1(1.44269504f) + shifter;
  const Simd::F n = shifted - shifter;
  const Simd::F r = (x - n * Simd::set1(0.693359375f)) + n * Simd::set1(2.12194440e-4f);
  const U power = (reinterpret_cast<U>(shifted) << 23) + reinterpret_cast<U>(Simd::set1(1.0f));
  return horner(r, coefficients, 8) * reinterpret_cast<Simd::F>(power);
}

// Scores of R keys, lanes k[0 .. R), and V vectors of queries.
template <int R, int V>
SB_INLINE void score_tile(const float* q, int64_t q_width, const float* k, int64_t k_width, int64_t features,
                          float* scores) {
  Simd::F sums[R][V] = {};
  for (int64_t f = 0; f < features; f++, q += q_width, k += k_width) {
    Simd::F query[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) query[v] = Simd::load(q + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const Simd::F key = Simd::set1(k[r]);
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) sums[r][v] += key * query[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) Simd::store(scores + (r * V + v) * LANES, sums[r][v]);
}

// sums[row] += value of feature `row` * weights, over `keys` neighbouring keys.
template <int R, int V>
SB_INLINE void value_tile(const float* values, int64_t v_width, int64_t keys, const float* weights,
                          Simd::F (&sums)[R][V]) {
  for (int64_t key = 0; key < keys; key++, weights += V * LANES) {
    Simd::F weight[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) weight[v] = Simd::load(weights + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const Simd::F value = Simd::set1(values[r * v_width + key]);
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) sums[r][v] += value * weight[v];
    }
  }
}

// Adds `bias` to the scores: that of lane j of the first key is bias[j], each further key begins one value earlier.
template <int V>
SB_INLINE void add_bias(float* scores, int64_t keys, const float* bias) {
  for (int64_t key = 0; key < keys; key++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
      float* at = scores + (key * V + v) * LANES;
      Simd::store(at, Simd::load(at) + Simd::loadu(bias - key + v * LANES));
    }
}

// Replaces scores[keys][V vectors] by exp(scale * (score - maximum)); returns the sums' inverses. WINDOWED weights of
// tokens OUTSIDE are exactly 0, so that it does not matter which of them were computed.
template <int V, bool WINDOWED>
SB_INLINE void softmax(float* scores, int64_t keys, float scale, Simd::F (&inverse)[V]) {
  Simd::F highest[V], sum[V] = {};
  for (int v = 0; v < V; v++) highest[v] = Simd::load(scores + v * LANES);
  for (int64_t key = 1; key < keys; key++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) highest[v] = Simd::max(highest[v], Simd::load(scores + (key * V + v) * LANES));
  for (int64_t key = 0; key < keys; key++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
      float* at = scores + (key * V + v) * LANES;
      const Simd::F difference = Simd::load(at) - highest[v];
      Simd::F weight = exp_negative(difference * Simd::set1(scale));
      if constexpr (WINDOWED) weight = difference < Simd::set1(OUTSIDE / 2) ? Simd::F{} : weight;
      sum[v] += weight;
      Simd::store(at, weight);
    }
  for (int v = 0; v < V; v++) inverse[v] = Simd::set1(1.0f) / sum[v];
}

// One head: rows of its query, key, value in the token panels of the projections, and of its context.
struct Head {
  int64_t query, key, value, context;  // first row of each
  int64_t score_width, value_width;
};

// Writes the lanes [from, to) of a vector only: the others belong to sequences of other threads.
SB_INLINE void store_lanes(Stored* p, Simd::F vector, int from, int to) {
  Writer<Stored> writer;  // means of values in range: not to be checked
  if (from == 0 && to == LANES) return writer.store(p, vector);
  alignas(64) Stored lanes[LANES];
  writer.store(lanes, vector);
  for (int lane = from; lane < to; lane++) p[lane] = lanes[lane];
}

// Attends from V vectors of queries, which begin at token `at`, to the tokens [begin, end) of their sequence.
template <int V>
void attend(const PanelsOf<float>& projected, const Panels& context, const Head& head, float scale, const ScoreBias& bias,
            int64_t at, int64_t begin, int64_t end, float* scores) {
  const auto query = projected.row(head.query, at);
  int64_t first = begin, last = end;
  if (bias.window >= 0) {
    if (at - bias.window > first) first = at - bias.window;
    if (at + V * LANES + bias.window < last) last = at + V * LANES + bias.window;
  }
  for (int64_t key = first; key < last;) {
    const auto keys = projected.row(head.key, key);
    const int64_t piece = last - key < keys.rest ? last - key : keys.rest;
    float* to = scores + (key - first) * V * LANES;
    int64_t i = 0;
#define SB_SCORES(R)                                                                                          \
  for (; i + R <= piece; i += R)                                                                              \
    score_tile<R, V>(query.data, query.width, keys.data + i, keys.width, head.score_width, to + i * V * LANES);
    SB_SCORES(8) SB_SCORES(4) SB_SCORES(1)
#undef SB_SCORES
    key += piece;
  }
  Simd::F inverse[V];
  if (bias.line) add_bias<V>(scores, last - first, bias.line + at - first);
  if (bias.window >= 0) softmax<V, true>(scores, last - first, scale, inverse);
  else softmax<V, false>(scores, last - first, scale, inverse);
  const PanelRow out = context.row(head.context, at);
  int64_t feature = 0;
#define SB_VALUES(R)                                                                                          \
  for (; feature + R <= head.value_width; feature += R) {                                                     \
    Simd::F sums[R][V] = {};                                                                                  \
    for (int64_t key = first; key < last;) {                                                                  \
      const auto values = projected.row(head.value + feature, key);                                           \
      const int64_t piece = last - key < values.rest ? last - key : values.rest;                              \
      value_tile<R, V>(values.data, values.width, piece, scores + (key - first) * V * LANES, sums);           \
      key += piece;                                                                                           \
    }                                                                                                         \
    for (int v = 0; v < V; v++) {                                                                             \
      const int64_t token = at + v * LANES;                                                                   \
      const int from = begin > token ? static_cast<int>(begin - token) : 0;                                   \
      const int to = end - token < LANES ? static_cast<int>(end - token) : LANES;                             \
      for (int r = 0; r < R; r++)                                                                             \
        store_lanes(out.data + (feature + r) * out.width + v * LANES, sums[r][v] * inverse[v], from, to);     \
    }                                                                                                         \
  }
  SB_VALUES(8) SB_VALUES(4) SB_VALUES(1)
#undef SB_VALUES
}

// Query, key and value of a head for the tokens [begin, end) in fp32; `head` becomes their rows.
template <class Value>
PanelsOf<float> in_fp32(const PanelsOf<Value>& projected, Head& head, int64_t begin, int64_t end) {
  if constexpr (sizeof(Value) == sizeof(float)) {
    return projected;
  } else {
    static thread_local Scratch scratch;
    const int64_t first = begin / PANEL_TOKENS, last = (end - 1) / PANEL_TOKENS;
    const int64_t features = 2 * head.score_width + head.value_width;
    auto* memory = static_cast<float*>(scratch.get(sizeof(float) * (last - first + 1) * PANEL_TOKENS * features));
    const PanelsOf<float> wide{projected.layout, memory, features, first};
    const int64_t from[] = {head.query, head.key, head.value}, to[] = {0, head.score_width, 2 * head.score_width};
    for (int64_t tile = first; tile <= last; tile++) {
      const int64_t token = tile * PANEL_TOKENS, width = wide.width(tile);
      const int64_t left = begin > token ? (begin - token) / LANES * LANES : 0;
      const int64_t right = end - token < width ? end - token : width;
      for (int i = 0; i < 3; i++)
        for (int64_t row = 0; row < (i < 2 ? head.score_width : head.value_width); row++)
          for (int64_t column = left; column < right; column += LANES)
            Simd::store(wide.token_panel(tile) + (to[i] + row) * width + column,
                        load_values(projected.token_panel(tile) + (from[i] + row) * width + column));
    }
    head.query = to[0];
    head.key = to[1];
    head.value = to[2];
    return wide;
  }
}

// Attention of one head over the tokens [begin, end).
inline void attention_head(const Panels& stored, const Panels& context, Head head, float scale, const ScoreBias& bias,
                           int64_t begin, int64_t end) {
  static thread_local Scratch scratch;
  const PanelsOf<float> projected = in_fp32(stored, head, begin, end);
  float* scores = static_cast<float*>(scratch.get(size_t{4} * (end - begin) * 2 * LANES));
  // Vectors of queries two at a time, as far as they lie in one token panel.
  for (int64_t at = begin / LANES * LANES; at < end;) {
    const bool two = at + LANES < end && projected.row(0, at).rest > LANES;
    if (two) attend<2>(projected, context, head, scale, bias, at, begin, end, scores);
    else attend<1>(projected, context, head, scale, bias, at, begin, end, scores);
    at += two ? 2 * LANES : LANES;
  }
}

}  // namespace SB_ISA
