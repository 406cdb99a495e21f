// Residual addition and LayerNorm on token panels: sums run down the features, one lane a token.
#pragma once
#include "token_panels.h"

namespace SB_ISA {

struct Norm {
  const float *gamma, *beta;
  float epsilon;
};

// y = LayerNorm(x + residual), or LayerNorm(x) without residual, over `features` rows of T vectors; y may be x. Sums
// with the residual are kept in y where that does not round them, else computed again.
template <int T, bool RESIDUAL>
Writer<Stored> norm_panel(const Stored* x, const Stored* residual, Stored* y, int64_t features, const Norm& norm,
                          Writer<Stored> writer) {
  constexpr int WIDTH = T * LANES;
  constexpr bool EXACT = sizeof(Stored) == sizeof(float);
  auto sum_at = [=](int64_t i) {
    return RESIDUAL ? load_values(x + i) + load_values(residual + i) : load_values(x + i);
  };
  auto value_at = [=](int64_t i) { return EXACT ? load_values(y + i) : sum_at(i); };
  Simd::F sum[T] = {}, squares[T] = {}, mean[T], rate[T];
  for (int64_t f = 0; f < features; f++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      const Simd::F value = sum_at(f * WIDTH + t * LANES);
      if constexpr (EXACT) writer.store(y + f * WIDTH + t * LANES, value);
      sum[t] += value;
    }
  const Simd::F share = Simd::set1(1.0f / static_cast<float>(features));
  for (int t = 0; t < T; t++) mean[t] = sum[t] * share;
  for (int64_t f = 0; f < features; f++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      const Simd::F difference = value_at(f * WIDTH + t * LANES) - mean[t];
      squares[t] += difference * difference;
    }
  for (int t = 0; t < T; t++)
    rate[t] = Simd::set1(1.0f) / Simd::sqrt(squares[t] * share + Simd::set1(norm.epsilon));
  for (int64_t f = 0; f < features; f++) {
    const Simd::F gamma = Simd::set1(norm.gamma[f]), beta = Simd::set1(norm.beta[f]);
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      const int64_t at = f * WIDTH + t * LANES;
      writer.store(y + at, (value_at(at) - mean[t]) * rate[t] * gamma + beta);
    }
  }
  return writer;
}

// y = LayerNorm(x + y) over the token panels [begin, end).
inline void add_norm(const Panels& x, const Panels& y, int64_t features, const Norm& norm, int64_t begin, int64_t end) {
  Writer<Stored> writer;
  for (int64_t tile = begin; tile < end; tile++)
    with_panel_vectors(x.layout->vectors(tile), [&](auto vectors) {
      writer = norm_panel<decltype(vectors)::COUNT, true>(y.token_panel(tile), x.token_panel(tile),
                                                          y.token_panel(tile), features, norm, writer);
    });
  y.note(writer);
}

// y = LayerNorm(x) over the token panels [begin, end); y may be x.
inline void layer_norm(const Panels& x, const Panels& y, int64_t features, const Norm& norm, int64_t begin,
                       int64_t end) {
  Writer<Stored> writer;
  for (int64_t tile = begin; tile < end; tile++)
    with_panel_vectors(x.layout->vectors(tile), [&](auto vectors) {
      writer = norm_panel<decltype(vectors)::COUNT, false>(x.token_panel(tile), nullptr, y.token_panel(tile),
                                                           features, norm, writer);
    });
  y.note(writer);
}

}  // namespace SB_ISA
