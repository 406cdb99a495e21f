// y = activation(x @ W.T + bias) with int8 weights: tokens are quantised tile by tile, then meet all rows of the weights.
#pragma once
#include "int8_call.h"
#include "int8_quantize.h"
#include "scratch.h"

namespace SB_ISA {

typedef Dots::PanelValue PanelValue;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows that are stored together: a multiple of every V, 16 to 64 KiB of results.
constexpr int64_t INT8_ROWS = 64;
constexpr int GRAINS_PER_QUARTER = LANES / Dots::GRAIN;

// Tiles of about equal width, since a narrow tile at the end would be as costly as a wider one: whole quarters, but for
// whole grains at the end.
class Int8Tiling {
 public:
  explicit Int8Tiling(int64_t tokens)
      : tokens_(tokens), grains_(divide_up(tokens, Dots::GRAIN)), count_(divide_up(tokens, Dots::ROW)) {}
  int64_t count() const { return count_; }
  int64_t begin(int64_t i) const {
    const int64_t token = divide_up(grains_ * i, count_ * GRAINS_PER_QUARTER) * LANES;
    return token < tokens_ ? token : tokens_;
  }

 private:
  int64_t tokens_, grains_, count_;
};

// The results of V rows, as floats without activation, for GRAINS grains of tokens from quarter FIRST on.
template <int V, int FIRST, int GRAINS>
SB_INLINE void int8_vector_row(const sb_int8_weight& w, int64_t index, const float* bias, const PanelValue* token_panel,
                               const float* token_scales, float* out) {
  constexpr int T = (GRAINS + GRAINS_PER_QUARTER - 1) / GRAINS_PER_QUARTER;
  Dots::I sums[V][T];
#pragma GCC unroll 8
  for (int v = 0; v < V; v++)
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) sums[v][t] = Dots::set1(-Dots::OFFSET * w.sums[index * V + v]);
  const int32_t begin = w.starts[index], count = w.starts[index + 1] - begin;
  const uint16_t* columns = w.columns + int64_t{begin} * 4;
  const int8_t* values = w.values + int64_t{begin} * 4 * V;
  for (int32_t unit = 0; unit < count; unit++, columns += 4, values += 4 * V)
    Dots::multiply<V, FIRST, GRAINS>(sums, values, columns, token_panel);
#pragma GCC unroll 4
  for (int t = 0; t < T; t++) {
    const Simd::F token_scale = Simd::load(token_scales + (FIRST + t) * LANES);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++)
      Simd::store(out + v * Dots::ROW + (FIRST + t) * LANES,
                  Dots::to_float(sums[v][t]) * token_scale * Simd::set1(w.scales[index * V + v]) +
                      Simd::set1(bias[v]));
  }
}

// The same for all grains of a tile, in as many passes as the registers need.
template <int V, int FIRST, int GRAINS>
SB_INLINE void int8_passes(const sb_int8_weight& w, int64_t index, const float* bias, const PanelValue* token_panel,
                           const float* token_scales, float* out) {
  constexpr int MOST = Dots::most_quarters(V) * GRAINS_PER_QUARTER;
  int8_vector_row<V, FIRST, (GRAINS < MOST ? GRAINS : MOST)>(w, index, bias, token_panel, token_scales, out);
  if constexpr (GRAINS > MOST)
    int8_passes<V, FIRST + Dots::most_quarters(V), GRAINS - MOST>(w, index, bias, token_panel, token_scales, out);
}

struct Int8Tile {
  const PanelValue* token_panel;
  const float* scales;
  int64_t begin, tokens;
};

// Rows [first, first + features) of the weight for one tile, with activation, to y.
template <int V, class X>
void int8_rows(const sb::Int8Call& call, const sb_int8_weight& w, const float* bias, int64_t first, const Int8Tile& tile) {
  alignas(64) static thread_local float results[INT8_ROWS * Dots::ROW];
  float* const out = results;
  const int64_t features = w.out_features - first < INT8_ROWS ? w.out_features - first : INT8_ROWS;
  with_count<Dots::ROW / Dots::GRAIN>(divide_up(tile.tokens, Dots::GRAIN), [&](auto grains) {
    for (int64_t row = 0; row < features; row += V)
      int8_passes<V, 0, decltype(grains)::VALUE>(w, (first + row) / V, bias + first + row, tile.token_panel, tile.scales,
                                                 out + row * Dots::ROW);
  });
  X* y = static_cast<X*>(w.y) + tile.begin * w.out_features + first;
  store_token_panel<Dots::QUARTERS>(out, tile.tokens, features, call.activation, y, w.out_features);
}

template <class X>
void int8_rows(const sb::Int8Call& call, const sb_int8_weight& w, const float* bias, int64_t first, const Int8Tile& tile) {
  switch (w.vector_rows) {
    case 2: return int8_rows<2, X>(call, w, bias, first, tile);
    case 4: return int8_rows<4, X>(call, w, bias, first, tile);
    case 8: return int8_rows<8, X>(call, w, bias, first, tile);
  }
}

// Bytes of a token panel, for whole blocks of 16 features, with its scales.
SB_INLINE size_t int8_panel_bytes(int64_t features) {
  return divide_up(divide_up(features, 16) * 16 * Dots::ROW * sizeof(PanelValue) + Dots::ROW * sizeof(float), 64) * 64;
}

// Quantises tile i into `memory`, of int8_panel_bytes.
template <class X>
Int8Tile int8_tile(const sb::Int8Call& call, const Int8Tiling& tiling, int64_t i, void* memory, bool fill) {
  const sb_int8_weight& w = call.weights[0];
  const int64_t begin = tiling.begin(i), tokens = tiling.begin(i + 1) - begin;
  auto* scales = static_cast<float*>(memory);
  auto* token_panel = reinterpret_cast<PanelValue*>(scales + Dots::ROW);
  if (fill)
    quantize(static_cast<const X*>(call.x) + begin * call.stride, call.stride, tokens, w.in_features, w.limit,
             token_panel, scales);
  return {token_panel, scales, begin, tokens};
}

template <class X>
void int8_linear(const sb::Int8Call& call) {
  static thread_local Scratch bias_scratch, panel_scratch;
  const int64_t features = call.weights[0].in_features;
  int64_t tasks = 0, first_task[sb::MAX_WEIGHTS];
  for (int i = 0; i < call.count; i++) {
    first_task[i] = tasks;
    tasks += divide_up(call.weights[i].out_features, INT8_ROWS);
  }
  auto* biases = static_cast<float*>(bias_scratch.get(sizeof(float) * tasks * INT8_ROWS));
  for (int i = 0; i < call.count; i++) {
    const sb_int8_weight& w = call.weights[i];
    float* bias = biases + first_task[i] * INT8_ROWS;
    for (int64_t n = 0; n < divide_up(w.out_features, INT8_ROWS) * INT8_ROWS; n++) {
      if (n >= w.out_features || !w.bias) bias[n] = 0.0f;
      else if (w.bias_dtype == SB_F32) bias[n] = static_cast<const float*>(w.bias)[n];
      else bias[n] = from_bf16(static_cast<const uint16_t*>(w.bias)[n]);
    }
  }
  auto task_rows = [&](int64_t task, const Int8Tile& tile) {
    int i = call.count - 1;
    while (first_task[i] > task) i--;
    int8_rows<X>(call, call.weights[i], biases + first_task[i] * INT8_ROWS, (task - first_task[i]) * INT8_ROWS, tile);
  };

  const Int8Tiling tiling(call.tokens);
  const int64_t tiles = tiling.count();
  const int threads = call.threads;
  if (threads == 1 || tiles >= 2 * threads) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < tiles; i++) {
      static thread_local Scratch scratch;
      const Int8Tile tile = int8_tile<X>(call, tiling, i, scratch.get(int8_panel_bytes(features)), true);
      for (int64_t task = 0; task < tasks; task++) task_rows(task, tile);
    }
    return;
  }

  // With too few tiles for the threads, share their token panels and split the rows as well.
  auto* token_panels = static_cast<char*>(panel_scratch.get(int8_panel_bytes(features) * tiles));
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < tiles; i++) int8_tile<X>(call, tiling, i, token_panels + i * int8_panel_bytes(features), true);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < tiles * tasks; i++) {
      const int64_t t = i % tiles;
      task_rows(i / tiles, int8_tile<X>(call, tiling, t, token_panels + t * int8_panel_bytes(features), false));
    }
  }
}

}  // namespace SB_ISA
