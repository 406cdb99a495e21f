// Scalar bfloat16 conversions, for remainders that do not fill a vector.
#pragma once
#include <cstdint>
#include <cstring>

#define SB_INLINE inline __attribute__((always_inline))

namespace SB_ISA {

SB_INLINE float from_bf16(uint16_t half) {
  uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Round to nearest even; NaN stays NaN.
SB_INLINE uint16_t to_bf16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace SB_ISA
