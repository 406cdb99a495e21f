// Tile instructions of AMX with the numbers of the registers as template arguments, real or emulated.
//
// Eight registers hold 16 rows of 64 bytes each. A product adds to C, 16 x 16 sums, the product of A, 16 rows of 32
// bf16 or 64 int8 values, and B, 16 lines of pairs or quads. The instructions are written as assembler: the compiler's
// intrinsics take literal digits only, and need flags that would let the compiler use tiles where no one asked for it.
#pragma once
#include <cstdint>
#include <cstring>

#include "bf16.h"
#ifdef SB_AMX_EMULATED
#include "amx_emulation.h"
#endif

namespace SB_ISA {

#ifdef SB_AMX_EMULATED

SB_INLINE void configure_tiles() { emulated::configure(); }
SB_INLINE void release_tiles() { emulated::configure(); }
template <int T>
SB_INLINE void tile_zero() {
  emulated::zero(T);
}
template <int T>
SB_INLINE void tile_load(const void* base, int64_t stride = 64) {
  emulated::load(T, base, stride);
}
template <int T>
SB_INLINE void tile_store(void* base, int64_t stride = 64) {
  emulated::store(T, base, stride);
}
template <int C, int A, int B>
SB_INLINE void tile_product_bf16() {
  emulated::product_bf16(C, A, B);
}
template <int C, int A, int B>
SB_INLINE void tile_product_int8() {
  emulated::product_int8(C, A, B);
}

#else

SB_INLINE void configure_tiles() {
  // Palette 1; the shapes of the tiles: bytes of a row, rows.
  struct alignas(64) Shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  };
  static const Shapes shapes = {
      1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
  static_assert(sizeof(Shapes) == 64, "the operand of ldtilecfg has 64 bytes");
  asm volatile("ldtilecfg %0" ::"m"(shapes));
}
SB_INLINE void release_tiles() { asm volatile("tilerelease"); }
template <int T>
SB_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
SB_INLINE void tile_load(const void* base, int64_t stride = 64) {
  asm volatile("tileloadd (%0,%1,1),%%tmm%c2" ::"r"(base), "r"(stride), "i"(T) : "memory");
}
template <int T>
SB_INLINE void tile_store(void* base, int64_t stride = 64) {
  asm volatile("tilestored %%tmm%c2,(%0,%1,1)" ::"r"(base), "r"(stride), "i"(T) : "memory");
}
template <int C, int A, int B>
SB_INLINE void tile_product_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2,%%tmm%c1,%%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B>
SB_INLINE void tile_product_int8() {
  asm volatile("tdpbssd %%tmm%c2,%%tmm%c1,%%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

#endif

// The tile registers can be used in the scope of the outermost of these objects on a thread. Configuring them takes
// some 160 cycles and makes them zero. Released, they cost nothing at a context switch.
class TileScope {
 public:
  TileScope() {
    if (depth()++ == 0) configure_tiles();
  }
  ~TileScope() {
    if (--depth() == 0) release_tiles();
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  static int& depth() {
    static thread_local int value = 0;
    return value;
  }
};

}  // namespace SB_ISA
