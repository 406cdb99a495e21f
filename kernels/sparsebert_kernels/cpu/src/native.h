// The plain C interface of the native library, and the call it hands to the kernels of one instruction set.
//
// Shapes: M tokens, N out_features, K in_features. All weights of one call share K, format and value type.
#pragma once
#include <cstdint>

extern "C" {

enum sb_dtype : int32_t { SB_F32 = 0, SB_BF16 = 1 };
enum sb_format : int32_t { SB_ELEMENT = 0, SB_VECTOR = 1 };
enum sb_activation : int32_t { SB_NONE = 0, SB_RELU = 1, SB_GELU = 2, SB_GELU_TANH = 3 };

// A packed weight [N, K]; the fields are those of the Python classes ElementSparse and VectorSparse.
struct sb_weight {
  int64_t out_features, in_features;
  int32_t format, dtype;
  int32_t block_rows, block_columns;
  int32_t vector_rows, bias_dtype;
  const void* values;
  const void* columns;    // uint8 (element) or uint16 (vector)
  const uint16_t* rows;   // element
  const int32_t* groups;  // element: (units, rows) a group
  const int64_t* blocks;  // element: (group, row, value) where a block begins
  const int32_t* starts;  // vector: first unit of a panel
  const void* bias;       // [N] in bias_dtype, or null
  void* y;                // [M, N], in the dtype of x, contiguous
};

// y = activation(x @ W.T + bias) for the `count` weights that follow in memory.
struct sb_call {
  const void* x;  // [M, K], rows `stride` elements apart
  int64_t tokens, stride;
  int32_t x_dtype, activation;
  int32_t threads, count;
};
}

namespace sb {

// An sb_call whose weights were found to go together.
struct LinearCall : sb_call {
  const sb_weight* weights;
};

// gradient of the values: sum over tokens of dy[m, row] * x[m, column], fp32, in the layout of the values.
struct GradientCall {
  const sb_weight* weight;
  const void* dy;  // [M, N], contiguous
  const void* x;   // [M, K], contiguous
  int32_t x_dtype; // of dy as well
  int64_t tokens;
  float* dvalues;  // zeroed
  int threads;
};

struct Kernels {
  void (*linear)(const LinearCall&);
  void (*values_gradient)(const GradientCall&);
};

}  // namespace sb
