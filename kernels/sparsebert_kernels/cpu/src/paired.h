// Paired panels: the activations of the paired engine, bf16, two features side by side.
//
// A paired panel holds 16 tokens: panel[feature / 2][token][feature % 2]. A line of 64 bytes is two features of 16
// tokens: the operand of a bf16 dot product, and a row of a B tile. Kept columns are therefore gathered by copying
// lines, and results, whose rows are features, become lines by one permutation, without a transposition.
//
// Vectors are GCC's vector extensions; intrinsics replace them only where the compiler needs help, so that the same
// source compiles for every machine. On x86-64, both ways give the same bits: products and sums that must be one
// operation are written `fused`, and objects with paired kernels are compiled with -ffp-contract=off.
#pragma once
#if defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "bf16.h"
#include "native.h"

namespace SB_ISA {

constexpr int64_t PAIRED_TOKENS = 16;
constexpr int LINE_VALUES = 32;       // bf16 values of a line
constexpr int PAIRED_FEATURES = 32;   // `features` of a Paired is a multiple of it, of 64 where int8 weights read it

// Paired panels of `features` features, from panel `first` on. Tokens past the last are zero or finite.
struct Paired {
  uint16_t* data;
  int64_t features;
  int64_t first = 0;

  uint16_t* panel(int64_t index) const { return data + (index - first) * features * PAIRED_TOKENS; }
};

SB_INLINE constexpr int64_t paired_panels(int64_t tokens) { return (tokens + PAIRED_TOKENS - 1) / PAIRED_TOKENS; }

// One feature of 16 tokens, and the 16 dwords of a line.
typedef float Floats __attribute__((vector_size(64), may_alias));
typedef int32_t Ints __attribute__((vector_size(64), may_alias));
typedef uint32_t Line __attribute__((vector_size(64), may_alias));
typedef float LooseFloats __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t LooseLine __attribute__((vector_size(64), aligned(2), may_alias));

SB_INLINE Floats splat(float value) { return Floats{} + value; }
SB_INLINE Floats load_floats(const float* p) { return *reinterpret_cast<const Floats*>(p); }
SB_INLINE void store_floats(float* p, Floats v) { *reinterpret_cast<Floats*>(p) = v; }
SB_INLINE Line load_line(const void* p) { return *static_cast<const Line*>(p); }
SB_INLINE Line load_loose_line(const void* p) { return *static_cast<const LooseLine*>(p); }
SB_INLINE void store_line(void* p, Line v) { *static_cast<Line*>(p) = v; }
SB_INLINE void store_loose_line(void* p, Line v) { *static_cast<LooseLine*>(p) = v; }

SB_INLINE constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
// b where one of both is NaN.
#if defined(__AVX512F__)
SB_INLINE Floats smaller(Floats a, Floats b) { return _mm512_maskz_min_ps(static_cast<__mmask16>(-1), a, b); }
SB_INLINE Floats larger(Floats a, Floats b) { return _mm512_maskz_max_ps(static_cast<__mmask16>(-1), a, b); }
#else
SB_INLINE Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
SB_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }
#endif

// a * b + c with one rounding: the product is exact in double; its sum with c is rounded to odd, so that the second
// rounding, to float, is as if it were the only one.
inline float fused(float a, float b, float c) {
  const double product = static_cast<double>(a) * b, sum = product + c;
  const double other = sum - product, error = (product - (sum - other)) + (c - other);
  int64_t bits;
  memcpy(&bits, &sum, 8);
  if (error != 0 && !(bits & 1) && sum - sum == 0) {
    bits += (error > 0) == (sum > 0) ? 1 : -1;
    double odd;
    memcpy(&odd, &bits, 8);
    return static_cast<float>(odd);
  }
  return static_cast<float>(sum);
}

#if defined(__AVX512F__)
SB_INLINE Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
#elif defined(__ARM_NEON)
SB_INLINE Floats fused(Floats a, Floats b, Floats c) {
  float32x4_t x[4], y[4], sum[4];
  memcpy(x, &a, sizeof(a));
  memcpy(y, &b, sizeof(b));
  memcpy(sum, &c, sizeof(c));
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) sum[i] = vfmaq_f32(sum[i], x[i], y[i]);
  memcpy(&c, sum, sizeof(c));
  return c;
}
#else
// A call, which is small where it is used: this way is for tests.
__attribute__((noinline)) inline void fuse_lanes(const Floats* a, const Floats* b, Floats* c) {
  for (int i = 0; i < 16; i++) (*c)[i] = fused((*a)[i], (*b)[i], (*c)[i]);
}
SB_INLINE Floats fused(Floats a, Floats b, Floats c) {
  fuse_lanes(&a, &b, &c);
  return c;
}
#endif

SB_INLINE Floats square_root(Floats v) {
#if defined(__AVX512F__)
  return _mm512_maskz_sqrt_ps(static_cast<__mmask16>(-1), v);
#else
  for (int i = 0; i < 16; i++) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

// The features of a line as floats.
SB_INLINE Floats even_of(Line line) { return reinterpret_cast<Floats>(line << 16); }
SB_INLINE Floats odd_of(Line line) { return reinterpret_cast<Floats>(line & 0xffff0000u); }

// Sixteen floats as bf16 in the upper halves of dwords; the lower halves are undefined. Rounds to nearest even as the
// instruction does: denormals become zero, NaN stays NaN.
SB_INLINE Line round_up_halves(Floats v) {
  const Line bits = reinterpret_cast<Line>(v), magnitude = bits & 0x7fffffffu;
  const Line rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const Line flushed = magnitude < 0x00800000u ? (bits & 0x80000000u) : rounded;
  return magnitude > 0x7f800000u ? (bits | 0x00400000u) : flushed;
}

// Two features of 16 tokens as a line.
SB_INLINE Line pair(Floats even, Floats odd) {
#if defined(__AVX512BF16__)
  typedef uint16_t Halves __attribute__((vector_size(64)));
  const Halves order = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
  return reinterpret_cast<Line>(_mm512_permutexvar_epi16(reinterpret_cast<__m512i>(order), halves));
#else
  return (round_up_halves(even) >> 16) | (round_up_halves(odd) & 0xffff0000u);
#endif
}

// 32 consecutive floats as 32 consecutive bf16 values.
SB_INLINE Line round_floats(const float* p) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<Line>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(p + 16), _mm512_loadu_ps(p)));
#else
  alignas(64) uint16_t halves[LINE_VALUES];
  for (int half = 0; half < 2; half++) {
    const Line rounded = round_up_halves(*reinterpret_cast<const LooseFloats*>(p + 16 * half));
    for (int i = 0; i < 16; i++) halves[16 * half + i] = static_cast<uint16_t>(rounded[i] >> 16);
  }
  return load_line(halves);
#endif
}

// GELU as x Phi(x), with Phi - 1/2 an odd polynomial on [-4, 4] that ends in exactly -1/2 and 1/2. At most 2.2e-4
// from either form of GELU, which is below a bf16 step of all but the smallest results; no division.
//
// All rows take each step together: one row alone is a chain of ten operations that wait for one another.
template <int ACTIVATION, int ROWS>
SB_INLINE void activate_paired(Floats (&x)[ROWS]) {
  if constexpr (ACTIVATION == SB_RELU) {
#pragma GCC unroll 8
    for (Floats& row : x) row = row < 0.0f ? Floats{} : row;  // keeps NaN
  }
  if constexpr (ACTIVATION == SB_GELU || ACTIVATION == SB_GELU_TANH) {
    constexpr float erf[] = {2.2588126924460994e-08f, -1.5888226698734798e-06f, 4.7763791371835396e-05f,
                             -0.0008121865103021264f, 0.008763685822486877f,    -0.06455440074205399f,
                             0.39787042140960693f};
    constexpr float tanh[] = {2.3468773591162062e-08f, -1.640719233364507e-06f, 4.893443110631779e-05f,
                              -0.0008244736236520112f, 0.008818705566227436f,   -0.06459669023752213f,
                              0.39771366119384766f};
    Floats t[ROWS], square[ROWS], p[ROWS];
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) {
      t[row] = larger(smaller(x[row], splat(4.0f)), splat(-4.0f));
      square[row] = t[row] * t[row];
      p[row] = splat(ACTIVATION == SB_GELU ? erf[0] : tanh[0]);
    }
#pragma GCC unroll 8
    for (int i = 1; i < 7; i++)
#pragma GCC unroll 8
      for (int row = 0; row < ROWS; row++)
        p[row] = fused(p[row], square[row], splat(ACTIVATION == SB_GELU ? erf[i] : tanh[i]));
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; row++) x[row] = x[row] * fused(p[row], t[row], splat(0.5f));
  }
}

// out[i][j] = in[j][i], dwords.
SB_INLINE void transpose(const Line (&in)[16], Line (&out)[16]) {
#if defined(__AVX512F__)
  __m512i a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    const __m512i first = reinterpret_cast<__m512i>(in[2 * i]), second = reinterpret_cast<__m512i>(in[2 * i + 1]);
    a[2 * i] = _mm512_unpacklo_epi32(first, second);
    a[2 * i + 1] = _mm512_unpackhi_epi32(first, second);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  // Quarter c of b[4 q + r] holds rows 4 q .. 4 q + 3 of column 4 c + r.
#pragma GCC unroll 4
  for (int r = 0; r < 4; r++) {
    const __m512i low_01 = _mm512_shuffle_i32x4(b[r], b[4 + r], 0x88);
    const __m512i high_01 = _mm512_shuffle_i32x4(b[r], b[4 + r], 0xdd);
    const __m512i low_23 = _mm512_shuffle_i32x4(b[8 + r], b[12 + r], 0x88);
    const __m512i high_23 = _mm512_shuffle_i32x4(b[8 + r], b[12 + r], 0xdd);
    out[r] = reinterpret_cast<Line>(_mm512_shuffle_i32x4(low_01, low_23, 0x88));
    out[4 + r] = reinterpret_cast<Line>(_mm512_shuffle_i32x4(high_01, high_23, 0x88));
    out[8 + r] = reinterpret_cast<Line>(_mm512_shuffle_i32x4(low_01, low_23, 0xdd));
    out[12 + r] = reinterpret_cast<Line>(_mm512_shuffle_i32x4(high_01, high_23, 0xdd));
  }
#else
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 16; j++) out[i][j] = in[j][i];
#endif
}

SB_INLINE Line load_features(const uint16_t* p) { return load_loose_line(p); }
SB_INLINE Line load_features(const float* p) { return round_floats(p); }

SB_INLINE void store_features(uint16_t* p, Line v) { store_loose_line(p, v); }
SB_INLINE void store_features(float* p, Line v) {
  // Lower and upper halves of the dwords are neighbours.
#if defined(__AVX512F__)
  const __m512i line = reinterpret_cast<__m512i>(v);
  _mm512_storeu_si512(p, _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(line)), 16));
  _mm512_storeu_si512(p + 16, _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(line, 1)), 16));
#else
  for (int i = 0; i < 16; i++) {
    p[2 * i] = from_bf16(static_cast<uint16_t>(v[i]));
    p[2 * i + 1] = from_bf16(static_cast<uint16_t>(v[i] >> 16));
  }
#endif
}

// One paired panel from up to 16 rows x, `stride` values apart. Features from `features` up to a multiple of 32, and
// tokens from `tokens` to 16, become zero.
template <class X>
void pair_rows(const X* x, int64_t stride, int64_t tokens, int64_t features, uint16_t* panel) {
  Line rows[16], lines[16];
  for (int64_t f = 0; f < features; f += PAIRED_FEATURES) {
    const bool whole = features - f >= PAIRED_FEATURES;
    if (whole && tokens >= 16) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) rows[i] = load_features(x + i * stride + f);
    } else {
      const int64_t valid = whole ? PAIRED_FEATURES : features - f;
      for (int i = 0; i < 16; i++) {
        X padded[PAIRED_FEATURES] = {};
        if (i < tokens) memcpy(padded, x + i * stride + f, sizeof(X) * valid);
        rows[i] = load_features(padded);
      }
    }
    transpose(rows, lines);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) store_line(panel + f * PAIRED_TOKENS + i * LINE_VALUES, lines[i]);
  }
}

// Up to 16 rows y, `stride` values apart, from one paired panel.
template <class Y>
void unpair_rows(const uint16_t* panel, int64_t tokens, int64_t features, Y* y, int64_t stride) {
  Line rows[16], lines[16];
  for (int64_t f = 0; f < features; f += PAIRED_FEATURES) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) lines[i] = load_line(panel + f * PAIRED_TOKENS + i * LINE_VALUES);
    transpose(lines, rows);
    if (features - f >= PAIRED_FEATURES && tokens >= 16) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) store_features(y + i * stride + f, rows[i]);
    } else {
      const int64_t valid = features - f < PAIRED_FEATURES ? features - f : PAIRED_FEATURES;
      for (int i = 0; i < 16 && i < tokens; i++) {
        Y padded[PAIRED_FEATURES];
        store_features(padded, rows[i]);
        memcpy(y + i * stride + f, padded, sizeof(Y) * valid);
      }
    }
  }
}

}  // namespace SB_ISA
