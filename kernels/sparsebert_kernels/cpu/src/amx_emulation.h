// The tile instructions in plain C++, for tests on machines without AMX.
//
// Sums are rounded as by the hardware, so that real and emulated tiles give the same bits. A bf16 product adds the even
// and the odd columns in two chains of fused multiply-adds from zero, then their sum to the accumulator; operands and
// results that are denormal count as zero.
#pragma once
#include <cstdint>
#include <cstring>

#include "bf16.h"

namespace SB_ISA {
namespace emulated {

constexpr int ROWS = 16, BYTES = 64, SUMS = 16;

struct Tile {
  alignas(64) unsigned char rows[ROWS][BYTES];
};

inline Tile& tile(int i) {
  static thread_local Tile tiles[8];
  return tiles[i];
}

__attribute__((noinline)) inline void zero(int i) { memset(&tile(i), 0, sizeof(Tile)); }
__attribute__((noinline)) inline void configure() {
  for (int i = 0; i < 8; i++) zero(i);
}
__attribute__((noinline)) inline void load(int i, const void* base, int64_t stride) {
  for (int r = 0; r < ROWS; r++) memcpy(tile(i).rows[r], static_cast<const char*>(base) + r * stride, BYTES);
}
__attribute__((noinline)) inline void store(int i, void* base, int64_t stride) {
  for (int r = 0; r < ROWS; r++) memcpy(static_cast<char*>(base) + r * stride, tile(i).rows[r], BYTES);
}

inline float flushed(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
  memcpy(&value, &bits, 4);
  return value;
}

// sum + a * b with one rounding. The product of two bf16 values is exact in double, and so short that a sum which is
// rounded to double first is rounded to the same float.
inline float add_product(float sum, float a, float b) {
  return flushed(static_cast<float>(static_cast<double>(sum) + static_cast<double>(a) * b));
}

__attribute__((noinline)) inline void product_bf16(int c, int a, int b) {
  for (int row = 0; row < ROWS; row++) {
    float even[SUMS] = {}, odd[SUMS] = {}, sums[SUMS];
    for (int k = 0; k < ROWS; k++) {
      uint16_t weights[2], line[2 * SUMS];
      memcpy(weights, tile(a).rows[row] + 4 * k, 4);
      memcpy(line, tile(b).rows[k], BYTES);
      const float w_even = flushed(from_bf16(weights[0])), w_odd = flushed(from_bf16(weights[1]));
      for (int n = 0; n < SUMS; n++) {
        even[n] = add_product(even[n], w_even, flushed(from_bf16(line[2 * n])));
        odd[n] = add_product(odd[n], w_odd, flushed(from_bf16(line[2 * n + 1])));
      }
    }
    memcpy(sums, tile(c).rows[row], BYTES);
    for (int n = 0; n < SUMS; n++) sums[n] = flushed(flushed(sums[n]) + flushed(even[n] + odd[n]));
    memcpy(tile(c).rows[row], sums, BYTES);
  }
}

__attribute__((noinline)) inline void product_int8(int c, int a, int b) {
  for (int row = 0; row < ROWS; row++) {
    uint32_t sums[SUMS];  // they wrap around
    memcpy(sums, tile(c).rows[row], BYTES);
    for (int k = 0; k < ROWS; k++) {
      int8_t weights[4], line[4 * SUMS];
      memcpy(weights, tile(a).rows[row] + 4 * k, 4);
      memcpy(line, tile(b).rows[k], BYTES);
      for (int n = 0; n < SUMS; n++)
        for (int j = 0; j < 4; j++) sums[n] += static_cast<uint32_t>(weights[j] * line[4 * n + j]);
    }
    memcpy(tile(c).rows[row], sums, BYTES);
  }
}

}  // namespace emulated
}  // namespace SB_ISA
