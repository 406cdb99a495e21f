// Activations to int8: the definition that quantization.py shares.
//
// With `most` the largest magnitude of a token, or the calibrated limit:
//   scale = most / 127, value = round_to_even(clamp(x, -most, most) * (127 / most)), the product unrounded.
// A token with a NaN or infinity gets the scale NaN, so that all of its results are NaN, and no other token's.
#pragma once

namespace SB_ISA {

// Smaller tokens count as zeros: 127 / most stays finite.
constexpr float SMALLEST_MOST = 1e-20f;
// Adding it rounds a float to an integer, which its lowest byte then holds.
constexpr float ROUNDER = 12582912.0f;

}  // namespace SB_ISA
