// The C interface of the native library, and the calls that it passes to the kernels of one instruction set.
//
// Shapes: M tokens, N out_features, K in_features. All weights of one call share K, format and value type.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

enum sb_dtype : int32_t { SB_F32 = 0, SB_BF16 = 1, SB_INT8 = 2, SB_F16 = 3 };
enum sb_format : int32_t { SB_ELEMENT = 0, SB_VECTOR = 1, SB_DENSE = 2, SB_ROW_PANEL = 3 };
enum sb_activation : int32_t { SB_NONE = 0, SB_RELU = 1, SB_GELU = 2, SB_GELU_TANH = 3 };

// A packed weight [N, K], with the fields of the Python classes ElementSparse, VectorSparse, DensePanel and
// RowPanelSparse. A row panel has block_rows rows, which share groups of block_columns columns.
struct sb_weight {
  int64_t out_features, in_features;
  int32_t format, dtype;
  int32_t block_rows, block_columns;
  int32_t vector_rows, bias_dtype;
  const void* values;
  const void* columns;    // uint8 (element) or uint16 (vector, row panel)
  const uint16_t* rows;   // element
  const int32_t* groups;  // element: (units, rows) a group
  const int64_t* blocks;  // element: first (group, row, value) of each block
  const int32_t* starts;  // first unit of each vector row, first k-step of each row panel; fp16: a flag (sb_fp16_linear)
  const void* bias;       // [N] in bias_dtype, or null
  void* y;                // [M, N], in the dtype of x, contiguous
  const float* scales;    // of the rows of int8 values; zeros past the last row
};

// y = activation(x @ W.T + bias) for the `count` weights that follow in memory.
struct sb_call {
  const void* x;  // [M, K], rows `stride` elements apart
  int64_t tokens, stride;
  int32_t x_dtype, activation;
  int32_t threads, count;
};

// One layer of an encoder, fp32: y = norm(h + down(activation(up(h)))) for h = norm(x + output(attention(x))).
struct sb_layer {
  // Query, key, value, output, up, down. Every bias is fp32 and has zeros up to a multiple of eight; y is not used.
  sb_weight weights[6];
  const float* attention_gamma;
  const float* attention_beta;
  const float* output_gamma;
  const float* output_beta;
  const int32_t* heads;  // (heads, score width, value width) of each group of heads, in the order of the rows
  int32_t groups, activation;
  float attention_epsilon, output_epsilon;
  float scale;  // of the scores
  int32_t unused;
};

// y = encoder(x) over the tokens that the mask keeps; the other rows of y become zero.
struct sb_encoder_call {
  const float* x;       // [sequences, length, hidden], contiguous
  float* y;             // the same
  const uint8_t* mask;  // [sequences, length], 1 = keep; null keeps all
  const sb_layer* layers;
  int64_t sequences, length, hidden;
  int32_t count;  // of layers
  int32_t threads;
};

// cpu/native.py packs the structs by these sizes and offsets.
static_assert(sizeof(sb_weight) == 112 && offsetof(sb_weight, bias_dtype) == 36 && offsetof(sb_weight, y) == 96,
              "sb_weight differs from _WEIGHT in cpu/native.py");
static_assert(sizeof(sb_call) == 40 && offsetof(sb_call, x_dtype) == 24 && offsetof(sb_call, count) == 36,
              "sb_call differs from _CALL in cpu/native.py");
static_assert(sizeof(sb_layer) == 736 && offsetof(sb_layer, heads) == 704 && offsetof(sb_layer, scale) == 728,
              "sb_layer differs from _LAYER in cpu/encoder.py");
static_assert(sizeof(sb_encoder_call) == 64 && offsetof(sb_encoder_call, hidden) == 48 &&
                  offsetof(sb_encoder_call, threads) == 60,
              "sb_encoder_call differs from _ENCODER_CALL in cpu/encoder.py");
}

namespace sb {

constexpr int MAX_WEIGHTS = 8;  // weights of one call, as in cpu/native.py

// An sb_call with its weights, which are known to share one call.
struct LinearCall : sb_call {
  const sb_weight* weights;
};

// Gradient of the values: the sum over tokens of dy[m, row] * x[m, column], fp32, in the layout of the values.
struct GradientCall {
  const sb_weight* weight;
  const void* dy;  // [M, N], contiguous
  const void* x;   // [M, K], contiguous
  int32_t x_dtype;  // dtype of x and dy
  int64_t tokens;
  float* dvalues;  // zeroed
  int threads;
};

struct Kernels {
  // Whether `linear` computes weights of this sb_format and sb_dtype.
  bool (*computes)(int32_t format, int32_t dtype);
  void (*linear)(const LinearCall&);
  void (*values_gradient)(const GradientCall&);
  void (*encoder)(const sb_encoder_call&);
};

}  // namespace sb
