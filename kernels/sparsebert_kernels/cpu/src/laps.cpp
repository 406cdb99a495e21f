#include "laps.h"

int64_t* sb::laps = nullptr;

// Makes all encoders add the time of their parts to laps [PARTS], in nanoseconds; null: no longer.
extern "C" __attribute__((visibility("default"))) void sb_record_laps(int64_t* laps) { sb::laps = laps; }
