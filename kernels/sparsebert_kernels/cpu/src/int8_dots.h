// Dot products of int8 weights with a token panel, by the instructions at hand.
//
// A row of the token panel holds one feature of QUARTERS * LANES tokens. Four kept columns are interleaved, so that the
// four values of a token lie side by side, and serve V rows. Interleaving works inside 128-bit lanes; `position` is the
// place of a token in the row, chosen so that the sums come out in the order of the tokens.
//
// vpdpbusd multiplies unsigned with signed bytes. OFFSET = 128 is therefore added to the activations, and
// 128 * sum(weights of the row) subtracted from the sums, which start there. All sums are exact: a product is at most
// 255 * 127, so 2^31 is out of reach below 66,000 columns. vpmaddubsw is not used: it saturates pairs of products.
#pragma once
#include "token_panel.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace SB_ISA {

SB_INLINE int32_t load_four(const int8_t* values) {
  int32_t four;
  memcpy(&four, values, sizeof four);
  return four;
}

#if defined(__AVX512VNNI__)

struct Dots {
  typedef uint8_t PanelValue;
  typedef __m512i I;
  static constexpr int OFFSET = 128, QUARTERS = 4, ROW = QUARTERS * LANES;
  // Tokens are computed in multiples of GRAIN: half a register.
  static constexpr int GRAIN = 8;
  // Sums of V rows fill half of the registers.
  static constexpr int most_quarters(int V) { return 16 / V > QUARTERS ? QUARTERS : 16 / V; }
  static constexpr int position(int token) { return token % 16 / 4 * 16 + token / 16 * 4 + token % 4; }

  static SB_INLINE I set1(int32_t value) { return _mm512_set1_epi32(value); }
  static SB_INLINE Simd::F to_float(I sums) { return _mm512_cvtepi32_ps(sums); }

  template <bool HIGH>
  static SB_INLINE I bytes(I a, I b) {
    return HIGH ? _mm512_unpackhi_epi8(a, b) : _mm512_unpacklo_epi8(a, b);
  }
  template <bool HIGH>
  static SB_INLINE __m256i half_bytes(I a, I b) {
    const __m256i low_a = _mm512_castsi512_si256(a), low_b = _mm512_castsi512_si256(b);
    return HIGH ? _mm256_unpackhi_epi8(low_a, low_b) : _mm256_unpacklo_epi8(low_a, low_b);
  }

  // In assembler, since the compiler copies sums to other registers around the intrinsics, and spills some.
  static SB_INLINE void add_products(I& sums, I x, I weights) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(x), "v"(weights));
  }
  static SB_INLINE void add_half_products(I& sums, __m256i x, I weights) {
    asm("vpdpbusd %t2, %t1, %t0" : "+v"(sums) : "v"(x), "v"(weights));
  }

  // Adds one unit to the sums of V rows, for GRAINS grains of tokens from quarter FIRST on.
  template <int V, int FIRST, int GRAINS>
  static SB_INLINE void multiply(I (&sums)[V][(GRAINS + 1) / 2], const int8_t* values, const uint16_t* columns,
                                 const uint8_t* token_panel) {
    constexpr int WHOLE = GRAINS / 2, T = (GRAINS + 1) / 2;
    I x[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) x[c] = _mm512_load_si512(token_panel + int64_t{columns[c]} * ROW);
    I quads[T];
    if constexpr (WHOLE > 0) {
      const I ab = bytes<(FIRST > 1)>(x[0], x[1]), cd = bytes<(FIRST > 1)>(x[2], x[3]);
      quads[0] = _mm512_unpacklo_epi16(ab, cd);
      if constexpr (WHOLE > 1) quads[1] = _mm512_unpackhi_epi16(ab, cd);
    }
    if constexpr (WHOLE > 2) {
      const I ab = bytes<true>(x[0], x[1]), cd = bytes<true>(x[2], x[3]);
      quads[2] = _mm512_unpacklo_epi16(ab, cd);
      if constexpr (WHOLE > 3) quads[3] = _mm512_unpackhi_epi16(ab, cd);
    }
    __m256i half;
    if constexpr (WHOLE < T) {
      constexpr int quarter = FIRST + WHOLE;
      const __m256i ab = half_bytes<(quarter > 1)>(x[0], x[1]), cd = half_bytes<(quarter > 1)>(x[2], x[3]);
      half = quarter % 2 ? _mm256_unpackhi_epi16(ab, cd) : _mm256_unpacklo_epi16(ab, cd);
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      const I weights = _mm512_set1_epi32(load_four(values + 4 * v));
#pragma GCC unroll 4
      for (int t = 0; t < WHOLE; t++) add_products(sums[v][t], quads[t], weights);
      if constexpr (WHOLE < T)
        add_half_products(sums[v][WHOLE], half, weights);
    }
  }
};

#elif defined(__AVXVNNI__) || defined(__ARM_FEATURE_DOTPROD)

struct Dots {
#ifdef __AVXVNNI__
  typedef uint8_t PanelValue;
  static constexpr int OFFSET = 128, REGISTERS = 16;
#else
  typedef int8_t PanelValue;
  static constexpr int OFFSET = 0, REGISTERS = 32;
#endif
  typedef Simd::I I;
  typedef int8_t B __attribute__((vector_size(LANES * 4)));
  typedef int16_t H __attribute__((vector_size(LANES * 4)));
  static constexpr int QUARTERS = 4, ROW = QUARTERS * LANES, GRAIN = LANES;
  static constexpr int most_quarters(int V) {
    return REGISTERS / 2 / V > QUARTERS ? QUARTERS : REGISTERS / 2 / V;
  }
  static constexpr int position(int token) {
    return token % LANES / 4 * 16 + token / LANES * 4 + token % 4;
  }

  static SB_INLINE I set1(int32_t value) { return I{} + value; }
  static SB_INLINE Simd::F to_float(I sums) { return __builtin_convertvector(sums, Simd::F); }

  template <bool HIGH>
  static SB_INLINE B bytes(B a, B b) {
    B pick;
    for (int i = 0; i < LANES * 4; i++)
      pick[i] = static_cast<int8_t>(i / 16 * 16 + i % 16 / 2 + (HIGH ? 8 : 0) + (i % 2 ? LANES * 4 : 0));
    return __builtin_shuffle(a, b, pick);
  }
  template <bool HIGH>
  static SB_INLINE B pairs(B a, B b) {
    H pick;
    for (int i = 0; i < LANES * 2; i++)
      pick[i] = static_cast<int16_t>(i / 8 * 8 + i % 8 / 2 + (HIGH ? 4 : 0) + (i % 2 ? LANES * 2 : 0));
    return reinterpret_cast<B>(__builtin_shuffle(reinterpret_cast<H>(a), reinterpret_cast<H>(b), pick));
  }
  static SB_INLINE I dot(I sums, B x, I weights) {
#ifdef __AVXVNNI__
    return reinterpret_cast<I>(_mm256_dpbusd_avx_epi32(
        reinterpret_cast<__m256i>(sums), reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(weights)));
#else
    return reinterpret_cast<I>(vdotq_s32(reinterpret_cast<int32x4_t>(sums), reinterpret_cast<int8x16_t>(x),
                                         reinterpret_cast<int8x16_t>(weights)));
#endif
  }

  // Adds one unit to the sums of V rows, for the quarters [FIRST, FIRST + T).
  template <int V, int FIRST, int T>
  static SB_INLINE void multiply(I (&sums)[V][T], const int8_t* values, const uint16_t* columns,
                                 const PanelValue* token_panel) {
    B x[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) x[c] = *reinterpret_cast<const B*>(token_panel + int64_t{columns[c]} * ROW);
    const B low_ab = bytes<false>(x[0], x[1]), low_cd = bytes<false>(x[2], x[3]);
    const B high_ab = bytes<true>(x[0], x[1]), high_cd = bytes<true>(x[2], x[3]);
    const B quads[] = {pairs<false>(low_ab, low_cd), pairs<true>(low_ab, low_cd), pairs<false>(high_ab, high_cd),
                       pairs<true>(high_ab, high_cd)};
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      const I weights = set1(load_four(values + 4 * v));
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) sums[v][t] = dot(sums[v][t], quads[FIRST + t], weights);
    }
  }
};

#else

// Without dot products of bytes: activations in 16 bits, whose products are added in pairs.
struct Dots {
  typedef int16_t PanelValue;
  typedef Simd::I I;
  typedef int16_t H __attribute__((vector_size(LANES * 4)));
  static constexpr int OFFSET = 0, QUARTERS = 2, ROW = QUARTERS * LANES, GRAIN = LANES;
  static constexpr int most_quarters(int V) { return V > 4 ? 1 : QUARTERS; }
  static constexpr int position(int token) {
    return token % LANES / 4 * 8 + token / LANES * 4 + token % 4;
  }

  static SB_INLINE I set1(int32_t value) { return I{} + value; }
  static SB_INLINE Simd::F to_float(I sums) { return __builtin_convertvector(sums, Simd::F); }

  template <bool HIGH>
  static SB_INLINE H pairs(H a, H b) {
    H pick;
    for (int i = 0; i < LANES * 2; i++)
      pick[i] = static_cast<int16_t>(i / 8 * 8 + i % 8 / 2 + (HIGH ? 4 : 0) + (i % 2 ? LANES * 2 : 0));
    return __builtin_shuffle(a, b, pick);
  }
  // The sums of two neighbouring products.
  static SB_INLINE I products(H x, const int16_t* pair) {
    int32_t both;
    memcpy(&both, pair, sizeof both);
    const I weights = set1(both);
#if defined(__AVX2__)
    return reinterpret_cast<I>(
        _mm256_madd_epi16(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(weights)));
#elif defined(__SSE2__)
    return reinterpret_cast<I>(_mm_madd_epi16(reinterpret_cast<__m128i>(x), reinterpret_cast<__m128i>(weights)));
#else
    const I tokens = reinterpret_cast<I>(x);
    return (tokens << 16 >> 16) * (weights << 16 >> 16) + (tokens >> 16) * (weights >> 16);
#endif
  }

  // Adds one unit to the sums of V rows, for the quarters [FIRST, FIRST + T).
  template <int V, int FIRST, int T>
  static SB_INLINE void multiply(I (&sums)[V][T], const int8_t* values, const uint16_t* columns,
                                 const int16_t* token_panel) {
    alignas(64) int16_t wide[V * 4];
    for (int i = 0; i < V * 4; i++) wide[i] = values[i];
#pragma GCC unroll 2
    for (int p = 0; p < 2; p++) {
      const H a = *reinterpret_cast<const H*>(token_panel + int64_t{columns[2 * p]} * ROW);
      const H b = *reinterpret_cast<const H*>(token_panel + int64_t{columns[2 * p + 1]} * ROW);
      const H both[] = {pairs<false>(a, b), pairs<true>(a, b)};
#pragma GCC unroll 8
      for (int v = 0; v < V; v++)
#pragma GCC unroll 2
        for (int t = 0; t < T; t++) sums[v][t] += products(both[FIRST + t], wide + 4 * v + 2 * p);
    }
  }
};

#endif

}  // namespace SB_ISA
