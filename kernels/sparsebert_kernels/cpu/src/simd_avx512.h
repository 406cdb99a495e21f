// Vectors of 16 floats through AVX-512 intrinsics, with the interface of simd_portable.h.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "bf16.h"

namespace SB_ISA {

struct Simd {
  static constexpr int LANES = 16;
  typedef __m512 F;

  static SB_INLINE F set1(float value) { return _mm512_set1_ps(value); }
  static SB_INLINE F load(const float* p) { return _mm512_load_ps(p); }
  static SB_INLINE F loadu(const float* p) { return _mm512_loadu_ps(p); }
  static SB_INLINE void store(float* p, F v) { _mm512_store_ps(p, v); }
  static SB_INLINE void storeu(float* p, F v) { _mm512_storeu_ps(p, v); }
  static SB_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
  static SB_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
  static SB_INLINE F sqrt(F v) { return _mm512_maskz_sqrt_ps(static_cast<__mmask16>(-1), v); }
  static SB_INLINE float sum(F v) { return _mm512_reduce_add_ps(v); }

  static SB_INLINE F load_bf16(const uint16_t* p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }

  // Eight fp32 weights to broadcast one by one. Where a weight has one product, shuffles limit the speed: two loads
  // fill all quarters, since shuffles inside quarters take the least. Where it has several, loads do: one is enough.
  struct Quarters {
    F low, high;
  };
  struct Eight {
    F lanes;
  };
  template <int T>
  static SB_INLINE auto weights(const float* p) {
    if constexpr (T == 1) return Quarters{four_lanes(p), four_lanes(p + 4)};
    else return Eight{_mm512_castps256_ps512(_mm256_loadu_ps(p))};
  }
  template <int J>
  static SB_INLINE F broadcast(const Quarters& w) {
    return quarter_lane<J % 4>(J < 4 ? w.low : w.high);
  }
  template <int J>
  static SB_INLINE F broadcast(const Eight& w) {
    return _mm512_permutexvar_ps(_mm512_set1_epi32(J), w.lanes);
  }

  // Every quarter holds the same four 32-bit lanes, so that a broadcast needs no index register.
  static SB_INLINE F four_lanes(const void* p) {
    return _mm512_broadcast_f32x4(_mm_loadu_ps(static_cast<const float*>(p)));
  }
  template <int J>
  static SB_INLINE F quarter_lane(F four) {
    return _mm512_permute_ps(four, J * 0x55);
  }

  // Four pairs of bf16 weights; a pair is one 32-bit lane.
  struct Pairs {
    F four;
  };
  static SB_INLINE Pairs pairs(const uint16_t* p) { return {four_lanes(p)}; }
  template <int J>
  static SB_INLINE F broadcast(const Pairs& w) {
    const __m512i pair = broadcast_pair<J / 2>(w), high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm512_castsi512_ps(J % 2 ? _mm512_and_si512(pair, high) : _mm512_slli_epi32(pair, 16));
  }
  template <int J>
  static SB_INLINE __m512i broadcast_pair(const Pairs& w) {
    return _mm512_castps_si512(quarter_lane<J>(w.four));
  }

  // out[i][j] = square[j * stride + i] for 16 x 16. Loading quarters takes two shuffle stages instead of four.
  static SB_INLINE void load_transposed(const float* square, int64_t stride, F (&out)[LANES]) {
    F quarter[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
      const float* corner = square + i % 4 * stride + i / 4 * 4;
      F v = _mm512_castps128_ps512(_mm_loadu_ps(corner));
      v = _mm512_insertf32x4(v, _mm_loadu_ps(corner + 4 * stride), 1);
      v = _mm512_insertf32x4(v, _mm_loadu_ps(corner + 8 * stride), 2);
      quarter[i] = _mm512_insertf32x4(v, _mm_loadu_ps(corner + 12 * stride), 3);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) transpose_quarters(quarter + i, out + i);
  }

  static SB_INLINE void load_transposed(const uint16_t* square, int64_t stride, F (&out)[LANES]) {
    F quarter[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
      const uint16_t* corner = square + i % 4 * stride + i / 4 * 4;
      auto four = [&](int row) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(corner + row * stride)); };
      __m256i v = _mm256_set_m128i(_mm_unpacklo_epi64(four(8), four(12)), _mm_unpacklo_epi64(four(0), four(4)));
      quarter[i] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) transpose_quarters(quarter + i, out + i);
  }

  // Transposes four registers, which hold four columns of four rows in each quarter, into four columns of 16 rows.
  static SB_INLINE void transpose_quarters(const F* in, F* out) {
    __m512d low_ab = _mm512_castps_pd(_mm512_unpacklo_ps(in[0], in[1]));
    __m512d high_ab = _mm512_castps_pd(_mm512_unpackhi_ps(in[0], in[1]));
    __m512d low_cd = _mm512_castps_pd(_mm512_unpacklo_ps(in[2], in[3]));
    __m512d high_cd = _mm512_castps_pd(_mm512_unpackhi_ps(in[2], in[3]));
    out[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low_ab, low_cd));
    out[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low_ab, low_cd));
    out[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high_ab, high_cd));
    out[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high_ab, high_cd));
  }

  // Round to nearest even; NaN stays NaN.
  static SB_INLINE void storeu(uint16_t* p, F v) {
    __m512i bits = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
  }
};

}  // namespace SB_ISA
