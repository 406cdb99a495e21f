// Quads: int8 activations, four features side by side, with a scale for each token.
//
// panel[feature / 4][token][feature % 4]: a line of 64 bytes is four features of 16 tokens.
#pragma once
#include "int8_rounding.h"
#include "paired.h"

namespace SB_ISA {

constexpr int QUAD_FEATURES = 64;  // features of a panel of quads are a multiple of it

// One panel of quads and its 16 scales from one paired panel; `features` is a multiple of 64.
inline void quantize_panel(const uint16_t* panel, int64_t features, int8_t* quads, float* scales) {
  typedef uint16_t Halves __attribute__((vector_size(64), may_alias));
  Halves most[4] = {};  // magnitudes order like integers, NaN above infinity
  for (int64_t f = 0; f < features; f += 8)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const Halves values = reinterpret_cast<Halves>(load_line(panel + (f + 2 * i) * PAIRED_TOKENS)) & 0x7fffu;
      most[i] = values > most[i] ? values : most[i];
    }
#pragma GCC unroll 3
  for (int i = 1; i < 4; i++) most[0] = most[i] > most[0] ? most[i] : most[0];
  const Line both = reinterpret_cast<Line>(most[0]), even = both << 16, odd = both & 0xffff0000u;
  const Line top = even > odd ? even : odd;
  const auto finite = top < 0x7f800000u;
  const Floats limit = larger(reinterpret_cast<Floats>(top), splat(SMALLEST_MOST)), levels = splat(127.0f);
  const Floats rate = finite ? levels / limit : Floats{};
  store_floats(scales, finite ? limit / levels : splat(__builtin_nanf("")));
  for (int64_t f = 0; f < features; f += 4) {
    const Line a = load_line(panel + f * PAIRED_TOKENS), b = load_line(panel + (f + 2) * PAIRED_TOKENS);
    auto rounded = [&](Floats x) { return reinterpret_cast<Line>(fused(x, rate, splat(ROUNDER))); };
    store_line(quads + f * PAIRED_TOKENS, (rounded(even_of(a)) & 0xffu) | (rounded(odd_of(a)) & 0xffu) << 8 |
                                              (rounded(even_of(b)) & 0xffu) << 16 | rounded(odd_of(b)) << 24);
  }
}

}  // namespace SB_ISA
