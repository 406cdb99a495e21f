// What a head adds to its scores by the distance of two tokens: a bias, or a window that ends its attention.
#pragma once
#include "native.h"
#include "scratch.h"

namespace SB_ISA {

// Added to scores of tokens outside a window; half of it is still below every other score.
constexpr float OUTSIDE = -1e30f;

// line[d] for a query d tokens after its key, divided by the scale, null for nothing; and how far the head attends,
// negative for everywhere.
struct ScoreBias {
  const float* line;
  int64_t window;
};

// Returns the line of a head's bias for distances up to `most`, or null. The next call on this thread overwrites it.
inline const float* bias_line(const sb_layer& layer, int64_t head, int64_t most) {
  static thread_local Scratch scratch;
  if (!layer.relative_bias && layer.window < 0) return nullptr;
  float* line = static_cast<float*>(scratch.get(sizeof(float) * (2 * most + 1))) + most;
  auto fill = [&](int64_t first, int64_t last, float value) {
    for (int64_t d = first; d <= last; d++) line[d] = value;
  };
  if (layer.relative_bias) {
    const int64_t inside = most < layer.reach ? most : layer.reach;
    const float* table = layer.relative_bias + head * (2 * layer.reach + 1) + layer.reach;
    fill(-most, -inside - 1, table[-layer.reach] / layer.scale);
    for (int64_t d = -inside; d <= inside; d++) line[d] = table[d] / layer.scale;
    fill(inside + 1, most, table[layer.reach] / layer.scale);
  } else {
    fill(-most, most, 0.0f);
  }
  if (layer.window >= 0) {
    fill(-most, -layer.window - 1, OUTSIDE);
    fill(layer.window + 1, most, OUTSIDE);
  }
  return line;
}

}  // namespace SB_ISA
