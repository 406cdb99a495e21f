// Residual addition and LayerNorm on paired panels, in fp32: sums run down the features, one lane a token.
#pragma once
#include "paired.h"
#include "scratch.h"

namespace SB_ISA {

struct PairedNorm {
  const float *gamma, *beta;
  float epsilon;
};

// What a LayerNorm normalizes: x, x + y, or x + y that x becomes as well.
enum PairedSum { X_ALONE, X_PLUS_Y, X_BECOMES_SUM };

// y = LayerNorm over `features` features of one paired panel; x may be y. `sums` has room for all of them. Features of
// y up to `padded` become zero.
template <PairedSum SUM>
void norm_paired(uint16_t* x, uint16_t* y, int64_t features, int64_t padded, const PairedNorm& norm, float* sums) {
  Floats even_sum{}, odd_sum{};
  const int64_t pairs = features / 2, lines = (features + 1) / 2;
  for (int64_t i = 0; i < lines; i++) {
    const Line a = load_line(x + i * LINE_VALUES);
    Floats even = even_of(a), odd = odd_of(a);
    if constexpr (SUM != X_ALONE) {
      const Line b = load_line(y + i * LINE_VALUES);
      even += even_of(b);
      odd += odd_of(b);
    }
    if (i >= pairs) odd = Floats{};
    if constexpr (SUM == X_BECOMES_SUM) store_line(x + i * LINE_VALUES, pair(even, odd));
    store_floats(sums + 32 * i, even);
    store_floats(sums + 32 * i + 16, odd);
    even_sum += even;
    odd_sum += odd;
  }
  const Floats share = splat(1.0f / static_cast<float>(features)), mean = (even_sum + odd_sum) * share;
  Floats even_squares{}, odd_squares{};
  for (int64_t i = 0; i < lines; i++) {
    const Floats even = load_floats(sums + 32 * i) - mean;
    const Floats odd = i < pairs ? load_floats(sums + 32 * i + 16) - mean : Floats{};
    even_squares = fused(even, even, even_squares);
    odd_squares = fused(odd, odd, odd_squares);
  }
  const Floats variance = fused(even_squares + odd_squares, share, splat(norm.epsilon));
  const Floats rate = splat(1.0f) / square_root(variance);
  for (int64_t i = 0; i < lines; i++) {
    const Floats even = (load_floats(sums + 32 * i) - mean) * rate;
    const Floats odd = (load_floats(sums + 32 * i + 16) - mean) * rate;
    Floats odd_result{};
    if (i < pairs) odd_result = fused(odd, splat(norm.gamma[2 * i + 1]), splat(norm.beta[2 * i + 1]));
    store_line(y + i * LINE_VALUES, pair(fused(even, splat(norm.gamma[2 * i]), splat(norm.beta[2 * i])), odd_result));
  }
  for (int64_t i = lines; i < padded / 2; i++) store_line(y + i * LINE_VALUES, Line{});
}

// The same for paired panel `panel` of x and y.
template <PairedSum SUM>
void norm_paired(const Paired& x, const Paired& y, int64_t features, const PairedNorm& norm, int64_t panel) {
  static thread_local Scratch scratch;
  float* sums = static_cast<float*>(scratch.get(sizeof(float) * PAIRED_TOKENS * (features + 1)));
  norm_paired<SUM>(x.panel(panel), y.panel(panel), features, y.features, norm, sums);
}

// x += y for paired panel `panel`.
inline void add_paired(const Paired& x, const Paired& y, int64_t features, int64_t panel) {
  uint16_t* to = x.panel(panel);
  const uint16_t* from = y.panel(panel);
  for (int64_t i = 0; i < (features + 1) / 2; i++) {
    const Line a = load_line(to + i * LINE_VALUES), b = load_line(from + i * LINE_VALUES);
    store_line(to + i * LINE_VALUES, pair(even_of(a) + even_of(b), odd_of(a) + odd_of(b)));
  }
}

}  // namespace SB_ISA
