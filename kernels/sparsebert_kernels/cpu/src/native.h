// The C interface of the native library, and the calls that it passes to the kernels of one instruction set.
//
// Shapes: M tokens, N out_features, K in_features. All weights of one call share K, format and value type.
#pragma once
#include <cstddef>
#include <cstdint>

extern "C" {

enum sb_dtype : int32_t { SB_F32 = 0, SB_BF16 = 1, SB_INT8 = 2, SB_PAIRED = 3, SB_F16 = 4 };
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

// y = activation(x @ W.T + bias) for the `count` weights that follow in memory. In SB_PAIRED, which row panels take, x
// and y are paired token panels (paired.h) of `stride` features and of N features, rounded up to 32.
struct sb_call {
  const void* x;  // [M, K], rows `stride` elements apart
  int64_t tokens, stride;
  int32_t x_dtype, activation;
  int32_t threads, count;
};

enum sb_engine : int32_t {
  SB_FP32_ENGINE = 0,
  SB_PAIRED_ENGINE = 1,
  SB_FP16_ENGINE = 2,           // on AVX512-FP16
  SB_FP16_EMULATED_ENGINE = 3,  // the same in plain C++, for tests
};

// One layer of an encoder: y = norm(h + down(activation(up(h)))) for h = norm(x + output(attention(x))); with pre_norm,
// y = h + down(activation(up(norm(h)))) for h = x + output(attention(norm(x))).
//
// The fp32 engine computes element, vector and dense weights in fp32, the fp16 engine element weights in fp16. The
// paired engine computes row panels; its activations are bf16, the widths of its heads multiples of 32, of 64 with
// rotary positions, and gated neurons an even number.
struct sb_layer {
  // Query, key, value, output, up, down. Every bias is fp32 and has zeros up to a multiple of eight, of 32 in the
  // paired engine; y is not used. A query of all the rows of query, key and value leaves the other two with no
  // out_features.
  sb_weight weights[6];
  const float* attention_gamma;
  const float* attention_beta;
  const float* output_gamma;
  const float* output_beta;
  const int32_t* heads;  // (heads, score width, value width) of each group of heads, in the order of the rows
  int32_t groups, activation;
  float attention_epsilon, output_epsilon;
  float scale;  // of the scores
  int32_t pre_norm;  // attention_gamma is null where the attention has no norm before it
  // Added to the scaled scores: [heads, 2 * reach + 1], column reach + d for a query d tokens after its key, and the
  // outer columns for all beyond; null for none.
  const float* relative_bias;
  // Cosines, then sines, of the angles of a head's pairs of rows (i, i + width / 2), [positions, score width]: query
  // and key are rotated by them; null for none.
  const float* rotary;
  int64_t reach, positions;
  int64_t window;  // tokens attend to those at most so far away; negative for all
  int32_t gated;   // up has twice as many rows: neurons = activation(first half) * second half
  int32_t unused;
};

// What runs before and after the layers of an encoder.
struct sb_ends {
  // From the embeddings to the width of the layers, and the first token's pooler; no out_features where there is none.
  sb_weight weights[2];
  const void* words;      // [vocabulary, width] in table_dtype; null: the call has the input of the layers
  const void* positions;  // [position_count, width]; null for none
  const void* types;      // [type_count, width]; null for none
  const float* embedding_gamma;
  const float* embedding_beta;
  const float* final_gamma;  // of the LayerNorm after the last layer; null for none
  const float* final_beta;
  int64_t vocabulary, position_count, type_count, width;
  // The position of tokens with this id; the position of the n-th other token of a sequence is padding + n. Negative:
  // positions count from 0.
  int64_t padding;
  float embedding_epsilon, final_epsilon;
  int32_t table_dtype;  // SB_F32, in the paired engine also SB_BF16
  int32_t unused;
};

// y = encoder(x) over the tokens that the mask keeps; the other rows of y become zero.
struct sb_encoder_call {
  const void* x;     // [sequences, length, hidden] in x_dtype, contiguous; not read where `ends` has embeddings
  void* y;           // the same
  const void* mask;  // [sequences, length], keep where not zero; null keeps all
  const sb_layer* layers;
  int64_t sequences, length, hidden;
  int32_t count;  // of layers
  int32_t threads;
  const sb_ends* ends;   // null for none
  const int64_t* ids;    // [sequences, length]: rows of the words
  const int64_t* types;  // the same, of the types; null for row 0
  float* pooled;         // [sequences, rows of the pooler]: tanh(pooler(first token)); null for none
  int32_t mask_bytes;    // of a value of the mask: 1 or 8
  int32_t first_kept;    // whether to reject a batch with a sequence whose first token the mask does not keep
  int32_t engine, x_dtype;  // x_dtype: of x and y: SB_F32, in the paired engine also SB_BF16
  float* vectors;           // [sequences, hidden]: the y of an sb_pool_call whose x is this y; null for none
  int32_t mean, normalize;  // as in sb_pool_call
};

// One vector for each sequence, from the tokens that the mask keeps.
struct sb_pool_call {
  const void* x;     // [sequences, length, hidden] in x_dtype, contiguous
  float* y;          // [sequences, hidden]
  const void* mask;  // as in sb_encoder_call
  int64_t sequences, length, hidden;
  int32_t mask_bytes, mean;      // mean: of the kept tokens; else the first of them
  int32_t normalize, threads;    // normalize: to length 1
  int32_t x_dtype;               // SB_F32 or SB_BF16
  int32_t unused;
};

// Results of sb_encoder.
enum sb_result : int32_t {
  SB_DONE = 0,
  SB_UNFIT = 1,
  SB_BAD_ID = 2,
  SB_PADDING_FIRST = 3,
  SB_GAP = 4,
  SB_OUT_OF_RANGE = 5,
  SB_WEIGHTED = 6,
};

// cpu/native.py packs the structs by these sizes and offsets.
static_assert(sizeof(sb_weight) == 112 && offsetof(sb_weight, bias_dtype) == 36 && offsetof(sb_weight, y) == 96,
              "sb_weight differs from _WEIGHT in cpu/native.py");
static_assert(sizeof(sb_call) == 40 && offsetof(sb_call, x_dtype) == 24 && offsetof(sb_call, count) == 36,
              "sb_call differs from _CALL in cpu/native.py");
static_assert(sizeof(sb_layer) == 784 && offsetof(sb_layer, heads) == 704 && offsetof(sb_layer, window) == 768,
              "sb_layer differs from _LAYER in cpu/encoder.py");
static_assert(sizeof(sb_ends) == 336 && offsetof(sb_ends, vocabulary) == 280 &&
                  offsetof(sb_ends, final_epsilon) == 324,
              "sb_ends differs from _ENDS in cpu/encoder.py");
static_assert(sizeof(sb_encoder_call) == 128 && offsetof(sb_encoder_call, hidden) == 48 &&
                  offsetof(sb_encoder_call, x_dtype) == 108,
              "sb_encoder_call differs from _ENCODER_CALL in cpu/encoder.py");
static_assert(sizeof(sb_pool_call) == 72 && offsetof(sb_pool_call, hidden) == 40 &&
                  offsetof(sb_pool_call, threads) == 60,
              "sb_pool_call differs from _POOL_CALL in cpu/pooling.py");
}

namespace sb {

constexpr int MAX_WEIGHTS = 8;  // weights of one call, as in cpu/native.py

// Whether the CPU has an extension, by its name in extensions.cpp, and the operating system lets this process use it.
bool usable(const char* extension);

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
  void (*paired_encoder)(const sb_encoder_call&);  // null: this instruction set has no paired engine
  void (*pool)(const sb_pool_call&);
};

// The encoder in fp16, which returns whether fp16 could hold all values; null if this machine or build lacks it.
bool (*fp16_encoder(bool emulated))(const sb_encoder_call&);

// Whether the mask of a call keeps a token.
// Static: instruction sets must not share one compiled copy.
static inline bool keeps(const void* mask, int32_t bytes, int64_t token) {
  if (!mask) return true;
  return bytes == 1 ? static_cast<const uint8_t*>(mask)[token] != 0 : static_cast<const int64_t*>(mask)[token] != 0;
}

}  // namespace sb
