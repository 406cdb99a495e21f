// The C interface of the int8 kernels, beside native.h.
#pragma once
#include "native.h"

extern "C" {

// A packed weight [N, K] in int8, with the fields of the Python class VectorInt8. A unit is four kept columns of V
// rows: values[V][4].
struct sb_int8_weight {
  int64_t out_features, in_features;
  int32_t vector_rows, bias_dtype;
  const int8_t* values;
  const uint16_t* columns;  // four a unit
  const int32_t* starts;    // first unit of each V rows
  const float* scales;      // of the rows, padded to V like `sums`
  const int32_t* sums;      // of each row's values
  const float* limit;       // largest activation of a calibrated scale; null for a scale of each token
  const void* bias;         // [N] in bias_dtype, or null
  void* y;                  // [M, N], in the dtype of x, contiguous
};

// cpu/native.py packs the struct by its size and offsets. An sb_call comes before the weights, as in sb_linear.
static_assert(sizeof(sb_int8_weight) == 88 && offsetof(sb_int8_weight, bias_dtype) == 20 &&
                  offsetof(sb_int8_weight, limit) == 64,
              "sb_int8_weight differs from _INT8_WEIGHT in cpu/native.py");
}

namespace sb {

struct Int8Call : sb_call {
  const sb_int8_weight* weights;
};

struct Int8Kernels {
  void (*linear)(const Int8Call&);
};

}  // namespace sb
