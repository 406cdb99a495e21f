// The values of the token panels in which a whole encoder keeps its activations: fp32, or fp16 where SB_FP16_PANELS is
// defined. All arithmetic on them is in fp32, except for the products and sums of linear layers in fp16.
#pragma once
#include "token_panel.h"
#ifdef SB_FP16_PANELS
#include "half.h"
#endif

namespace SB_ISA {

SB_INLINE Simd::F load_values(const float* p) { return Simd::load(p); }

SB_INLINE void load_transposed(const float* p, int64_t stride, Simd::F (&out)[LANES]) {
  Simd::load_transposed(p, stride, out);
}

// Stores vectors, and remembers whether a value was infinite, NaN or out of the range of its type. Loops take and
// return it by value: behind a reference it would stay in memory, as what they store might be it.
template <class Value>
struct Writer;

template <>
struct Writer<float> {
  SB_INLINE void store(float* p, Simd::F v) { Simd::store(p, v); }
  SB_INLINE bool out_of_range() const { return false; }  // fp32 holds what there is
};

#ifdef SB_FP16_PANELS

typedef Half Stored;

// 128 bytes a feature, so that a column block of 256 fits the L1 cache.
constexpr int WIDEST = 64 / LANES;

SB_INLINE Simd::F load_values(const Half* p) { return load_halves(p); }

SB_INLINE void load_transposed(const Half* p, int64_t stride, Simd::F (&out)[LANES]) {
  alignas(64) float wide[LANES * LANES];
  for (int j = 0; j < LANES; j++) Simd::store(wide + j * LANES, load_halves(p + j * stride));
  Simd::load_transposed(wide, LANES, out);
}

template <>
struct Writer<Half> {
  SB_INLINE void store(Half* p, Simd::F v) {
    see(v);
    store_halves(p, v);
  }
  // Values that fp16 holds times `scale` are finite, times zero zero; all others become NaN, which stays in the sum.
  SB_INLINE void see(Simd::F v) {
    const Simd::F scale = Simd::set1(3.4028235e38f / 65512.0f);
    lost = lost + v * scale * Simd::set1(0.0f);
  }
  SB_INLINE bool out_of_range() const {
    alignas(64) float lanes[LANES];
    Simd::store(lanes, lost);
    bool any = false;
    for (float lane : lanes) any |= lane != lane;
    return any;
  }
  Simd::F lost{};
};

#else

typedef float Stored;

// Vectors of a token panel: those of the element kernels, whose column blocks then fit the L1 cache.
constexpr int WIDEST = LANES == 16 ? 2 : 4;

#endif

}  // namespace SB_ISA
