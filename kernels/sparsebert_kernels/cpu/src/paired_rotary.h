// Rotary positions on paired panels: pairs of features of query and key, half a head apart, rotated in fp32.
#pragma once
#include "paired_tokens.h"

namespace SB_ISA {

// Rotates `heads` heads of `size` features, from feature `first` of one paired panel on. angles[feature][token] holds
// cosines, then sines.
inline void rotate_paired(const float* angles, uint16_t* panel, int64_t first, int64_t heads, int64_t size) {
  const int64_t half = size / 2;
  uint16_t* head = panel + first * PAIRED_TOKENS;
  for (int64_t h = 0; h < heads; h++, head += size * PAIRED_TOKENS)
    for (int64_t i = 0; i < half; i += 2) {
      const float *cosines = angles + i * PAIRED_TOKENS, *sines = cosines + half * PAIRED_TOKENS;
      uint16_t *low = head + i * PAIRED_TOKENS, *high = low + half * PAIRED_TOKENS;
      const Line x = load_line(low), y = load_line(high);
      Floats rotated_x[2], rotated_y[2];
#pragma GCC unroll 2
      for (int j = 0; j < 2; j++) {
        const Floats cosine = load_floats(cosines + j * PAIRED_TOKENS), sine = load_floats(sines + j * PAIRED_TOKENS);
        const Floats from_x = j ? odd_of(x) : even_of(x), from_y = j ? odd_of(y) : even_of(y);
        rotated_x[j] = fused(from_x, cosine, -(from_y * sine));
        rotated_y[j] = fused(from_y, cosine, from_x * sine);
      }
      store_line(low, pair(rotated_x[0], rotated_x[1]));
      store_line(high, pair(rotated_y[0], rotated_y[1]));
    }
}

// Rotates query and key, which begin at features 0 and `key`. `table` has the cosines and the sines of each position:
// [positions, size].
inline void rotate_paired(const float* table, const PairedTokens& tokens, int64_t length, const Paired& projected,
                          int64_t key, int64_t heads, int64_t size, int64_t panel) {
  static thread_local Scratch scratch;
  float* angles = static_cast<float*>(scratch.get(sizeof(float) * size * PAIRED_TOKENS));
  for (int j = 0; j < PAIRED_TOKENS; j++) {
    const int64_t row = tokens.rows[panel * PAIRED_TOKENS + j];
    const float* from = table + (row < 0 ? 0 : row % length) * size;
    for (int64_t i = 0; i < size; i++) angles[i * PAIRED_TOKENS + j] = from[i];
  }
  rotate_paired(angles, projected.panel(panel), 0, heads, size);
  rotate_paired(angles, projected.panel(panel), key, heads, size);
}

}  // namespace SB_ISA
