// One vector for each sequence: the mean of its tokens or the first of them, at length 1 on request.
#pragma once
#include "native.h"
#include "token_panel.h"

namespace SB_ISA {

inline void pool_sequence(const sb_pool_call& call, int64_t s) {
  const int64_t hidden = call.hidden;
  float* y = call.y + s * hidden;
  const float* x = call.x + s * call.length * hidden;
  memset(y, 0, sizeof(float) * hidden);
  int64_t count = 0;
  for (int64_t token = 0; token < call.length && (call.mean || !count); token++) {
    if (!sb::keeps(call.mask, call.mask_bytes, s * call.length + token)) continue;
    count++;
    const float* from = x + token * hidden;
    int64_t k = 0;
    for (; k + LANES <= hidden; k += LANES) Simd::storeu(y + k, Simd::loadu(y + k) + Simd::loadu(from + k));
    for (; k < hidden; k++) y[k] += from[k];
  }
  // Without a mask that keeps anything, the first token is that of index 0, and the mean is zero.
  if (!count && !call.mean && call.length) memcpy(y, x, sizeof(float) * hidden);
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
  for (int64_t s = 0; s < call.sequences; s++) pool_sequence(call, s);
}

}  // namespace SB_ISA
