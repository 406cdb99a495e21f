// The tokens that the mask of a batch keeps, in groups of whole sequences that are computed together.
//
// Sequences of a group follow one another without padding; a group begins with a paired panel.
#pragma once
#include "paired.h"
#include "scratch.h"

namespace SB_ISA {

// The tokens [begin, end) of a sequence.
struct TokenRange {
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

// Sequences and paired panels of one group.
struct TokenGroup {
  int64_t first_sequence, sequences;
  int64_t first_panel, panels;
};

struct PairedTokens {
  int64_t* rows;          // row in x of each token of the panels, -1 for none
  int64_t* positions;     // row of each token in the table of positions
  TokenRange* sequences;  // of the sequences
  TokenGroup* groups;
  int64_t group_count, panels, most_panels;  // most: of a group
};

// Groups of at most `most` tokens, or of one sequence.
inline PairedTokens group_tokens(const sb_encoder_call& call, int64_t most, Scratch& scratch) {
  const int64_t positions = call.sequences * call.length + call.sequences * PAIRED_TOKENS;
  const size_t bytes = call.sequences * (sizeof(TokenRange) + sizeof(TokenGroup)) + 2 * positions * sizeof(int64_t);
  auto* ranges = static_cast<TokenRange*>(scratch.get(bytes + 1));
  auto* groups = reinterpret_cast<TokenGroup*>(ranges + call.sequences);
  auto* rows = reinterpret_cast<int64_t*>(groups + call.sequences);
  PairedTokens tokens{rows, rows + positions, ranges, groups, 0, 0, 0};
  // Positions count from 0, or words from the number of the padding.
  const int64_t padding = call.ends && call.ends->words ? call.ends->padding : -1;
  int64_t count = 0, group_begin = 0;
  auto close_group = [&](int64_t sequence) {
    const int64_t panels = paired_panels(count - group_begin);
    const int64_t first = tokens.group_count ? groups[tokens.group_count - 1].first_sequence +
                                                   groups[tokens.group_count - 1].sequences : 0;
    if (panels) groups[tokens.group_count++] = {first, sequence - first, tokens.panels, panels};
    tokens.panels += panels;
    tokens.most_panels = panels > tokens.most_panels ? panels : tokens.most_panels;
    while (count % PAIRED_TOKENS) tokens.rows[count++] = -1;
    group_begin = count;
  };
  for (int64_t s = 0; s < call.sequences; s++) {
    int64_t kept = 0, words = 0;
    for (int64_t i = 0; i < call.length; i++) kept += sb::keeps(call.mask, call.mask_bytes, s * call.length + i);
    if (count > group_begin && count - group_begin + kept > most) close_group(s);
    ranges[s].begin = count;
    for (int64_t i = 0; i < call.length; i++) {
      const int64_t row = s * call.length + i;
      const int64_t position = padding < 0 ? i : padding + (call.ids[row] == padding ? 0 : ++words);
      if (!sb::keeps(call.mask, call.mask_bytes, row)) continue;
      tokens.positions[count] = position;
      tokens.rows[count++] = row;
    }
    ranges[s].end = count;
  }
  close_group(call.sequences);
  return tokens;
}

// Sixteen rows of one paired panel; null for none.
template <class X>
struct PanelRows {
  X* rows[PAIRED_TOKENS];
  bool adjacent;  // whether the rows are all there, one after the other in memory

  PanelRows(X* x, int64_t features, const PairedTokens& tokens, int64_t panel) : adjacent(true) {
    const int64_t* at = tokens.rows + panel * PAIRED_TOKENS;
    for (int i = 0; i < PAIRED_TOKENS; i++) {
      rows[i] = at[i] < 0 ? nullptr : x + at[i] * features;
      adjacent = adjacent && at[i] == at[0] + i;
    }
  }
};

// One paired panel from the rows of x; features up to a multiple of 32 and tokens without a row become zero.
template <class X>
void load_paired(const X* x, int64_t features, const PairedTokens& tokens, int64_t panel, uint16_t* to) {
  static thread_local Scratch scratch;
  const PanelRows<const X> from(x, features, tokens, panel);
  if (from.adjacent && from.rows[0]) return pair_rows(from.rows[0], features, PAIRED_TOKENS, features, to);
  X* copy = static_cast<X*>(scratch.get(sizeof(X) * PAIRED_TOKENS * features));
  for (int i = 0; i < PAIRED_TOKENS; i++)
    if (from.rows[i]) memcpy(copy + i * features, from.rows[i], sizeof(X) * features);
    else memset(copy + i * features, 0, sizeof(X) * features);
  pair_rows(copy, features, PAIRED_TOKENS, features, to);
}

// The rows of y from one paired panel.
template <class Y>
void store_paired(const uint16_t* from, int64_t features, const PairedTokens& tokens, int64_t panel, Y* y) {
  static thread_local Scratch scratch;
  const PanelRows<Y> to(y, features, tokens, panel);
  if (to.adjacent && to.rows[0]) return unpair_rows(from, PAIRED_TOKENS, features, to.rows[0], features);
  Y* copy = static_cast<Y*>(scratch.get(sizeof(Y) * PAIRED_TOKENS * features));
  unpair_rows(from, PAIRED_TOKENS, features, copy, features);
  for (int i = 0; i < PAIRED_TOKENS; i++)
    if (to.rows[i]) memcpy(to.rows[i], copy + i * features, sizeof(Y) * features);
}

}  // namespace SB_ISA
