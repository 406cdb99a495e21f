// Gated activations on paired panels, in fp32.
#pragma once
#include "row_panel.h"

namespace SB_ISA {

// y = activation(first half of x) * second half, for the `count` features of a half, an even number; features of y past
// them become zero.
inline void gate_paired(const uint16_t* x, uint16_t* y, int64_t count, int64_t padded, int activation) {
  with_activation(activation, [&](auto kind) {
    for (int64_t i = 0; i < count / 2; i++) {
      const Line value = load_line(x + i * LINE_VALUES), gate = load_line(x + (count / 2 + i) * LINE_VALUES);
      Floats values[] = {even_of(value), odd_of(value)};
      activate_paired<decltype(kind)::VALUE>(values);
      store_line(y + i * LINE_VALUES, pair(values[0] * even_of(gate), values[1] * odd_of(gate)));
    }
  });
  for (int64_t i = count / 2; i < padded / 2; i++) store_line(y + i * LINE_VALUES, Line{});
}

}  // namespace SB_ISA
