// Radix selection among scores: histograms of their keys, and the scores above a threshold.
#include <cstdint>
#include <cstring>

#define SB_API extern "C" __attribute__((visibility("default")))

// Adds a histogram of the scores to counts [65536]: by the upper 16 bits of their keys where `upper` is -1, else
// by the lower 16 bits of the keys whose upper bits equal `upper`. Keys are unsigned integers in the order of
// the scores; zeros of both signs share a key, and NaN is skipped.
SB_API void sb_count_scores(const float* scores, int64_t n, int32_t upper, int64_t* counts) {
  for (int64_t i = 0; i < n; i++) {
    const float score = scores[i] + 0.0f;
    if (score != score) continue;
    uint32_t key;
    memcpy(&key, &score, sizeof(key));
    key ^= key >> 31 ? 0xffffffffu : 0x80000000u;
    if (upper < 0)
      counts[key >> 16]++;
    else if (key >> 16 == static_cast<uint32_t>(upper))
      counts[key & 0xffff]++;
  }
}

// mask = scores > threshold; counts = {scores above the threshold, scores equal to it}.
SB_API void sb_above(const float* scores, int64_t n, float threshold, bool* mask, int64_t* counts) {
  int64_t above = 0, at = 0;
  for (int64_t i = 0; i < n; i++) {
    mask[i] = scores[i] > threshold;
    above += scores[i] > threshold;
    at += scores[i] == threshold;
  }
  counts[0] = above;
  counts[1] = at;
}
