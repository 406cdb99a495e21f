// Attention of one head over one sequence, on paired panels.
//
// Scores are computed transposed, scores[key][query], with queries as lanes: softmax runs down the rows without
// horizontal sums, and pairs of its rows are the lines that the product with the values reads. Keys and values are the
// left operands. They are copied, once for each head, into tiles of 16 rows x 32 columns, like those of the weights:
// the keys transposed (columns are features), the values as they are (columns are tokens). Tiles begin at the first
// token of the sequence, so that its place in the batch changes no bit.
#pragma once
#include "paired_tokens.h"
#include "score_bias.h"
#include "tile_products.h"

namespace SB_ISA {

// 2^x for x <= 0 to a relative error of 3e-6; below -125 it stays 2^-125. NaN stays NaN.
SB_INLINE Floats exp2_negative(Floats x) {
  x = larger(splat(-125.0f), x);  // this order of the operands keeps NaN
  // Adding 1.5 * 2^23 rounds to an integer, which the low bits of the sum hold.
  const Floats shifted = x + splat(12582912.0f), r = x - (shifted - splat(12582912.0f));
  Floats p = splat(0.0013395283f);
  p = fused(p, r, splat(0.009618129f));
  p = fused(p, r, splat(0.05550411f));
  p = fused(p, r, splat(0.24022651f));
  p = fused(p, r, splat(0.6931472f));
  p = fused(p, r, splat(1.0f));
  return reinterpret_cast<Floats>(reinterpret_cast<Line>(p) + (reinterpret_cast<Line>(shifted) << 23));
}

// One head: first row of its query, key and value among those of the projections, and of its context. Widths are
// multiples of 32.
struct PairedHead {
  int64_t query, key, value, context;
  int64_t score_width, value_width;
};

// Lines of 16 tokens that need not begin with a paired panel.
struct ShiftedPanel {
  const uint16_t *first, *second;
  Line order;
  bool shifted;

  // Sixteen tokens from `token` on; those past the panel that holds the token before `end` are undefined.
  ShiftedPanel(const Paired& x, int64_t token, int64_t end) {
    const int64_t panel = token / PAIRED_TOKENS, last = (end - 1) / PAIRED_TOKENS;
    const auto shift = static_cast<uint32_t>(token % PAIRED_TOKENS);
    shifted = shift != 0;
    first = x.panel(panel < last ? panel : last);
    second = x.panel(panel < last ? panel + 1 : last);
    order = Line{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + shift;
  }
  SB_INLINE Line line(int64_t feature) const {
    const Line a = load_line(first + feature * PAIRED_TOKENS);
    return shifted ? __builtin_shuffle(a, load_line(second + feature * PAIRED_TOKENS), order) : a;
  }
};

// Tiles [keys / 16][features / 32] of the keys.
inline void key_tiles(const Paired& x, int64_t feature, int64_t width, const TokenRange& tokens, uint16_t* tiles) {
  for (int64_t key = tokens.begin; key < tokens.end; key += PAIRED_TOKENS) {
    const ShiftedPanel panel(x, key, tokens.end);
    for (int64_t f = 0; f < width; f += PAIRED_FEATURES, tiles += TILE_VALUES) {
      Line lines[16], rows[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) lines[i] = panel.line(feature + f + 2 * i);
      transpose(lines, rows);
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) store_line(tiles + i * LINE_VALUES, rows[i]);
    }
  }
}

// Tiles [keys / 32][features / 16] of the values. Keys past the last are zero: their weights are zero too, but zero
// times a neighbour's NaN is not.
inline void value_tiles(const Paired& x, int64_t feature, int64_t width, const TokenRange& tokens, uint16_t* tiles) {
  typedef uint16_t Halves __attribute__((vector_size(64)));
  const Halves evens = {0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
                        32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
  for (int64_t key = tokens.begin; key < tokens.end; key += 32) {
    const ShiftedPanel low(x, key, tokens.end), high(x, key + PAIRED_TOKENS, tokens.end);
    const Ints lane = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
    const int32_t rest = static_cast<int32_t>(tokens.end - key < 32 ? tokens.end - key : 32);
    const Line keep = (reinterpret_cast<Line>(lane < rest) & 0xffffu) | (reinterpret_cast<Line>(lane + 1 < rest) << 16);
    for (int64_t f = 0; f < width; f += 2, tiles += 2 * LINE_VALUES) {
      const auto first = reinterpret_cast<Halves>(low.line(feature + f));
      const auto second = reinterpret_cast<Halves>(high.line(feature + f));
      store_line(tiles, reinterpret_cast<Line>(__builtin_shuffle(first, second, evens)) & keep);
      store_line(tiles + LINE_VALUES, reinterpret_cast<Line>(__builtin_shuffle(first, second, evens + 1)) & keep);
    }
  }
}

// Adds `bias` to the scores: that of lane j of the first key is bias[j], each further key begins one value earlier.
inline void add_bias_paired(float* scores, int64_t keys, const float* bias) {
  for (int64_t key = 0; key < keys; key++, scores += PAIRED_TOKENS)
    store_floats(scores, load_floats(scores) + *reinterpret_cast<const LooseFloats*>(bias - key));
}

// weights[key / 2][query][key % 2] = exp(scale * (score - highest score)), zeros past the last key up to a multiple of
// 32; returns the sums' inverses. `scale` includes log2(e). WINDOWED weights of tokens OUTSIDE are exactly 0, so that
// it does not matter which of them were computed.
template <bool WINDOWED>
Floats paired_softmax(const float* scores, int64_t keys, float scale, uint16_t* weights) {
  Floats highest[4];
  for (Floats& each : highest) each = load_floats(scores);
  int64_t key = 1;
  for (; key + 4 <= keys; key += 4)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) highest[i] = larger(load_floats(scores + (key + i) * PAIRED_TOKENS), highest[i]);
  for (; key < keys; key++) highest[0] = larger(load_floats(scores + key * PAIRED_TOKENS), highest[0]);
  const Floats most = larger(larger(highest[0], highest[1]), larger(highest[2], highest[3]));
  const Floats top = most * splat(-scale), outside = most + OUTSIDE / 2;
  Floats even_sum{}, odd_sum{};
  auto weight = [&](int64_t k) {
    const Floats score = load_floats(scores + k * PAIRED_TOKENS), power = exp2_negative(fused(score, splat(scale), top));
    if constexpr (WINDOWED) return score < outside ? Floats{} : power;
    return power;
  };
  for (key = 0; key + 2 <= keys; key += 2) {
    const Floats even = weight(key), odd = weight(key + 1);
    even_sum += even;
    odd_sum += odd;
    store_line(weights + key * PAIRED_TOKENS, pair(even, odd));
  }
  if (key < keys) {
    const Floats even = weight(key);
    even_sum += even;
    store_line(weights + key * PAIRED_TOKENS, pair(even, Floats{}));
    key += 2;
  }
  for (; key % 32; key += 2) store_line(weights + key * PAIRED_TOKENS, Line{});
  return splat(1.0f) / (even_sum + odd_sum);
}

// Writes the tokens [from, to) of a line only: the others belong to sequences of other threads.
SB_INLINE void store_tokens(uint16_t* p, Line line, int from, int to) {
  if (from == 0 && to == PAIRED_TOKENS) return store_line(p, line);
#if defined(__AVX512F__)
  const auto mask = static_cast<__mmask16>((1u << to) - (1u << from));
  _mm512_mask_store_epi32(p, mask, reinterpret_cast<__m512i>(line));
#else
  for (int i = from; i < to; i++) {
    const uint32_t both = line[i];
    memcpy(p + 2 * i, &both, 4);
  }
#endif
}

// Attention of one head over the tokens of one sequence.
inline void paired_attention(const Paired& projected, const Paired& context, const PairedHead& head, float scale,
                             const ScoreBias& bias, const TokenRange& tokens) {
  static thread_local Scratch scratch;
  const int64_t keys = tokens.count(), tiles = (keys + 15) / 16, steps = (keys + 31) / 32;
  const int64_t score_steps = head.score_width / PAIRED_FEATURES, value_rows = head.value_width / 16;
  const int64_t key_values = tiles * 16 * head.score_width, value_values = steps * 32 * head.value_width;
  const int64_t floats = 16 * PAIRED_TOKENS * (tiles + value_rows);
  auto* scores = static_cast<float*>(
      scratch.get(sizeof(float) * floats + 2 * (key_values + value_values + steps * 32 * PAIRED_TOKENS)));
  float* sums = scores + 16 * PAIRED_TOKENS * tiles;
  auto* key_data = reinterpret_cast<uint16_t*>(scores + floats);
  uint16_t *value_data = key_data + key_values, *weights = value_data + value_values;
  key_tiles(projected, head.key, head.score_width, tokens, key_data);
  value_tiles(projected, head.value, head.value_width, tokens, value_data);
  for (int64_t at = tokens.begin / PAIRED_TOKENS * PAIRED_TOKENS; at < tokens.end; at += PAIRED_TOKENS) {
    const int64_t panel = at / PAIRED_TOKENS;
    // The keys that these queries may attend to, in whole k-steps of the values.
    int64_t first = 0, last = keys;
    if (bias.window >= 0) {
      first = at - bias.window - tokens.begin > 0 ? (at - bias.window - tokens.begin) / 32 * 32 : 0;
      last = smaller(keys, (at + PAIRED_TOKENS + bias.window - tokens.begin + 31) / 32 * 32);
    }
    const int64_t first_tile = first / 16, last_tile = (last + 15) / 16, first_step = first / 32;
    tile_products({key_data + first_tile * score_steps * TILE_VALUES, score_steps * TILE_VALUES, TILE_VALUES},
                  last_tile - first_tile, projected.panel(panel) + head.query * PAIRED_TOKENS, score_steps, scores);
    if (bias.line) add_bias_paired(scores, last - first, bias.line + at - tokens.begin - first);
    const float rate = scale * 1.44269504f;
    const Floats inverse = bias.window >= 0 ? paired_softmax<true>(scores, last - first, rate, weights)
                                            : paired_softmax<false>(scores, last - first, rate, weights);
    tile_products({value_data + first_step * value_rows * TILE_VALUES, TILE_VALUES, value_rows * TILE_VALUES},
                  value_rows, weights, (last + 31) / 32 - first_step, sums);
    const int from = tokens.begin > at ? static_cast<int>(tokens.begin - at) : 0;
    const int to = tokens.end - at < PAIRED_TOKENS ? static_cast<int>(tokens.end - at) : PAIRED_TOKENS;
    uint16_t* out = context.panel(panel) + head.context * PAIRED_TOKENS;
    for (int64_t f = 0; f < head.value_width; f += 2) {
      const Floats even = load_floats(sums + f * 16) * inverse, odd = load_floats(sums + f * 16 + 16) * inverse;
      store_tokens(out + f * PAIRED_TOKENS, pair(even, odd), from, to);
    }
  }
}

}  // namespace SB_ISA
