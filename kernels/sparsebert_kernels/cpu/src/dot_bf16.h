// bf16 token panels and the two-element dot product of AVX-512-BF16.
//
// A pair of kept weights needs the tokens of two columns: an unpack interleaves them for one dot product. Unpacking
// works inside 128-bit lanes. Each group of 32 tokens is therefore stored in an order in which the two unpacked halves
// hold tokens 0..15 and 16..31.
#pragma once
#include "tiled_linear.h"
#include "element.h"
#include "vector.h"

namespace SB_ISA {

SB_INLINE __m512bh as_bf16(__m512i v) { return reinterpret_cast<__m512bh>(v); }

// Pairs (a[i], b[i]) of token i, for T vectors of 16 tokens.
template <int T>
SB_INLINE void interleave(const char* a, const char* b, __m512bh (&pairs)[T]) {
  if constexpr (T == 1) {
    __m512i low = _mm512_cvtepu16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(a)));
    __m512i high = _mm512_cvtepu16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(b)));
    pairs[0] = as_bf16(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  } else {
#pragma GCC unroll 4
    for (int t = 0; t < T; t += 2) {
      __m512i first = _mm512_load_si512(a + 32 * t), second = _mm512_load_si512(b + 32 * t);
      pairs[t] = as_bf16(_mm512_unpacklo_epi16(first, second));
      pairs[t + 1] = as_bf16(_mm512_unpackhi_epi16(first, second));
    }
  }
}

template <int T, int ROWS, int COLUMNS, int J = 0>
SB_INLINE void multiply_pairs(Simd::F (&sums)[ROWS][T], const Simd::Pairs (&weights)[ROWS],
                              const uint64_t (&columns)[ROWS], const char* token_panel) {
  if constexpr (J < COLUMNS) {
    constexpr int SHIFT = log2_of(T * LANES * 2);
#pragma GCC unroll 4
    for (int row = 0; row < ROWS; row++) {
      const __m512bh weight = as_bf16(Simd::broadcast_pair<J / 2>(weights[row]));
      __m512bh pairs[T];
      interleave<T>(token_panel + column_offset<SHIFT, J>(columns[row]),
                    token_panel + column_offset<SHIFT, J + 1>(columns[row]), pairs);
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) sums[row][t] = _mm512_dpbf16_ps(sums[row][t], pairs[t], weight);
    }
    multiply_pairs<T, ROWS, COLUMNS, J + 2>(sums, weights, columns, token_panel);
  }
}

struct DotWeights {
  typedef uint16_t Value;
  static constexpr int UNIT = 2;
  template <int T>
  static SB_INLINE Simd::Pairs load(const uint16_t* values) {
    return Simd::pairs(values);
  }
  template <int T, int ROWS, int COLUMNS>
  static SB_INLINE void multiply(Simd::F (&sums)[ROWS][T], const Simd::Pairs (&weights)[ROWS],
                                 const uint64_t (&columns)[ROWS], const char* token_panel) {
    multiply_pairs<T, ROWS, COLUMNS>(sums, weights, columns, token_panel);
  }
};

// Position of a token in the stored order of its group of 32.
constexpr int interleaved_position(int token) { return token % 16 / 4 * 8 + token / 16 * 4 + token % 4; }

// Transposes 32 tokens x 8 columns of bf16 into the stored order.
SB_INLINE void transpose_in_32x8(const uint16_t* const* rows, uint16_t* token_panel, int64_t width) {
  __m512i quad[8];
#pragma GCC unroll 8
  for (int e = 0; e < 8; e++) {
    // Lane l of quad[e]: the eight columns of token 4 l + e (e < 4) or 16 + 4 l + e - 4.
    auto row = [&](int lane) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[4 * lane + (e < 4 ? e : e + 12)]));
    };
    __m512i v = _mm512_castsi128_si512(row(0));
    v = _mm512_inserti32x4(v, row(1), 1);
    v = _mm512_inserti32x4(v, row(2), 2);
    quad[e] = _mm512_inserti32x4(v, row(3), 3);
  }
  __m512i twos[8], fours[8];
#pragma GCC unroll 4
  for (int e = 0; e < 4; e++) {
    twos[2 * e] = _mm512_unpacklo_epi16(quad[2 * e], quad[2 * e + 1]);
    twos[2 * e + 1] = _mm512_unpackhi_epi16(quad[2 * e], quad[2 * e + 1]);
  }
#pragma GCC unroll 2
  for (int h = 0; h < 8; h += 4) {
    fours[h] = _mm512_unpacklo_epi32(twos[h], twos[h + 2]);
    fours[h + 1] = _mm512_unpackhi_epi32(twos[h], twos[h + 2]);
    fours[h + 2] = _mm512_unpacklo_epi32(twos[h + 1], twos[h + 3]);
    fours[h + 3] = _mm512_unpackhi_epi32(twos[h + 1], twos[h + 3]);
  }
#pragma GCC unroll 4
  for (int q = 0; q < 4; q++) {
    _mm512_store_si512(token_panel + 2 * q * width, _mm512_unpacklo_epi64(fours[q], fours[4 + q]));
    _mm512_store_si512(token_panel + (2 * q + 1) * width, _mm512_unpackhi_epi64(fours[q], fours[4 + q]));
  }
}

// token_panel[k - begin][stored order of tokens] = x[token][k]; tokens past `tokens` are zero.
template <int T>
void load_paired_token_panel(const uint16_t* x, int64_t stride, int64_t tokens, int64_t begin, int64_t end,
                             uint16_t* token_panel) {
  constexpr int WIDTH = T * LANES, GROUP = T == 1 ? 16 : 32;
  alignas(64) static const uint16_t zeros[8] = {};
  for (int group = 0; group < WIDTH; group += GROUP) {
    const uint16_t* rows[GROUP];
    int64_t k = begin;
    if constexpr (GROUP == 32)
      for (; k + 8 <= end; k += 8) {
        for (int j = 0; j < GROUP; j++) rows[j] = group + j < tokens ? x + (group + j) * stride + k : zeros;
        transpose_in_32x8(rows, token_panel + (k - begin) * WIDTH + group, WIDTH);
      }
    for (; k < end; k++)
      for (int j = 0; j < GROUP; j++) {
        const int position = GROUP == 32 ? interleaved_position(j) : j;
        token_panel[(k - begin) * WIDTH + group + position] = group + j < tokens ? x[(group + j) * stride + k] : 0;
      }
  }
}

struct PairedTokenPanel {
  typedef uint16_t PanelValue;
  template <int T>
  static void load(const uint16_t* x, int64_t stride, int64_t tokens, int64_t begin, int64_t end,
                   uint16_t* token_panel) {
    load_paired_token_panel<T>(x, stride, tokens, begin, end, token_panel);
  }
};

struct ElementDot : PairedTokenPanel {
  static constexpr int MAX_VECTORS = 4;  // 64 tokens: 128 bytes per column, as in the fp32 family
  template <int T, bool FIRST>
  static void block(const sb_weight& w, int64_t block, int64_t, const uint16_t* token_panel, float* out,
                    const float* bias) {
    element_block<DotWeights, T, FIRST>(w, block, token_panel, out, bias);
  }
};

// Pairs of V x 1 vectors: two columns per step.
struct DotVectors {
  typedef uint16_t Value;
  typedef uint16_t PanelValue;
  static constexpr int UNIT = 2;
  template <int V, int T, int WIDTH>
  static SB_INLINE void multiply(Simd::F (&sums)[V][T], const uint16_t* values, const uint16_t* columns,
                                 const uint16_t* token_panel) {
    __m512bh pairs[T];
    interleave<T>(reinterpret_cast<const char*>(token_panel + int64_t{columns[0]} * WIDTH),
                  reinterpret_cast<const char*>(token_panel + int64_t{columns[1]} * WIDTH), pairs);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      int32_t pair;
      memcpy(&pair, values + 2 * v, sizeof(pair));
      const __m512bh weight = as_bf16(_mm512_set1_epi32(pair));
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) sums[v][t] = _mm512_dpbf16_ps(sums[v][t], pairs[t], weight);
    }
  }
};

template <int V>
struct VectorDot : PairedTokenPanel {
  static constexpr int MAX_VECTORS = 16 / V > 4 ? 4 : 16 / V;
  template <int T, bool FIRST>
  static void block(const sb_weight& w, int64_t block, int64_t features, const uint16_t* token_panel, float* out,
                    const float* bias) {
    vector_block<DotVectors, V, T, FIRST>(w, block, divide_up(features, V), token_panel, out, bias);
  }
};

inline void linear_dot(const sb::LinearCall& call) {
  const sb_weight& w = call.weights[0];
  if (w.format == SB_ELEMENT) return linear<ElementDot, uint16_t>(call);
  switch (w.vector_rows) {
    case 2: return linear<VectorDot<2>, uint16_t>(call);
    case 4: return linear<VectorDot<4>, uint16_t>(call);
    case 8: return linear<VectorDot<8>, uint16_t>(call);
  }
}

}  // namespace SB_ISA
