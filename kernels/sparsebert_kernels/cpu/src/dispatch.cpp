// The exported functions. They select an instruction set once and pass calls to its kernels.
#include <cstring>

#include "native.h"

#define SB_DECLARE(ISA)              \
  namespace ISA {                    \
  extern const sb::Kernels kernels;  \
  }
#ifdef SB_HAVE_BASELINE
SB_DECLARE(baseline)
#endif
#ifdef SB_HAVE_NEON
SB_DECLARE(neon)
#endif
#ifdef SB_HAVE_AVX2
SB_DECLARE(avx2)
#endif
#ifdef SB_HAVE_AVX512
SB_DECLARE(avx512)
#endif
#ifdef SB_HAVE_AVX512_BF16
SB_DECLARE(avx512_bf16)
#endif

namespace {

struct InstructionSet {
  const char* name;
  const sb::Kernels* kernels;
  bool (*supported)();
};

bool always() { return true; }

#ifdef SB_HAVE_AVX2
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif
#ifdef SB_HAVE_AVX512
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif
#ifdef SB_HAVE_AVX512_BF16
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

// Best first.
const InstructionSet kInstructionSets[] = {
#ifdef SB_HAVE_AVX512_BF16
    {"avx512_bf16", &avx512_bf16::kernels, has_avx512_bf16},
#endif
#ifdef SB_HAVE_AVX512
    {"avx512", &avx512::kernels, has_avx512},
#endif
#ifdef SB_HAVE_AVX2
    {"avx2", &avx2::kernels, has_avx2},
#endif
#ifdef SB_HAVE_NEON
    {"neon", &neon::kernels, always},
#endif
#ifdef SB_HAVE_BASELINE
    {"baseline", &baseline::kernels, always},
#endif
};
constexpr int kCount = sizeof(kInstructionSets) / sizeof(kInstructionSets[0]);

const InstructionSet* best() {
  for (const InstructionSet& set : kInstructionSets)
    if (set.supported()) return &set;
  return nullptr;
}

const InstructionSet* active = best();

// Whether the encoder can compute this layer.
bool fits(const sb_layer& layer, int64_t hidden) {
  const sb_weight *query = layer.weights, *key = query + 1, *value = query + 2, *output = query + 3;
  const sb_weight *up = query + 4, *down = query + 5;
  for (const sb_weight& w : layer.weights) {
    const bool known = w.format == SB_ELEMENT || w.format == SB_DENSE ||
                       (w.format == SB_VECTOR && (w.vector_rows == 2 || w.vector_rows == 4 || w.vector_rows == 8));
    if (!known || w.dtype != SB_F32 || w.bias_dtype != SB_F32 || !w.bias || w.out_features < 1) return false;
  }
  int64_t scores = 0, values = 0;
  for (int i = 0; i < layer.groups; i++) {
    const int32_t* group = layer.heads + 3 * i;
    if (group[0] < 1 || group[1] < 1 || group[2] < 1) return false;
    scores += int64_t{group[0]} * group[1];
    values += int64_t{group[0]} * group[2];
  }
  return query->in_features == hidden && key->in_features == hidden && value->in_features == hidden &&
         query->out_features == scores && key->out_features == scores && value->out_features == values &&
         output->in_features == values && output->out_features == hidden && up->in_features == hidden &&
         down->in_features == up->out_features && down->out_features == hidden;
}

}  // namespace

extern "C" {

int __cxa_thread_atexit_impl(void (*destroy)(void*), void* object, void* library) noexcept;

// Registers the destructors of `thread_local` objects. The C++ runtime has the same function, but linking it pulls
// in the whole runtime, which needs symbols that only new C libraries have.
int __cxa_thread_atexit(void (*destroy)(void*), void* object, void* library) noexcept {
  return __cxa_thread_atexit_impl(destroy, object, library);
}
}

#define SB_API extern "C" __attribute__((visibility("default")))

// Returns the version of this interface; cpu/native.py rejects any other.
SB_API int sb_abi_version() { return 5; }

// Returns the name of the i-th instruction set that this machine supports, best first; null past the last.
SB_API const char* sb_instruction_set(int i) {
  for (const InstructionSet& set : kInstructionSets)
    if (set.supported() && i-- == 0) return set.name;
  return nullptr;
}

// Returns the name of the instruction set in use.
SB_API const char* sb_chosen() { return active->name; }

// Switches to the instruction set of this name. Returns 0 on success, 1 if this machine or build lacks it.
SB_API int sb_choose(const char* name) {
  for (int i = 0; i < kCount; i++)
    if (strcmp(kInstructionSets[i].name, name) == 0 && kInstructionSets[i].supported()) {
      active = &kInstructionSets[i];
      return 0;
    }
  return 1;
}

// Returns 1 if the instruction set in use computes linear layers with weights of this format and value type, else 0.
SB_API int sb_computes(int32_t format, int32_t dtype) { return active->kernels->computes(format, dtype); }

// Computes y = activation(x @ W.T + bias) for the weights of `call`. Returns 0 on success, 1 if no kernel supports
// the call.
SB_API int sb_linear(const sb_call* call) {
  if (call->count < 1 || call->count > sb::MAX_WEIGHTS || call->threads < 1) return 1;
  const auto* weights = reinterpret_cast<const sb_weight*>(call + 1);
  for (int i = 0; i < call->count; i++) {
    const sb_weight &w = weights[i], &first = weights[0];
    if (w.format != first.format || w.dtype != first.dtype || w.in_features != first.in_features ||
        w.block_columns != first.block_columns || w.vector_rows != first.vector_rows)
      return 1;
  }
  if (!active->kernels->computes(weights[0].format, weights[0].dtype)) return 1;
  if (call->tokens > 0) active->kernels->linear({*call, weights});
  return 0;
}

// Adds the sum over tokens of dy * x to dvalues (fp32, in the layout of the values, zeroed by the caller). Returns 0
// on success, 1 for an invalid number of threads.
SB_API int sb_values_gradient(const sb_weight* weight, const void* dy, const void* x, int32_t x_dtype,
                              int64_t tokens, float* dvalues, int threads) {
  if (threads < 1) return 1;
  active->kernels->values_gradient({weight, dy, x, x_dtype, tokens, dvalues, threads});
  return 0;
}

// Computes the layers of an encoder. Returns 0 on success, 1 for weights that it does not support or that do not fit
// together.
SB_API int sb_encoder(const sb_encoder_call* call) {
  if (call->threads < 1) return 1;
  for (int i = 0; i < call->count; i++)
    if (!fits(call->layers[i], call->hidden)) return 1;
  active->kernels->encoder(*call);
  return 0;
}
