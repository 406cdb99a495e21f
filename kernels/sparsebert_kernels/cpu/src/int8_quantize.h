// Activations to int8: a scale for each token, and a token panel of the quantised values.
#pragma once
#include "int8_dots.h"
#include "int8_rounding.h"

namespace SB_ISA {

SB_INLINE uint32_t magnitude_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits & 0x7fffffffu;
}

struct TokenScale {
  float scale, rate;
};

// For the bits of the largest magnitude of a token. The rate of a token that is not finite is 0.
SB_INLINE TokenScale token_scale(uint32_t bits, const float* limit) {
  if (bits >= 0x7f800000u) return {__builtin_nanf(""), 0.0f};
  float most;
  memcpy(&most, &bits, sizeof most);
  if (limit) most = *limit;
  if (most < SMALLEST_MOST) most = SMALLEST_MOST;
  return {most / 127.0f, 127.0f / most};
}

template <int N>
struct Count {
  static constexpr int VALUE = N;
};

// Calls `f` with `count`, 1 to MAX, as a type.
template <int MAX, class Function>
SB_INLINE void with_count(int64_t count, Function f) {
  if (count == MAX) f(Count<MAX>{});
  else if constexpr (MAX > 1) with_count<MAX - 1>(count, f);
}

#ifdef __AVX512VNNI__

SB_INLINE __m512 load_floats(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
SB_INLINE __m512 load_floats(const float* p) { return _mm512_loadu_ps(p); }
SB_INLINE __m512 widened(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
SB_INLINE __m512 load_floats(const uint16_t* p, __mmask16 mask) { return widened(_mm256_maskz_loadu_epi16(mask, p)); }
SB_INLINE __m512 load_floats(const uint16_t* p) {
  return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
SB_INLINE __mmask16 first_features(int64_t count) {
  return count < 16 ? static_cast<__mmask16>((1u << count) - 1) : static_cast<__mmask16>(-1);
}

// Bits of the largest magnitude: they order like the floats, NaN above infinity.
template <class X>
uint32_t largest_bits(const X* x, int64_t count) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i most[4] = {};
  // The form with a mask, because the other triggers a warning in GCC's header.
  auto add = [&](__m512i& sum, __m512 values) {
    const __m512i bits = _mm512_and_si512(_mm512_castps_si512(values), magnitude);
    sum = _mm512_maskz_max_epu32(static_cast<__mmask16>(-1), sum, bits);
  };
  int64_t k = 0;
  for (; k + 64 <= count; k += 64)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) add(most[i], load_floats(x + k + 16 * i));
  for (; k < count; k += 16) add(most[0], load_floats(x + k, first_features(count - k)));
  for (int i = 1; i < 4; i++) add(most[0], _mm512_castsi512_ps(most[i]));
  alignas(64) uint32_t lanes[16];
  _mm512_store_si512(lanes, most[0]);
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  return lanes[0];
}

constexpr int GROUP = 16;  // tokens of a quarter, or features, that are transposed together
constexpr int BLOCK = GROUP * Dots::ROW;

// A quarter's tokens, four to a dword, block by block of 16 features: dword f of line 4 * quarter + l of a block holds
// feature f of the tokens 4 l ... 4 l + 3. A quarter of x stays in the cache between its maximum and this.
template <bool LIMITED, class X>
void quantize_quarter(const X* const* rows, int64_t features, const float* rates, float limit, uint8_t* lines) {
  const __m512 rounder = _mm512_set1_ps(ROUNDER + Dots::OFFSET);
  const __m512 upper = _mm512_set1_ps(limit), lower = _mm512_set1_ps(-limit);
  const __m512i lowest_byte = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
  __m512 rate[GROUP];
#pragma GCC unroll 16
  for (int i = 0; i < GROUP; i++) rate[i] = _mm512_set1_ps(rates[i]);
  const X* from[GROUP];
  for (int i = 0; i < GROUP; i++) from[i] = rows[i];
  auto block = [&](int64_t k, auto load) {
    auto rounded = [&](int i) {
      __m512 x = load(from[i] + k);
      if (LIMITED) x = _mm512_max_ps(_mm512_min_ps(x, upper), lower);
      return _mm512_castps_si512(_mm512_fmadd_ps(x, rate[i], rounder));
    };
#pragma GCC unroll 4
    for (int i = 0; i < GROUP; i += 4) {
      __m512i four = rounded(i);
      four = _mm512_mask_shuffle_epi8(four, 0x2222222222222222u, rounded(i + 1), lowest_byte);
      four = _mm512_mask_shuffle_epi8(four, 0x4444444444444444u, rounded(i + 2), lowest_byte);
      four = _mm512_mask_shuffle_epi8(four, 0x8888888888888888u, rounded(i + 3), lowest_byte);
      _mm512_store_si512(lines + k * Dots::ROW + i / 4 * Dots::ROW, four);
    }
  };
  int64_t k = 0;
  for (; k + GROUP <= features; k += GROUP) block(k, [](const X* p) __attribute__((always_inline)) { return load_floats(p); });
  const __mmask16 mask = first_features(features - k);
  if (k < features) block(k, [=](const X* p) __attribute__((always_inline)) { return load_floats(p, mask); });
}

// Transposes the dwords of each block, in place: line f becomes feature f. The quarters from T on are not used.
template <int T>
void gather_quarters(uint8_t* token_panel, int64_t features) {
  for (uint8_t* lines = token_panel; lines < token_panel + features * Dots::ROW; lines += BLOCK) {
    __m512i out[4][4];
#pragma GCC unroll 4
    for (int l = 0; l < 4; l++) {
      __m512i in[4] = {};
#pragma GCC unroll 4
      for (int q = 0; q < T; q++) in[q] = _mm512_load_si512(lines + (4 * q + l) * Dots::ROW);
      const __m512i low_ab = _mm512_unpacklo_epi32(in[0], in[1]), low_cd = _mm512_unpacklo_epi32(in[2], in[3]);
      const __m512i high_ab = _mm512_unpackhi_epi32(in[0], in[1]), high_cd = _mm512_unpackhi_epi32(in[2], in[3]);
      out[l][0] = _mm512_unpacklo_epi64(low_ab, low_cd);
      out[l][1] = _mm512_unpackhi_epi64(low_ab, low_cd);
      out[l][2] = _mm512_unpacklo_epi64(high_ab, high_cd);
      out[l][3] = _mm512_unpackhi_epi64(high_ab, high_cd);
    }
    // Lane b of out[l][j] is lane l of feature 4 b + j.
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const __m512i low_01 = _mm512_shuffle_i32x4(out[0][j], out[1][j], 0x44);
      const __m512i high_01 = _mm512_shuffle_i32x4(out[0][j], out[1][j], 0xee);
      const __m512i low_23 = _mm512_shuffle_i32x4(out[2][j], out[3][j], 0x44);
      const __m512i high_23 = _mm512_shuffle_i32x4(out[2][j], out[3][j], 0xee);
      _mm512_store_si512(lines + j * Dots::ROW, _mm512_shuffle_i32x4(low_01, low_23, 0x88));
      _mm512_store_si512(lines + (4 + j) * Dots::ROW, _mm512_shuffle_i32x4(low_01, low_23, 0xdd));
      _mm512_store_si512(lines + (8 + j) * Dots::ROW, _mm512_shuffle_i32x4(high_01, high_23, 0x88));
      _mm512_store_si512(lines + (12 + j) * Dots::ROW, _mm512_shuffle_i32x4(high_01, high_23, 0xdd));
    }
  }
}

// Fills the token panel with `tokens` rows of x, and their scales.
template <class X>
void quantize(const X* x, int64_t stride, int64_t tokens, int64_t features, const float* limit, uint8_t* token_panel,
              float* scales) {
  const int64_t quarters = (tokens + GROUP - 1) / GROUP;
  for (int64_t q = 0; q < quarters; q++) {
    const X* rows[GROUP];
    float rates[GROUP];
    for (int64_t i = 0; i < GROUP; i++) {
      // Places past the last token repeat it.
      const int64_t t = GROUP * q + i, last = t < tokens ? t : tokens - 1;
      rows[i] = x + last * stride;
      const TokenScale both = token_scale(largest_bits(rows[i], features), limit);
      scales[t] = both.scale;
      rates[i] = both.rate;
    }
    uint8_t* lines = token_panel + 4 * q * Dots::ROW;
    if (limit) quantize_quarter<true>(rows, features, rates, *limit, lines);
    else quantize_quarter<false>(rows, features, rates, 0.0f, lines);
  }
  with_count<Dots::QUARTERS>(quarters, [&](auto count) {
    gather_quarters<decltype(count)::VALUE>(token_panel, features);
  });
}

#else

template <class X>
uint32_t largest_bits(const X* x, int64_t count) {
  uint32_t most = 0;
  for (int64_t k = 0; k < count; k++) {
    const uint32_t bits = magnitude_bits(to_float(x[k]));
    most = bits > most ? bits : most;
  }
  return most;
}

SB_INLINE int32_t rounded_product(float x, float rate) {
#ifdef __FP_FAST_FMAF
  const float sum = __builtin_fmaf(x, rate, ROUNDER);
  int32_t bits, rounder;
  const float from = ROUNDER;
  memcpy(&bits, &sum, sizeof bits);
  memcpy(&rounder, &from, sizeof rounder);
  return bits - rounder;
#else
  // The product of two floats is exact in double, and so is the integer.
  constexpr double DOUBLE_ROUNDER = 6755399441055744.0;
  const double sum = double{x} * rate + DOUBLE_ROUNDER;
  return static_cast<int32_t>(sum - DOUBLE_ROUNDER);
#endif
}

// Fills the token panel with `tokens` rows of x, and their scales.
template <class X>
void quantize(const X* x, int64_t stride, int64_t tokens, int64_t features, const float* limit,
              typename Dots::PanelValue* token_panel, float* scales) {
  constexpr int64_t PIECE = 256;
  int16_t values[PIECE];
  for (int64_t t = 0; t < Dots::ROW; t++) {
    const X* row = x + t * stride;
    const TokenScale token = t < tokens ? token_scale(largest_bits(row, features), limit) : TokenScale{};
    scales[t] = token.scale;
    const float upper = limit ? *limit : __builtin_inff();
    auto* place = token_panel + Dots::position(static_cast<int>(t));
    for (int64_t first = 0; first < features; first += PIECE) {
      const int64_t count = features - first < PIECE ? features - first : PIECE;
      // A token that is not finite becomes zeros, like the places past the last token.
      if (token.rate == 0) memset(values, 0, sizeof values);
      else
        for (int64_t k = 0; k < count; k++) {
          const float value = to_float(row[first + k]), above = value < -upper ? -upper : value;
          values[k] = static_cast<int16_t>(rounded_product(above > upper ? upper : above, token.rate));
        }
      for (int64_t k = 0; k < count; k++)
        place[(first + k) * Dots::ROW] = static_cast<typename Dots::PanelValue>(values[k] + Dots::OFFSET);
    }
  }
}

#endif

}  // namespace SB_ISA
