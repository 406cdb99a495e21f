// Activation functions on vectors, applied while a result is stored from its token panel.
#pragma once
#include "native.h"

namespace SB_ISA {

template <class F>
SB_INLINE F horner(F x, const float* coefficients, int count) {
  F sum = Simd::set1(coefficients[0]);
  for (int i = 1; i < count; i++) sum = sum * x + Simd::set1(coefficients[i]);
  return sum;
}

// The normal distribution less 1/2, which is erf(x / sqrt(2)) / 2, as an odd rational function on [-4, 4] * sqrt(2);
// outside, it is +-1/2 to float precision.
SB_INLINE Simd::F centred_normal(Simd::F x) {
  static const float numerator[] = {-1.50599506025019e-12f, 3.06119941265020e-10f,  -4.64265103925388e-08f, -2.51575617099127e-06f,
                                    -6.49646073515868e-05f, -5.22304390077821e-04f, -5.69080715759501e-03f};
  static const float denominator[] = {-9.10379490406225e-07f, -2.66717569098631e-05f, -4.20706743595508e-04f, -3.68666458360234e-03f,
                                      -1.42647390514189e-02f};
  x = Simd::max(Simd::min(x, Simd::set1(5.65685425f)), Simd::set1(-5.65685425f));
  const Simd::F square = x * x;
  return x * horner(square, numerator, 7) / horner(square, denominator, 5);
}

// tanh as an odd rational function on [-9, 9]; outside, tanh is +-1 to float precision.
SB_INLINE Simd::F tanh(Simd::F x) {
  static const float numerator[] = {-2.76076847742355e-16f, 2.00018790482477e-13f, -8.60467152213735e-11f,
                                    5.12229709037114e-08f,  1.48572235717979e-05f, 6.37261928875436e-04f,
                                    4.89352455891786e-03f};
  static const float denominator[] = {1.19825839466702e-06f, 1.18534705686654e-04f, 2.26843463243900e-03f,
                                      4.89352518554385e-03f};
  x = Simd::max(Simd::min(x, Simd::set1(9.0f)), Simd::set1(-9.0f));
  const Simd::F square = x * x;
  return x * horner(square, numerator, 7) / horner(square, denominator, 4);
}

template <int ACTIVATION>
SB_INLINE Simd::F activate(Simd::F z) {
  typedef Simd::F F;
  const F half = Simd::set1(0.5f), one = Simd::set1(1.0f);
  if constexpr (ACTIVATION == SB_RELU) return Simd::max(F{}, z);  // this order of the operands keeps NaN
  if constexpr (ACTIVATION == SB_GELU) return z * (half + centred_normal(z));
  if constexpr (ACTIVATION == SB_GELU_TANH)
    return half * z * (one + tanh(Simd::set1(0.79788456f) * (z + Simd::set1(0.044715f) * z * z * z)));
  return z;
}

}  // namespace SB_ISA
