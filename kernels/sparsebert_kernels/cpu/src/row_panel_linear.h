// The linear layer over row panels: row-major activations in and out, paired panels between.
#pragma once
#include "row_panel.h"
#include "scratch.h"

namespace SB_ISA {

// The bias of a weight as floats, with zeros up to whole lines.
inline const float* paired_bias(const sb_weight& w, float* buffer) {
  const int64_t rows = whole_lines(w.out_features);
  if (w.bias && w.bias_dtype == SB_F32 && rows == w.out_features) return static_cast<const float*>(w.bias);
  for (int64_t n = 0; n < rows; n++) {
    if (n >= w.out_features || !w.bias) buffer[n] = 0.0f;
    else if (w.bias_dtype == SB_F32) buffer[n] = static_cast<const float*>(w.bias)[n];
    else buffer[n] = from_bf16(static_cast<const uint16_t*>(w.bias)[n]);
  }
  return buffer;
}

template <class X>
void row_panel_linear(const sb::LinearCall& call) {
  static thread_local Scratch bias_scratch;
  const int64_t in_features = call.weights[0].in_features, paired = whole_lines(in_features);
  const int64_t inner = (in_features + QUAD_FEATURES - 1) / QUAD_FEATURES * QUAD_FEATURES;
  int64_t most_rows = 0, all_rows = 0;
  sb_weight weights[sb::MAX_WEIGHTS];
  for (int i = 0; i < call.count; i++) {
    const int64_t rows = whole_lines(call.weights[i].out_features);
    most_rows = rows > most_rows ? rows : most_rows;
    all_rows += rows;
  }
  float* buffer = static_cast<float*>(bias_scratch.get(sizeof(float) * all_rows));
  for (int i = 0; i < call.count; i++) {
    weights[i] = call.weights[i];
    weights[i].bias = paired_bias(call.weights[i], buffer);
    weights[i].bias_dtype = SB_F32;
    buffer += whole_lines(weights[i].out_features);
  }
  const int64_t panels = paired_panels(call.tokens), chunk = 8;
#pragma omp parallel for schedule(dynamic, 1) num_threads(call.threads) if (call.threads > 1)
  for (int64_t begin = 0; begin < panels; begin += chunk) {
    static thread_local Scratch scratch;
    const int64_t end = begin + chunk < panels ? begin + chunk : panels;
    auto* memory = static_cast<uint16_t*>(scratch.get(2 * PAIRED_TOKENS * chunk * (inner + most_rows)));
    const Paired x{memory, inner, begin}, y{memory + PAIRED_TOKENS * chunk * inner, most_rows, begin};
    for (int64_t t = begin; t < end; t++) {
      pair_rows(static_cast<const X*>(call.x) + t * PAIRED_TOKENS * call.stride, call.stride,
                call.tokens - t * PAIRED_TOKENS, in_features, x.panel(t));
      memset(x.panel(t) + paired * PAIRED_TOKENS, 0, sizeof(uint16_t) * (inner - paired) * PAIRED_TOKENS);
    }
    for (int i = 0; i < call.count; i++) {
      const sb_weight& w = weights[i];
      paired_linear(w, x, y, 0, call.activation, begin, end);
      for (int64_t t = begin; t < end; t++)
        unpair_rows(y.panel(t), call.tokens - t * PAIRED_TOKENS, w.out_features,
                    static_cast<X*>(w.y) + t * PAIRED_TOKENS * w.out_features, w.out_features);
    }
  }
}

inline void row_panel_linear(const sb::LinearCall& call) {
  call.x_dtype == SB_F32 ? row_panel_linear<float>(call) : row_panel_linear<uint16_t>(call);
}

}  // namespace SB_ISA
