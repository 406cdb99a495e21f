// Loops over tiles of tokens and row blocks, on one thread or many.
//
// A family says how one format and value type is computed:
//   Panel                      element type of the panel (float, or uint16_t for bf16)
//   MAX_VECTORS                widest tile, in vectors of LANES tokens; narrower ones halve it
//   in<T>(...)                 transposes a slice of x into the panel
//   block<T, FIRST>(...)       one row block x column block; FIRST: the first of its row block
#pragma once
#include "token_panel.h"
#include "scratch.h"

namespace SB_ISA {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Tile {
  int64_t begin;
  int64_t tokens;
  int vectors;
};

// Full tiles first, then the rest in narrower ones, unless these would save less than a quarter of the vectors:
// every tile reads the weights anew.
class Tiling {
 public:
  Tiling(int64_t tokens, int max_vectors) : width_(int64_t{max_vectors} * LANES), full_(tokens / width_) {
    int64_t begin = full_ * width_;
    for (int vectors = max_vectors; begin < tokens; vectors = vectors > 1 ? vectors / 2 : 1) {
      const int64_t width = int64_t{vectors} * LANES, left = tokens - begin;
      if (vectors > 1 && 4 * divide_up(left, LANES) <= 3 * vectors) continue;
      tail_[tails_++] = {begin, left < width ? left : width, vectors};
      begin += width;
    }
  }

  int64_t count() const { return full_ + tails_; }

  Tile operator[](int64_t i) const {
    if (i < full_) return {i * width_, width_, static_cast<int>(width_ / LANES)};
    return tail_[i - full_];
  }

 private:
  int64_t width_, full_;
  Tile tail_[8];
  int tails_ = 0;
};

SB_INLINE int64_t row_blocks(const sb_weight& w) { return divide_up(w.out_features, w.block_rows); }

// A weight's bias as floats, zeros where there is none, padded to whole row blocks.
inline float* float_bias(const sb_weight& w, float* buffer) {
  for (int64_t n = 0; n < row_blocks(w) * w.block_rows; n++) {
    if (n >= w.out_features || !w.bias) buffer[n] = 0.0f;
    else if (w.bias_dtype == SB_F32) buffer[n] = static_cast<const float*>(w.bias)[n];
    else buffer[n] = from_bf16(static_cast<const uint16_t*>(w.bias)[n]);
  }
  return buffer;
}

template <class Family, int T, class X>
void slice_in(const sb::LinearCall& call, const Tile& tile, int64_t column_block, typename Family::Panel* panel) {
  const sb_weight& w = call.weights[0];
  const int64_t begin = column_block * w.block_columns;
  const int64_t end = begin + w.block_columns < w.in_features ? begin + w.block_columns : w.in_features;
  const X* x = static_cast<const X*>(call.x) + tile.begin * call.stride;
  Family::template in<T>(x, call.stride, tile.tokens, begin, end, panel + begin * T * LANES);
}

// Every column block of one row block, then the result out. A fresh panel is filled slice by slice, each just
// before its first use, while it is still in the nearest cache.
template <class Family, int T, class X>
void row_block(const sb::LinearCall& call, const sb_weight& w, const float* bias, int64_t block, const Tile& tile,
               typename Family::Panel* panel, bool fresh) {
  static thread_local Scratch scratch;
  constexpr int WIDTH = T * LANES;
  float* out = static_cast<float*>(scratch.get(size_t{4} * w.block_rows * WIDTH));
  const int64_t column_blocks = divide_up(w.in_features, w.block_columns);
  const int64_t first_row = block * w.block_rows;
  const int64_t features = w.out_features - first_row < w.block_rows ? w.out_features - first_row : w.block_rows;
  for (int64_t column_block = 0; column_block < column_blocks; column_block++) {
    if (fresh) slice_in<Family, T, X>(call, tile, column_block, panel);
    const int64_t index = block * column_blocks + column_block;
    const auto* slice = panel + column_block * w.block_columns * WIDTH;
    if (column_block == 0) Family::template block<T, true>(w, index, features, slice, out, bias + first_row);
    else Family::template block<T, false>(w, index, features, slice, out, nullptr);
  }
  X* y = static_cast<X*>(w.y) + tile.begin * w.out_features + first_row;
  panel_out<T>(out, tile.tokens, features, call.activation, y, w.out_features);
}

// Calls f with the number of vectors as a compile-time constant.
template <int MAX, class Function>
SB_INLINE void with_vectors(int vectors, Function f) {
  if (vectors == MAX) f.template operator()<MAX>();
  else if constexpr (MAX > 1) with_vectors<MAX / 2>(vectors, f);
}

template <class Family, class X>
struct WholeTile {
  const sb::LinearCall& call;
  const float* const* biases;
  const Tile tile;
  template <int T>
  void operator()() const {
    static thread_local Scratch scratch;
    typedef typename Family::Panel Panel;
    auto* panel = static_cast<Panel*>(scratch.get(sizeof(Panel) * call.weights[0].in_features * T * LANES));
    for (int i = 0; i < call.count; i++)
      for (int64_t block = 0; block < row_blocks(call.weights[i]); block++)
        row_block<Family, T, X>(call, call.weights[i], biases[i], block, tile, panel, i == 0 && block == 0);
  }
};

template <class Family, class X>
struct TileSlice {
  const sb::LinearCall& call;
  const Tile tile;
  int64_t column_block;
  typename Family::Panel* panel;
  template <int T>
  void operator()() const {
    slice_in<Family, T, X>(call, tile, column_block, panel);
  }
};

template <class Family, class X>
struct TileRowBlock {
  const sb::LinearCall& call;
  const sb_weight& weight;
  const float* bias;
  int64_t block;
  const Tile tile;
  typename Family::Panel* panel;
  template <int T>
  void operator()() const {
    row_block<Family, T, X>(call, weight, bias, block, tile, panel, false);
  }
};

constexpr int MAX_WEIGHTS = 8;  // of one call; dispatch.cpp checks it

template <class Family, class X>
void linear(const sb::LinearCall& call) {
  static thread_local Scratch bias_scratch, panel_scratch;
  int64_t bias_length = 0, tasks = 0, first_task[MAX_WEIGHTS];
  for (int i = 0; i < call.count; i++) {
    first_task[i] = tasks;
    tasks += row_blocks(call.weights[i]);
    bias_length += row_blocks(call.weights[i]) * call.weights[i].block_rows;
  }
  float* buffer = static_cast<float*>(bias_scratch.get(size_t{4} * bias_length));
  const float* biases[MAX_WEIGHTS];
  for (int i = 0; i < call.count; i++) {
    biases[i] = float_bias(call.weights[i], buffer);
    buffer += row_blocks(call.weights[i]) * call.weights[i].block_rows;
  }

  const Tiling tiles(call.tokens, Family::MAX_VECTORS);
  const int64_t tile_count = tiles.count();
  const int threads = call.threads;
  constexpr int MAX = Family::MAX_VECTORS;
  if (threads == 1 || tile_count >= 2 * threads) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < tile_count; i++)
      with_vectors<MAX>(tiles[i].vectors, WholeTile<Family, X>{call, biases, tiles[i]});
    return;
  }

  // Few tokens for the threads at hand: share the panels and split the rows as well.
  typedef typename Family::Panel Panel;
  const sb_weight& first = call.weights[0];
  const int64_t widest = int64_t{MAX} * LANES * first.in_features;
  auto* panels = static_cast<Panel*>(panel_scratch.get(sizeof(Panel) * widest * tile_count));
  const int64_t column_blocks = divide_up(first.in_features, first.block_columns);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < tile_count * column_blocks; i++) {
      const int64_t t = i / column_blocks;
      with_vectors<MAX>(tiles[t].vectors,
                        TileSlice<Family, X>{call, tiles[t], i % column_blocks, panels + t * widest});
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < tile_count * tasks; i++) {
      const int64_t t = i % tile_count, task = i / tile_count;
      int weight = call.count - 1;
      while (first_task[weight] > task) weight--;
      with_vectors<MAX>(tiles[t].vectors,
                        TileRowBlock<Family, X>{call, call.weights[weight], biases[weight],
                                                task - first_task[weight], tiles[t], panels + t * widest});
    }
  }
}

}  // namespace SB_ISA
