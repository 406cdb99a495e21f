// Panels: a tile of tokens, feature-major, so that tokens are the SIMD lanes.
//
// A panel of T vectors holds T * LANES tokens: panel[feature][token]. Activations enter transposed, results
// leave transposed back, through the activation function.
#pragma once
#include "activation.h"

namespace SB_ISA {

constexpr int LANES = Simd::LANES;

SB_INLINE float to_float(float v) { return v; }
SB_INLINE float to_float(uint16_t v) { return from_bf16(v); }
SB_INLINE void from_float(float* p, float v) { *p = v; }
SB_INLINE void from_float(uint16_t* p, float v) { *p = to_bf16(v); }

// panel[k - begin][token] = x[token][k] for k in [begin, end); tokens past `tokens` are zero.
template <int T, class X>
void panel_in(const X* x, int64_t stride, int64_t tokens, int64_t begin, int64_t end, float* panel) {
  constexpr int WIDTH = T * LANES;
  alignas(64) static const X zeros[LANES] = {};
  for (int group = 0; group < WIDTH; group += LANES) {
    const X* rows[LANES];
    Simd::F square[LANES];
    int64_t k = begin;
    for (; k + LANES <= end; k += LANES) {
      for (int j = 0; j < LANES; j++) rows[j] = group + j < tokens ? x + (group + j) * stride + k : zeros;
      Simd::load_transposed(rows, square);
      for (int i = 0; i < LANES; i++) Simd::store(panel + (k - begin + i) * WIDTH + group, square[i]);
    }
    for (; k < end; k++)
      for (int j = 0; j < LANES; j++)
        panel[(k - begin) * WIDTH + group + j] = group + j < tokens ? to_float(x[(group + j) * stride + k]) : 0.0f;
  }
}

// y[token][n] = activation(panel[n][token]) for n in [0, features); rows of y are `stride` apart.
template <int T, int ACTIVATION, class Y>
void panel_out_activated(const float* panel, int64_t tokens, int64_t features, Y* y, int64_t stride) {
  constexpr int WIDTH = T * LANES;
  for (int group = 0; group < WIDTH && group < tokens; group += LANES) {
    const int64_t valid = tokens - group < LANES ? tokens - group : LANES;
    const float* rows[LANES];
    Simd::F square[LANES];
    int64_t n = 0;
    for (; n + LANES <= features; n += LANES) {
      for (int i = 0; i < LANES; i++) rows[i] = panel + (n + i) * WIDTH + group;
      Simd::load_transposed(rows, square);
      Y* corner = y + group * stride + n;
      for (int j = 0; j < LANES; j++)
        if (j < valid) Simd::storeu(corner + j * stride, activate<ACTIVATION>(square[j]));
    }
    for (; n < features; n++) {
      alignas(64) float lane[LANES];
      Simd::store(lane, activate<ACTIVATION>(Simd::load(panel + n * WIDTH + group)));
      for (int j = 0; j < valid; j++) from_float(y + (group + j) * stride + n, lane[j]);
    }
  }
}

template <int T, class Y>
void panel_out(const float* panel, int64_t tokens, int64_t features, int activation, Y* y, int64_t stride) {
  switch (activation) {
    case SB_RELU: return panel_out_activated<T, SB_RELU>(panel, tokens, features, y, stride);
    case SB_GELU: return panel_out_activated<T, SB_GELU>(panel, tokens, features, y, stride);
    case SB_GELU_TANH: return panel_out_activated<T, SB_GELU_TANH>(panel, tokens, features, y, stride);
    default: return panel_out_activated<T, SB_NONE>(panel, tokens, features, y, stride);
  }
}

}  // namespace SB_ISA
