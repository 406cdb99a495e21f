// IEEE fp16: registers of AVX512-FP16, or the same results in plain C++.
#pragma once
#include <cstdint>
#include <cstring>

#ifdef __AVX512FP16__
#include <immintrin.h>
#endif

#include "bf16.h"

namespace SB_ISA {

struct Half {
  uint16_t bits;
};

SB_INLINE float to_float(Half half) {
  const uint32_t sign = (half.bits & 0x8000u) << 16, magnitude = half.bits & 0x7fffu;
  uint32_t bits;
  if (magnitude < 0x400) {  // subnormal
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;  // 2^-24
    memcpy(&bits, &value, 4);
  } else {
    bits = (magnitude << 13) + ((magnitude < 0x7c00 ? 112u : 224u) << 23);  // inf and NaN have the largest exponent
  }
  bits |= sign;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Rounds to nearest even. Of a double, so that the result of a fused multiply-add is rounded once.
inline Half to_half(double value) {
  uint64_t bits;
  memcpy(&bits, &value, 8);
  const uint16_t sign = static_cast<uint16_t>(bits >> 48 & 0x8000u);
  bits &= 0x7fffffffffffffffu;
  uint16_t half;
  if (bits > 0x7ff0000000000000u) {
    half = 0x7e00;  // NaN
  } else if (bits >= 0x40effe0000000000u) {
    half = 0x7c00;  // 65520, halfway to 2^16, and more
  } else if (bits >= 0x3f10000000000000u) {  // 2^-14
    half = static_cast<uint16_t>(((bits + 0x1ffffffffffu + (bits >> 42 & 1)) >> 42) - (uint64_t{1023 - 15} << 10));
  } else {
    double magnitude;
    memcpy(&magnitude, &bits, 8);
    // Adding 2^52 rounds to an integer, the number of units of 2^-24.
    magnitude = magnitude * 16777216.0 + 4503599627370496.0;
    memcpy(&bits, &magnitude, 8);
    half = static_cast<uint16_t>(bits);
  }
  return {static_cast<uint16_t>(half | sign)};
}

#ifdef __AVX512FP16__

// WIDTH halves, 16, 32 or 64, in registers.
template <int WIDTH>
struct Halves {
  static constexpr int COUNT = WIDTH / 32;
  __m512h part[COUNT];

  static SB_INLINE Halves zero() {
    Halves h;
#pragma GCC unroll 2
    for (int i = 0; i < COUNT; i++) h.part[i] = _mm512_setzero_ph();
    return h;
  }
  static SB_INLINE Halves load(const Half* p) {
    Halves h;
#pragma GCC unroll 2
    for (int i = 0; i < COUNT; i++) h.part[i] = _mm512_load_ph(p + 32 * i);
    return h;
  }
  SB_INLINE void store(Half* p) const {
#pragma GCC unroll 2
    for (int i = 0; i < COUNT; i++) _mm512_store_ph(p + 32 * i, part[i]);
  }
  // Adds the products of a weight, which `twice` holds twice, with the halves at x.
  SB_INLINE void add_product(uint32_t twice, const Half* x) {
    const __m512h weight = _mm512_castsi512_ph(_mm512_set1_epi32(static_cast<int>(twice)));
#pragma GCC unroll 2
    for (int i = 0; i < COUNT; i++) part[i] = _mm512_fmadd_ph(weight, _mm512_load_ph(x + 32 * i), part[i]);
  }
};

template <>
struct Halves<16> {
  __m256h part;

  static SB_INLINE Halves zero() { return {_mm256_setzero_ph()}; }
  static SB_INLINE Halves load(const Half* p) { return {_mm256_load_ph(p)}; }
  SB_INLINE void store(Half* p) const { _mm256_store_ph(p, part); }
  SB_INLINE void add_product(uint32_t twice, const Half* x) {
    part = _mm256_fmadd_ph(_mm256_castsi256_ph(_mm256_set1_epi32(static_cast<int>(twice))), _mm256_load_ph(x), part);
  }
};

SB_INLINE void store_halves(Half* p, __m512 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

SB_INLINE __m512 load_halves(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

#else

template <int WIDTH>
struct Halves {
  Half part[WIDTH];

  static Halves zero() { return {}; }
  static Halves load(const Half* p) {
    Halves h;
    memcpy(h.part, p, sizeof(h.part));
    return h;
  }
  void store(Half* p) const { memcpy(p, part, sizeof(part)); }
  __attribute__((noinline)) void add_product(uint32_t twice, const Half* x) {
    const double weight = to_float(Half{static_cast<uint16_t>(twice)});
    for (int i = 0; i < WIDTH; i++) part[i] = to_half(weight * to_float(x[i]) + to_float(part[i]));
  }
};

SB_INLINE void store_halves(Half* p, Simd::F v) {
  for (int lane = 0; lane < Simd::LANES; lane++) p[lane] = to_half(v[lane]);
}

SB_INLINE Simd::F load_halves(const Half* p) {
  Simd::F v;
  for (int lane = 0; lane < Simd::LANES; lane++) v[lane] = to_float(p[lane]);
  return v;
}

#endif

}  // namespace SB_ISA
