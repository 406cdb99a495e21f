// Activations of a whole batch in token panels, one for every WIDEST * LANES tokens.
//
// The sequences follow one another without padding. The last token panel is narrower where that saves vectors.
#pragma once
#include "stored_values.h"

namespace SB_ISA {

constexpr int64_t PANEL_TOKENS = int64_t{WIDEST} * LANES;

template <class Value>
struct PanelRowOf {
  Value* data;    // the token
  int64_t width;  // tokens of the token panel: the distance to the next feature
  int64_t rest;   // tokens from this one to the end of the token panel
};

// How tokens are cut into token panels.
struct PanelLayout {
  explicit PanelLayout(int64_t tokens, bool* lost = nullptr)
      : full(tokens / PANEL_TOKENS), last(1), out_of_range(lost) {
    const int64_t rest = tokens % PANEL_TOKENS;
    while (last * LANES < rest) last *= 2;
    count = full + (rest ? 1 : 0);
  }
  int vectors(int64_t tile) const { return tile < full ? WIDEST : last; }
  // Tokens for which there is room.
  int64_t room() const { return count * PANEL_TOKENS; }

  int64_t full, count;
  int last;  // vectors of the last token panel, if it is not full
  bool* out_of_range;  // set once a token panel cannot hold a value; null in fp32, which holds all
};

// `features` rows for the tokens of a layout from token panel `first` on.
template <class Value>
struct PanelsOf {
  const PanelLayout* layout;
  Value* data;
  int64_t features;
  int64_t first = 0;

  Value* token_panel(int64_t index) const { return data + (index - first) * features * PANEL_TOKENS; }
  int64_t width(int64_t index) const { return int64_t{layout->vectors(index)} * LANES; }
  PanelRowOf<Value> row(int64_t feature, int64_t token) const {
    const int64_t index = token / PANEL_TOKENS, column = token % PANEL_TOKENS, panel_width = width(index);
    return {token_panel(index) + feature * panel_width + column, panel_width, panel_width - column};
  }
  SB_INLINE void note(const Writer<Value>& writer) const {
    if (writer.out_of_range()) __atomic_store_n(layout->out_of_range, true, __ATOMIC_RELAXED);
  }
};

typedef PanelsOf<Stored> Panels;
typedef PanelRowOf<Stored> PanelRow;

template <int N>
struct Vectors {
  static constexpr int COUNT = N;
};

// Calls `f` with the number of vectors of a token panel as a type.
template <class Function, int MAX = WIDEST>
SB_INLINE void with_panel_vectors(int vectors, Function f) {
  if (vectors == MAX) f(Vectors<MAX>{});
  else if constexpr (MAX > 1) with_panel_vectors<Function, MAX / 2>(vectors, f);
}

}  // namespace SB_ISA
