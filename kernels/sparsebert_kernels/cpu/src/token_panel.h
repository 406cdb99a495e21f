// Token panels: a tile of tokens stored by feature, so that the SIMD lanes are tokens.
//
// A token panel of T vectors holds T * LANES tokens: token_panel[feature][token]. Loading transposes activations;
// storing transposes results back and applies the activation function.
#pragma once
#include "activation.h"

namespace SB_ISA {

constexpr int LANES = Simd::LANES;

SB_INLINE float to_float(float v) { return v; }
SB_INLINE float to_float(uint16_t v) { return from_bf16(v); }
SB_INLINE void from_float(float* p, float v) { *p = v; }
SB_INLINE void from_float(uint16_t* p, float v) { *p = to_bf16(v); }

// token_panel[k - begin][token] = x[token][k] for k in [begin, end); tokens past `tokens` are zero.
template <int T, class X>
void load_token_panel(const X* x, int64_t stride, int64_t tokens, int64_t begin, int64_t end, float* token_panel) {
  constexpr int WIDTH = T * LANES;
  for (int group = 0; group < WIDTH; group += LANES) {
    const X* rows = x + group * stride;
    const int valid = tokens - group < LANES ? static_cast<int>(tokens > group ? tokens - group : 0) : LANES;
    Simd::F square[LANES];
    int64_t k = begin;
    for (; k + LANES <= end; k += LANES) {
      if (valid == LANES) {
        Simd::load_transposed(rows + k, stride, square);
      } else {
        X padded[LANES * LANES] = {};
        for (int j = 0; j < valid; j++) memcpy(padded + j * LANES, rows + j * stride + k, sizeof(X) * LANES);
        Simd::load_transposed(padded, LANES, square);
      }
#pragma GCC unroll 16
      for (int i = 0; i < LANES; i++) Simd::store(token_panel + (k - begin + i) * WIDTH + group, square[i]);
    }
    for (; k < end; k++)
      for (int j = 0; j < LANES; j++)
        token_panel[(k - begin) * WIDTH + group + j] = j < valid ? to_float(rows[j * stride + k]) : 0.0f;
  }
}

// y[token][n] = activation(token_panel[n][token]) for n in [0, features); rows of y are `stride` apart.
template <int T, int ACTIVATION, class Y>
void store_token_panel_activated(const float* token_panel, int64_t tokens, int64_t features, Y* y, int64_t stride) {
  constexpr int WIDTH = T * LANES;
  for (int group = 0; group < WIDTH && group < tokens; group += LANES) {
    const int valid = tokens - group < LANES ? static_cast<int>(tokens - group) : LANES;
    Y* rows = y + group * stride;
    Simd::F square[LANES];
    int64_t n = 0;
    for (; n + LANES <= features; n += LANES) {
      Simd::load_transposed(token_panel + n * WIDTH + group, WIDTH, square);
      if (valid == LANES) {
#pragma GCC unroll 16
        for (int j = 0; j < LANES; j++) Simd::storeu(rows + j * stride + n, activate<ACTIVATION>(square[j]));
      } else {
        for (int j = 0; j < valid; j++) Simd::storeu(rows + j * stride + n, activate<ACTIVATION>(square[j]));
      }
    }
    for (; n < features; n++) {
      alignas(64) float lanes[LANES];
      Simd::store(lanes, activate<ACTIVATION>(Simd::load(token_panel + n * WIDTH + group)));
      for (int j = 0; j < valid; j++) from_float(rows + j * stride + n, lanes[j]);
    }
  }
}

template <int T, class Y>
void store_token_panel(const float* token_panel, int64_t tokens, int64_t features, int activation, Y* y,
                       int64_t stride) {
  switch (activation) {
    case SB_RELU: return store_token_panel_activated<T, SB_RELU>(token_panel, tokens, features, y, stride);
    case SB_GELU: return store_token_panel_activated<T, SB_GELU>(token_panel, tokens, features, y, stride);
    case SB_GELU_TANH: return store_token_panel_activated<T, SB_GELU_TANH>(token_panel, tokens, features, y, stride);
    default: return store_token_panel_activated<T, SB_NONE>(token_panel, tokens, features, y, stride);
  }
}

}  // namespace SB_ISA
