// One vector for each sequence: the mean of its tokens or the first of them, at length 1 on request.
#pragma once
#include "bf16.h"
#include "native.h"
#include "token_panel.h"

namespace SB_ISA {

SB_INLINE float as_float(float value) { return value; }
SB_INLINE float as_float(uint16_t value) { return from_bf16(value); }
SB_INLINE Simd::F load_floats(const float* p) { return Simd::loadu(p); }
SB_INLINE Simd::F load_floats(const uint16_t* p) { return Simd::load_bf16(p); }

template <class X>
void pool_sequence(const sb_pool_call& call, int64_t s) {
  const int64_t hidden = call.hidden;
  float* y = call.y + s * hidden;
  const X* x = static_cast<const X*>(call.x) + s * call.length * hidden;
  memset(y, 0, sizeof(float) * hidden);
  int64_t count = 0;
  for (int64_t token = 0; token < call.length && (call.mean || !count); token++) {
    if (!sb::keeps(call.mask, call.mask_bytes, s * call.length + token)) continue;
    count++;
    const X* from = x + token * hidden;
    int64_t k = 0;
    for (; k + LANES <= hidden; k += LANES) Simd::storeu(y + k, Simd::loadu(y + k) + load_floats(from + k));
    for (; k < hidden; k++) y[k] += as_float(from[k]);
  }
  // Without a mask that keeps anything, the first token is that of index 0, and the mean is zero.
  if (!count && !call.mean && call.length)
    for (int64_t k = 0; k < hidden; k++) y[k] = as_float(x[k]);
  if (count > 1)
    for (int64_t k = 0; k < hidden; k++) y[k] /= static_cast<float>(count);
  if (!call.normalize) return;
  Simd::F squares{};
  float rest = 0;
  int64_t k = 0;
  for (; k + LANES <= hidden; k += LANES) squares += Simd::loadu(y + k) * Simd::loadu(y + k);
  for (; k < hidden; k++) rest += y[k] * y[k];
  float norm = __builtin_sqrtf(Simd::sum(squares) + rest);
  if (norm < 1e-12f) norm = 1e-12f;
  for (k = 0; k < hidden; k++) y[k] /= norm;
}

inline void pool(const sb_pool_call& call) {
#pragma omp parallel for num_threads(call.threads) if (call.threads > 1)
  for (int64_t s = 0; s < call.sequences; s++)
    call.x_dtype == SB_F32 ? pool_sequence<float>(call, s) : pool_sequence<uint16_t>(call, s);
}

}  // namespace SB_ISA
