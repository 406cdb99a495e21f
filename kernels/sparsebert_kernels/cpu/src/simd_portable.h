// Vectors of floats through GCC's vector extensions, for AVX2, NEON or any other target of the compiler.
#pragma once
#include <cstdint>
#include <cstring>

#include "bf16.h"

namespace SB_ISA {

struct Simd {
#if defined(__AVX2__)
  static constexpr int LANES = 8;
#else
  static constexpr int LANES = 4;
#endif
  typedef float F __attribute__((vector_size(LANES * 4)));
  typedef int32_t I __attribute__((vector_size(LANES * 4)));
  typedef float Unaligned __attribute__((vector_size(LANES * 4), aligned(4)));

  static SB_INLINE F set1(float value) { return F{} + value; }
  static SB_INLINE F load(const float* p) { return *reinterpret_cast<const F*>(p); }
  static SB_INLINE F loadu(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static SB_INLINE void store(float* p, F v) { *reinterpret_cast<F*>(p) = v; }
  static SB_INLINE void storeu(float* p, F v) { *reinterpret_cast<Unaligned*>(p) = v; }
  static SB_INLINE F min(F a, F b) { return a < b ? a : b; }
  static SB_INLINE F max(F a, F b) { return a > b ? a : b; }

  static SB_INLINE F sqrt(F v) {
    for (int lane = 0; lane < LANES; lane++) v[lane] = __builtin_sqrtf(v[lane]);
    return v;
  }

  static SB_INLINE float sum(F v) {
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += v[lane];
    return total;
  }

  static SB_INLINE F load_bf16(const uint16_t* p) {
    I bits;
    for (int lane = 0; lane < LANES; lane++) bits[lane] = static_cast<int32_t>(p[lane]) << 16;
    return reinterpret_cast<F>(bits);
  }

  // Eight weights to broadcast one by one, from memory: permutes across a whole vector are expensive on these targets.
  struct Weights {
    const float* values;
  };
  template <int T>
  static SB_INLINE Weights weights(const float* p) {
    return {p};
  }
  template <int J>
  static SB_INLINE F broadcast(const Weights& w) {
    return set1(w.values[J]);
  }

  // Four pairs of bf16 weights, widened on use.
  struct Pairs {
    const uint16_t* values;
  };
  static SB_INLINE Pairs pairs(const uint16_t* p) { return {p}; }
  template <int J>
  static SB_INLINE F broadcast(const Pairs& w) {
    return set1(from_bf16(w.values[J]));
  }

  // out[i][j] = square[j * stride + i] for LANES x LANES.
  static SB_INLINE void load_transposed(const float* square, int64_t stride, F (&out)[LANES]) {
    typedef float Quad __attribute__((vector_size(16), aligned(4)));
    typedef int32_t Pick __attribute__((vector_size(16)));
    float* result = reinterpret_cast<float*>(out);
    for (int i = 0; i < LANES; i += 4)
      for (int j = 0; j < LANES; j += 4) {
        auto row = [&](int r) { return *reinterpret_cast<const Quad*>(square + (j + r) * stride + i); };
        Quad a = row(0), b = row(1), c = row(2), d = row(3);
        Quad ab_low = __builtin_shuffle(a, b, Pick{0, 4, 1, 5}), ab_high = __builtin_shuffle(a, b, Pick{2, 6, 3, 7});
        Quad cd_low = __builtin_shuffle(c, d, Pick{0, 4, 1, 5}), cd_high = __builtin_shuffle(c, d, Pick{2, 6, 3, 7});
        float* corner = result + i * LANES + j;
        *reinterpret_cast<Quad*>(corner) = __builtin_shuffle(ab_low, cd_low, Pick{0, 1, 4, 5});
        *reinterpret_cast<Quad*>(corner + LANES) = __builtin_shuffle(ab_low, cd_low, Pick{2, 3, 6, 7});
        *reinterpret_cast<Quad*>(corner + 2 * LANES) = __builtin_shuffle(ab_high, cd_high, Pick{0, 1, 4, 5});
        *reinterpret_cast<Quad*>(corner + 3 * LANES) = __builtin_shuffle(ab_high, cd_high, Pick{2, 3, 6, 7});
      }
  }

  static SB_INLINE void load_transposed(const uint16_t* square, int64_t stride, F (&out)[LANES]) {
    alignas(64) float wide[LANES * LANES];
    for (int j = 0; j < LANES; j++) store(wide + j * LANES, load_bf16(square + j * stride));
    load_transposed(wide, LANES, out);
  }

  static SB_INLINE void storeu(uint16_t* p, F v) {
    for (int lane = 0; lane < LANES; lane++) p[lane] = to_bf16(v[lane]);
  }
};

}  // namespace SB_ISA
