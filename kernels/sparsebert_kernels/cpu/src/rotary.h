// Rotary positions: pairs of rows of query and key, half a head apart, rotated by angles that grow with the position.
#pragma once
#include "packed_tokens.h"

namespace SB_ISA {

// Rotates `heads` heads of `size` rows, from row `first` of the token panels [begin, end) on. `table` has the cosines
// and the sines of each position: [positions, size].
inline void rotate(const float* table, const KeptTokens& tokens, int64_t length, const Panels& projected,
                   int64_t first, int64_t heads, int64_t size, int64_t begin, int64_t end) {
  static thread_local Scratch scratch;
  float* angles = static_cast<float*>(scratch.get(sizeof(float) * size * LANES));
  const int64_t half = size / 2;
  Writer<float> exact;
  Writer<Stored> writer;
  for (int64_t tile = begin; tile < end; tile++) {
    const int64_t width = projected.width(tile);
    for (int64_t column = 0; column < width; column += LANES) {
      const float* rows[LANES];
      for (int j = 0; j < LANES; j++) {
        const int64_t token = tile * PANEL_TOKENS + column + j;
        rows[j] = token < tokens.count ? table + tokens.rows[token] % length * size : nullptr;
      }
      load_lanes(size, angles, LANES, exact, [&](int j, int64_t k, int64_t valid, float* square) {
        load_row(rows[j], k, valid, square);
      });
      Stored* head = projected.token_panel(tile) + first * width + column;
      for (int64_t h = 0; h < heads; h++, head += size * width)
        for (int64_t i = 0; i < half; i++) {
          const Simd::F cosine = Simd::load(angles + i * LANES), sine = Simd::load(angles + (half + i) * LANES);
          Stored *low = head + i * width, *high = head + (half + i) * width;
          const Simd::F x = load_values(low), y = load_values(high);
          writer.store(low, x * cosine - y * sine);
          writer.store(high, y * cosine + x * sine);
        }
    }
  }
  projected.note(writer);
}

}  // namespace SB_ISA
