// Row panels through tile products: AMX, or its emulation.
//
// Two C tiles are computed at a time, in two sets: while the tile unit fills one set, the other is stored and finished.
// With a single set, every store would wait for the last product, and the unit idle meanwhile. The two tiles are two
// row tiles of one panel of x, or, where row panels have 16 rows, one row tile of two.
#pragma once
#include "tiles.h"

namespace SB_ISA {

constexpr int64_t UNIT_PANELS = 2;

typedef TileScope UnitScope;

// Fetches the kept lines of `panels` panels of x into L1: the hardware foresees no such pattern.
template <int L>
SB_INLINE void prefetch_lines(const RowPanel& w, const Lines& x, int64_t panels) {
  const int64_t groups = w.count * (L ? STEP_LINES / L : 32);
  for (int64_t i = 0; i < groups; i++) {
    const char* line = x.data + int64_t{w.columns[i]} / (L ? 1 : 2) * LINE_BYTES;
    for (int64_t panel = 0; panel < panels; panel++, line += x.stride)
#pragma GCC unroll 16
      for (int j = 0; j < (L ? L : 1); j++) __builtin_prefetch(line + j * LINE_BYTES, 0, 3);
  }
}

template <int C, int A, int B>
SB_INLINE void tile_product(const Bf16Product*) {
  tile_product_bf16<C, A, B>();
}
template <int C, int A, int B>
SB_INLINE void tile_product(const Int8Product*) {
  tile_product_int8<C, A, B>();
}

// Where a C tile goes.
struct Target {
  Epilogue epilogue;
  const float* tokens;  // int8: scales of the tokens
  uint16_t* y;
};

template <class Product>
__attribute__((noinline)) void finish_tile(const char* sums, const Target& target) {
  constexpr int ROWS = 4;  // together
  const Floats tokens = target.tokens ? load_floats(target.tokens) : Floats{};
  const Target to = target;
  with_activation(to.epilogue.activation, [=](auto activation) {
#pragma GCC unroll 2
    for (int row = 0; row < 16; row += ROWS)
      Product::template finish<decltype(activation)::VALUE>(
          *reinterpret_cast<const typename Product::Sums(*)[ROWS]>(sums + row * LINE_BYTES), to.epilogue.from(row),
          tokens, to.y + row * PAIRED_TOKENS);
  });
}

template <class Product, int L>
class RowPanelUnit {
 public:
  explicit RowPanelUnit(const sb_weight& w) {
    static thread_local Scratch scratch;
    const int64_t row_panels = (whole_lines(w.out_features) + w.block_rows - 1) / w.block_rows;
    for (int64_t i = 0; i < row_panels; i++) {
      const int64_t count = w.starts[i + 1] - w.starts[i];
      most_steps_ = count > most_steps_ ? count : most_steps_;
    }
    sums_ = static_cast<char*>(scratch.get((4 + (IN_PLACE ? 0 : 2 * most_steps_)) * TILE_BYTES));
    tiles_ = sums_ + 4 * TILE_BYTES;
  }

  // The first `rows` rows of a row panel times all panels of x; `next` is the next row panel, without steps after the
  // last. Results may be written as late as in `finish`.
  void multiply(const RowPanel& w, const RowPanel& next, int64_t rows, const Lines& x, const Results& y,
                const Epilogue& epilogue, int64_t panels) {
    if (w.step == TILE_BYTES) multiply_pairs<false>(w, next, rows, x, y, epilogue, panels);
    else multiply_pairs<true>(w, next, rows, x, y, epilogue, panels);
  }

  void finish() {
    if (!waiting_) return;
    if (set_ == 1) complete<0>();
    else complete<1>();
    waiting_ = false;
  }

 private:
  static constexpr const Product* PRODUCT = nullptr;
  static constexpr bool IN_PLACE = L == STEP_LINES;  // the lines of a k-step are neighbours

  template <bool TWO_ROW_TILES>
  void multiply_pairs(const RowPanel& w, const RowPanel& next, int64_t rows, const Lines& x, const Results& y,
                      const Epilogue& epilogue, int64_t panels) {
    constexpr int T = TWO_ROW_TILES ? 1 : 2;
    const int64_t bytes = next.count * next.step;
    const char* ahead = next.values;
    const int64_t share = (bytes * T / panels + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
    for (int64_t t = 0; t < panels; t += T) {
      // The last panel of an odd number is computed twice, not with what follows it.
      const bool alone = !TWO_ROW_TILES && t + 1 == panels;
      const Lines first = x.from(t), second = alone ? first : x.from(t + T - 1);
      // The next row panel's values into L2, a share at each step.
      for (const char* end = ahead + share; ahead < end; ahead += LINE_BYTES) __builtin_prefetch(ahead, 0, 2);
      if (t + T < panels) prefetch_lines<L>(w, x.from(t + T), t + 2 * T <= panels ? T : 1);
      else prefetch_lines<L>(next, x, T <= panels ? T : 1);
      const char *one = first.data, *two = second.data;
      if (!IN_PLACE) {
        gather(w, one, tiles_);
        one = two = tiles_;
        if (!TWO_ROW_TILES && !alone) {
          two = tiles_ + most_steps_ * TILE_BYTES;
          gather(w, second.data, tiles_ + most_steps_ * TILE_BYTES);
        }
      }
      for (int64_t row = 0; row < rows; row += TWO_ROW_TILES ? 32 : 16) {
        const Target targets[] = {
            {epilogue.from(row), first.scales, y.from(t, row).data},
            {epilogue.from(row + (TWO_ROW_TILES ? 16 : 0)), second.scales,
             TWO_ROW_TILES ? y.from(t, row + 16).data : y.from(alone ? t : t + 1, row).data}};
        const char* values = w.values + row * LINE_BYTES;
        // The other set: its products were issued one pair ago.
        if (set_ == 0) {
          products<0, TWO_ROW_TILES>(w, values, one, two);
          if (waiting_) complete<1>();
        } else {
          products<1, TWO_ROW_TILES>(w, values, one, two);
          complete<0>();
        }
        targets_[set_][0] = targets[0];
        targets_[set_][1] = targets[1];
        set_ ^= 1;
        waiting_ = true;
      }
    }
  }

  static SB_INLINE void gather(const RowPanel& w, const char* x, char* tiles) {
    const uint16_t* columns = w.columns;
    for (int64_t k = 0; k < w.count; k++, columns += L ? STEP_LINES / L : 32, tiles += TILE_BYTES)
#pragma GCC unroll 16
      for (int j = 0; j < STEP_LINES; j++) store_line(tiles + j * LINE_BYTES, kept_line<L>(x, columns, j));
  }

  template <int SET, bool TWO_ROW_TILES>
  static SB_INLINE void products(const RowPanel& w, const char* values, const char* one, const char* two) {
    constexpr int C = 2 * SET, A = SET ? 7 : 4, B = SET ? 5 : 6;
    tile_zero<C>();
    tile_zero<C + 1>();
    for (int64_t k = 0; k < w.count; k++, values += w.step) {
      const int64_t at = IN_PLACE ? w.columns[k] * LINE_BYTES : k * TILE_BYTES;
      tile_load<A>(values);
      tile_load<B>(one + at);
      tile_product<C, A, B>(PRODUCT);
      if (TWO_ROW_TILES) tile_load<A>(values + TILE_BYTES);
      else tile_load<B>(two + at);
      tile_product<C + 1, A, B>(PRODUCT);
    }
  }

  template <int SET>
  SB_INLINE void complete() {
    char* sums = sums_ + 2 * SET * TILE_BYTES;
    tile_store<2 * SET>(sums);
    tile_store<2 * SET + 1>(sums + TILE_BYTES);
    finish_tile<Product>(sums, targets_[SET][0]);
    finish_tile<Product>(sums + TILE_BYTES, targets_[SET][1]);
  }

  int64_t most_steps_ = 0;
  char *sums_, *tiles_;
  int set_ = 0;
  bool waiting_ = false;
  Target targets_[2][2];
};

}  // namespace SB_ISA
