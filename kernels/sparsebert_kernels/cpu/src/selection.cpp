// Choosing among scores: how many there are of which size, and which of them lie above a threshold.
#include <cstdint>
#include <cstring>

#define SB_API extern "C" __attribute__((visibility("default")))

// Adds to counts [65536] the scores by the upper half of their keys, or of those with this upper half (not
// -1) by the lower one. Keys are unsigned and in the order of the scores; zeros of both signs have the same
// key, and NaN has none.
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

// mask = scores > threshold; counts: how many are above it, and how many at it.
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
