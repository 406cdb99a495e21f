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

// erf as an odd rational function on [-4, 4]; outside, erf is +-1 to float precision.
SB_INLINE Simd::F erf(Simd::F x) {
  static const float numerator[] = {-2.72614225801306e-10f, 2.77068142495902e-08f,  -2.10102402082508e-06f,
                                    -5.69250639462346e-05f, -7.34990630326855e-04f, -2.95459980854025e-03f,
                                    -1.60960333262415e-02f};
  static const float denominator[] = {-1.45660718464996e-05f, -2.13374055278905e-04f, -1.68282697438203e-03f,
                                      -7.37332916720468e-03f, -1.42647390514189e-02f};
  x = Simd::max(Simd::min(x, Simd::set1(4.0f)), Simd::set1(-4.0f));
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
  if constexpr (ACTIVATION == SB_GELU) return half * z * (one + erf(z * Simd::set1(0.70710678f)));
  if constexpr (ACTIVATION == SB_GELU_TANH)
    return half * z * (one + tanh(Simd::set1(0.79788456f) * (z + Simd::set1(0.044715f) * z * z * z)));
  return z;
}

}  // namespace SB_ISA
