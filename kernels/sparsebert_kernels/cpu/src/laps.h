// Where the time of an encoder goes, for profiles: nanoseconds of each part, summed over threads.
#pragma once
#include <time.h>

#include <cstdint>

namespace sb {

// As in cpu/laps.py.
enum Part { QKV_LAP, OUTPUT_LAP, UP_LAP, DOWN_LAP, ATTENTION_LAP, NORM_LAP, LAYOUT_LAP, EMBEDDINGS_LAP, POOLER_LAP, PARTS };

// Where all calls add their times, [PARTS]; null, as nearly always, for nowhere.
extern int64_t* laps;

}  // namespace sb

namespace SB_ISA {

// Measures the parts of one task of one thread. Reads no clock without a place for the times.
class Stopwatch {
 public:
  Stopwatch() : laps_(sb::laps), last_(laps_ ? now() : 0) {}

  // Adds the time since the last lap, or since the start, to a part.
  void lap(sb::Part part) {
    if (!laps_) return;
    const int64_t time = now();
    __atomic_fetch_add(laps_ + part, time - last_, __ATOMIC_RELAXED);
    last_ = time;
  }

 private:
  static int64_t now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return int64_t{time.tv_sec} * 1000000000 + time.tv_nsec;
  }

  int64_t* laps_;
  int64_t last_;
};

}  // namespace SB_ISA
