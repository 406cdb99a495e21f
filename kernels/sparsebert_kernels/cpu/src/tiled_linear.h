// Loops over token tiles and row blocks, on one thread or many.
//
// A family defines how one format and value type is computed:
//   PanelValue            value type of the token panel (float, or uint16_t for bf16)
//   MAX_VECTORS           widest token tile, in vectors of LANES tokens; narrower tiles halve it
//   load<T>(...)          transposes a slice of x into the token panel
//   block<T, FIRST>(...)  computes one row block x column block; FIRST for the first column block of a row block
#pragma once
#include "token_panel.h"
#include "scratch.h"

namespace SB_ISA {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Tokens that are computed together.
struct TokenTile {
  int64_t begin;
  int64_t tokens;
  int vectors;
};

// Cuts the tokens into full tiles, then the remainder into narrower ones. A tile is narrowed only where that saves at
// least a quarter of its vectors, because every tile reads the weights again.
class TokenTiling {
 public:
  TokenTiling(int64_t tokens, int max_vectors) : width_(int64_t{max_vectors} * LANES), full_(tokens / width_) {
    int64_t begin = full_ * width_;
    for (int vectors = max_vectors; begin < tokens; vectors = vectors > 1 ? vectors / 2 : 1) {
      const int64_t width = int64_t{vectors} * LANES, remaining = tokens - begin;
      if (vectors > 1 && 4 * divide_up(remaining, LANES) <= 3 * vectors) continue;
      tail_[tails_++] = {begin, remaining < width ? remaining : width, vectors};
      begin += width;
    }
  }

  int64_t count() const { return full_ + tails_; }

  TokenTile operator[](int64_t i) const {
    if (i < full_) return {i * width_, width_, static_cast<int>(width_ / LANES)};
    return tail_[i - full_];
  }

 private:
  int64_t width_, full_;
  TokenTile tail_[8];
  int tails_ = 0;
};

SB_INLINE int64_t row_blocks(const sb_weight& w) { return divide_up(w.out_features, w.block_rows); }

// The bias of a weight as floats, padded to whole row blocks; zeros for a weight without bias.
inline float* float_bias(const sb_weight& w, float* buffer) {
  for (int64_t n = 0; n < row_blocks(w) * w.block_rows; n++) {
    if (n >= w.out_features || !w.bias) buffer[n] = 0.0f;
    else if (w.bias_dtype == SB_F32) buffer[n] = static_cast<const float*>(w.bias)[n];
    else buffer[n] = from_bf16(static_cast<const uint16_t*>(w.bias)[n]);
  }
  return buffer;
}

template <class Family, int T, class X>
void load_slice(const sb::LinearCall& call, const TokenTile& tile, int64_t column_block,
                typename Family::PanelValue* token_panel) {
  const sb_weight& w = call.weights[0];
  const int64_t begin = column_block * w.block_columns;
  const int64_t end = begin + w.block_columns < w.in_features ? begin + w.block_columns : w.in_features;
  const X* x = static_cast<const X*>(call.x) + tile.begin * call.stride;
  Family::template load<T>(x, call.stride, tile.tokens, begin, end, token_panel + begin * T * LANES);
}

// Computes every column block of one row block and stores the result. A fresh token panel is filled slice by slice,
// each just before its first use, so that it is still in the nearest cache.
template <class Family, int T, class X>
void row_block(const sb::LinearCall& call, const sb_weight& w, const float* bias, int64_t block,
               const TokenTile& tile, typename Family::PanelValue* token_panel, bool fresh) {
  static thread_local Scratch scratch;
  constexpr int WIDTH = T * LANES;
  float* out = static_cast<float*>(scratch.get(size_t{4} * w.block_rows * WIDTH));
  const int64_t column_blocks = divide_up(w.in_features, w.block_columns);
  const int64_t first_row = block * w.block_rows;
  const int64_t features = w.out_features - first_row < w.block_rows ? w.out_features - first_row : w.block_rows;
  for (int64_t column_block = 0; column_block < column_blocks; column_block++) {
    if (fresh) load_slice<Family, T, X>(call, tile, column_block, token_panel);
    const int64_t index = block * column_blocks + column_block;
    const auto* slice = token_panel + column_block * w.block_columns * WIDTH;
    if (column_block == 0) Family::template block<T, true>(w, index, features, slice, out, bias + first_row);
    else Family::template block<T, false>(w, index, features, slice, out, nullptr);
  }
  X* y = static_cast<X*>(w.y) + tile.begin * w.out_features + first_row;
  store_token_panel<T>(out, tile.tokens, features, call.activation, y, w.out_features);
}

// Calls `f` with the number of vectors as a compile-time constant.
template <int MAX, class Function>
SB_INLINE void with_vectors(int vectors, Function f) {
  if (vectors == MAX) f.template operator()<MAX>();
  else if constexpr (MAX > 1) with_vectors<MAX / 2>(vectors, f);
}

template <class Family, class X>
struct WholeTokenTile {
  const sb::LinearCall& call;
  const float* const* biases;
  const TokenTile tile;
  template <int T>
  void operator()() const {
    static thread_local Scratch scratch;
    typedef typename Family::PanelValue PanelValue;
    const size_t bytes = sizeof(PanelValue) * call.weights[0].in_features * T * LANES;
    auto* token_panel = static_cast<PanelValue*>(scratch.get(bytes));
    for (int i = 0; i < call.count; i++)
      for (int64_t block = 0; block < row_blocks(call.weights[i]); block++)
        row_block<Family, T, X>(call, call.weights[i], biases[i], block, tile, token_panel, i == 0 && block == 0);
  }
};

template <class Family, class X>
struct TokenTileSlice {
  const sb::LinearCall& call;
  const TokenTile tile;
  int64_t column_block;
  typename Family::PanelValue* token_panel;
  template <int T>
  void operator()() const {
    load_slice<Family, T, X>(call, tile, column_block, token_panel);
  }
};

template <class Family, class X>
struct TokenTileRowBlock {
  const sb::LinearCall& call;
  const sb_weight& weight;
  const float* bias;
  int64_t block;
  const TokenTile tile;
  typename Family::PanelValue* token_panel;
  template <int T>
  void operator()() const {
    row_block<Family, T, X>(call, weight, bias, block, tile, token_panel, false);
  }
};

template <class Family, class X>
void linear(const sb::LinearCall& call) {
  static thread_local Scratch bias_scratch, token_panel_scratch;
  int64_t bias_length = 0, tasks = 0, first_task[sb::MAX_WEIGHTS];
  for (int i = 0; i < call.count; i++) {
    first_task[i] = tasks;
    tasks += row_blocks(call.weights[i]);
    bias_length += row_blocks(call.weights[i]) * call.weights[i].block_rows;
  }
  float* buffer = static_cast<float*>(bias_scratch.get(size_t{4} * bias_length));
  const float* biases[sb::MAX_WEIGHTS];
  for (int i = 0; i < call.count; i++) {
    biases[i] = float_bias(call.weights[i], buffer);
    buffer += row_blocks(call.weights[i]) * call.weights[i].block_rows;
  }

  const TokenTiling tiles(call.tokens, Family::MAX_VECTORS);
  const int64_t tile_count = tiles.count();
  const int threads = call.threads;
  constexpr int MAX = Family::MAX_VECTORS;
  if (threads == 1 || tile_count >= 2 * threads) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < tile_count; i++)
      with_vectors<MAX>(tiles[i].vectors, WholeTokenTile<Family, X>{call, biases, tiles[i]});
    return;
  }

  // With too few tokens for the threads, share the token panels and split the rows as well.
  typedef typename Family::PanelValue PanelValue;
  const sb_weight& first = call.weights[0];
  const int64_t widest = int64_t{MAX} * LANES * first.in_features;
  auto* token_panels = static_cast<PanelValue*>(token_panel_scratch.get(sizeof(PanelValue) * widest * tile_count));
  const int64_t column_blocks = divide_up(first.in_features, first.block_columns);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < tile_count * column_blocks; i++) {
      const int64_t t = i / column_blocks;
      with_vectors<MAX>(tiles[t].vectors,
                        TokenTileSlice<Family, X>{call, tiles[t], i % column_blocks, token_panels + t * widest});
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < tile_count * tasks; i++) {
      const int64_t t = i % tile_count, task = i / tile_count;
      int weight = call.count - 1;
      while (first_task[weight] > task) weight--;
      with_vectors<MAX>(tiles[t].vectors,
                        TokenTileRowBlock<Family, X>{call, call.weights[weight], biases[weight],
                                                task - first_task[weight], tiles[t], token_panels + t * widest});
    }
  }
}

}  // namespace SB_ISA
