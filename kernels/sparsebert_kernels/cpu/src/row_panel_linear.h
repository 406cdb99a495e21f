// The linear layer over row panels: row-major activations in and out, paired panels between.
#pragma once
#include "row_panel.h"

namespace SB_ISA {

// Rows of W that threads share out are a multiple: whole row panels, and whole cache lines of y.
constexpr int64_t TASK_ROWS = 64;

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
class RowPanelCall {
 public:
  RowPanelCall(const sb::LinearCall& call, Scratch& scratch)
      : call_(call), panels_(paired_panels(call.tokens)), in_features_(call.weights[0].in_features) {
    inner_ = (in_features_ + QUAD_FEATURES - 1) / QUAD_FEATURES * QUAD_FEATURES;
    int64_t rows = 0;
    for (int i = 0; i < call.count; i++) {
      const int64_t whole = whole_lines(call.weights[i].out_features);
      most_rows_ = whole > most_rows_ ? whole : most_rows_;
      rows += whole;
    }
    float* buffer = static_cast<float*>(scratch.get(sizeof(float) * rows));
    for (int i = 0; i < call.count; i++) {
      weights_[i] = call.weights[i];
      weights_[i].bias = paired_bias(call.weights[i], buffer);
      buffer += whole_lines(weights_[i].out_features);
    }
    chunk_ = smaller(chunk_panels(inner_ + most_rows_), panels_);
  }

  void compute() const {
    const int64_t chunks = (panels_ + chunk_ - 1) / chunk_;
    if (call_.threads == 1 || chunks >= 2 * call_.threads) each_chunk(chunks);
    else each_row_range();
  }

  // x and y in paired panels, on one thread.
  void compute_paired() const {
    const Paired x{static_cast<uint16_t*>(const_cast<void*>(call_.x)), call_.stride};
    for (int i = 0; i < call_.count; i++) {
      const sb_weight& w = weights_[i];
      const Paired y{static_cast<uint16_t*>(w.y), whole_lines(w.out_features)};
      paired_linear(w, x, y, 0, call_.activation, 0, panels_);
    }
  }

 private:
  static int64_t paired_bytes(int64_t panels, int64_t features) {
    return sizeof(uint16_t) * PAIRED_TOKENS * panels * features;
  }
  int64_t tokens_from(int64_t panel) const { return call_.tokens - panel * PAIRED_TOKENS; }

  // Threads share chunks of tokens.
  void each_chunk(int64_t chunks) const {
#pragma omp parallel for schedule(dynamic, 1) num_threads(call_.threads) if (call_.threads > 1)
    for (int64_t i = 0; i < chunks; i++) {
      static thread_local Scratch scratch;
      const int64_t begin = i * chunk_, end = smaller(begin + chunk_, panels_);
      char* memory = static_cast<char*>(scratch.get(paired_bytes(chunk_, inner_ + most_rows_)));
      const Paired x{reinterpret_cast<uint16_t*>(memory), inner_, begin};
      for (int64_t panel = begin; panel < end; panel++) load(x, panel);
      for (int w = 0; w < call_.count; w++)
        rows(w, 0, weights_[w].out_features, x, memory + paired_bytes(chunk_, inner_), begin, end);
    }
  }

  // With too few tokens for the threads, they share the paired panels of x and split the rows of the weights.
  void each_row_range() const {
    static thread_local Scratch shared;
    const Paired x{static_cast<uint16_t*>(shared.get(paired_bytes(panels_, inner_))), inner_};
    const int64_t share = (most_rows_ * call_.count + 4 * call_.threads - 1) / (4 * call_.threads);
    const int64_t part = (share + TASK_ROWS - 1) / TASK_ROWS * TASK_ROWS, parts = (most_rows_ + part - 1) / part;
#pragma omp parallel num_threads(call_.threads)
    {
#pragma omp for schedule(static)
      for (int64_t panel = 0; panel < panels_; panel++) load(x, panel);
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < parts * call_.count; i++) {
        static thread_local Scratch scratch;
        const int w = static_cast<int>(i / parts);
        const int64_t first = i % parts * part, count = smaller(part, weights_[w].out_features - first);
        if (count > 0) rows(w, first, count, x, scratch.get(paired_bytes(panels_, part)), 0, panels_);
      }
    }
  }

  void load(const Paired& x, int64_t panel) const {
    const int64_t whole = whole_lines(in_features_);
    pair_rows(static_cast<const X*>(call_.x) + panel * PAIRED_TOKENS * call_.stride, call_.stride, tokens_from(panel),
              in_features_, x.panel(panel));
    memset(x.panel(panel) + whole * PAIRED_TOKENS, 0, paired_bytes(1, inner_ - whole));
  }

  // `count` rows of a weight from `first` on, for the panels [begin, end).
  void rows(int weight, int64_t first, int64_t count, const Paired& x, void* memory, int64_t begin, int64_t end) const {
    const sb_weight& w = weights_[weight];
    const Paired y{static_cast<uint16_t*>(memory), whole_lines(count), begin};
    paired_linear(weight_rows(w, first, count), x, y, 0, call_.activation, begin, end);
    for (int64_t panel = begin; panel < end; panel++)
      unpair_rows(y.panel(panel), tokens_from(panel), count,
                  static_cast<X*>(w.y) + panel * PAIRED_TOKENS * w.out_features + first, w.out_features);
  }

  const sb::LinearCall& call_;
  const int64_t panels_, in_features_;
  int64_t inner_, most_rows_ = 0, chunk_;
  sb_weight weights_[sb::MAX_WEIGHTS];
};

inline void row_panel_linear(const sb::LinearCall& call) {
  static thread_local Scratch scratch;  // of the biases
  if (call.x_dtype == SB_F32) RowPanelCall<float>(call, scratch).compute();
  else if (call.x_dtype == SB_BF16) RowPanelCall<uint16_t>(call, scratch).compute();
  else RowPanelCall<uint16_t>(call, scratch).compute_paired();
}

}  // namespace SB_ISA
