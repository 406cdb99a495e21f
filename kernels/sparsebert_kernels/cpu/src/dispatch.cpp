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
#ifdef SB_HAVE_NEON_BF16
SB_DECLARE(neon_bf16)
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
#ifdef SB_HAVE_AMX
SB_DECLARE(amx)
#endif
#ifdef SB_HAVE_AMX_EMULATED
SB_DECLARE(amx_emulated)
#endif

namespace {

struct InstructionSet {
  const char* name;
  const sb::Kernels* kernels;
  bool (*supported)();
  bool hidden = false;  // for tests: neither listed nor chosen unless named
};

bool always() { return true; }

#ifdef SB_HAVE_AVX2
bool has_avx2() { return sb::usable("avx2"); }
#endif
#ifdef SB_HAVE_AVX512
bool has_avx512() { return sb::usable("avx2") && sb::usable("avx512"); }
#endif
#ifdef SB_HAVE_AVX512_BF16
// Every CPU with the one has the other.
bool has_avx512_bf16() { return has_avx512() && sb::usable("avx512_bf16") && sb::usable("avx512_vnni"); }
#endif
#ifdef SB_HAVE_AMX
bool has_amx() { return has_avx512_bf16() && sb::usable("amx_bf16") && sb::usable("amx_int8"); }
#endif

#ifdef SB_HAVE_NEON_BF16
// Every CPU with the one has the other.
bool has_neon_bf16() { return sb::usable("neon_bf16") && sb::usable("neon_dotprod"); }
#endif

// Best first.
const InstructionSet kInstructionSets[] = {
#ifdef SB_HAVE_AMX
    {"amx", &amx::kernels, has_amx},
#endif
#ifdef SB_HAVE_AVX512_BF16
    {"avx512_bf16", &avx512_bf16::kernels, has_avx512_bf16},
#endif
#ifdef SB_HAVE_AVX512
    {"avx512", &avx512::kernels, has_avx512},
#endif
#ifdef SB_HAVE_AVX2
    {"avx2", &avx2::kernels, has_avx2},
#endif
#ifdef SB_HAVE_NEON_BF16
    {"neon_bf16", &neon_bf16::kernels, has_neon_bf16},
#endif
#ifdef SB_HAVE_NEON
    {"neon", &neon::kernels, always},
#endif
#ifdef SB_HAVE_BASELINE
    {"baseline", &baseline::kernels, always},
#endif
#ifdef SB_HAVE_AMX_EMULATED
    {"amx_emulated", &amx_emulated::kernels, always, true},
#endif
};
constexpr int kCount = sizeof(kInstructionSets) / sizeof(kInstructionSets[0]);

const InstructionSet* best() {
  for (const InstructionSet& set : kInstructionSets)
    if (!set.hidden && set.supported()) return &set;
  return nullptr;
}

const InstructionSet* active = best();

bool computes_paired(const sb_weight& w) {
  const bool rows = w.block_rows == 16 || w.block_rows == 32 || w.block_rows == 64;
  return w.format == SB_ROW_PANEL && rows && active->kernels->computes(SB_ROW_PANEL, w.dtype);
}

bool computes_fp32(const sb_weight& w) {
  const bool rows = w.vector_rows == 2 || w.vector_rows == 4 || w.vector_rows == 8;
  return w.dtype == SB_F32 && (w.format == SB_ELEMENT || w.format == SB_DENSE || (w.format == SB_VECTOR && rows));
}

bool computed(const sb_weight& w, int32_t engine) {
  switch (engine) {
    case SB_FP32_ENGINE: return computes_fp32(w);
    case SB_PAIRED_ENGINE: return computes_paired(w);
    default: return w.format == SB_ELEMENT && w.dtype == SB_F16;
  }
}

// Whether an engine computes a weight.
bool known(const sb_weight& w, int32_t engine) {
  return computed(w, engine) && w.bias_dtype == SB_F32 && w.bias && w.out_features > 0;
}

// Whether an engine can compute this layer.
bool fits(const sb_layer& layer, int64_t hidden, int32_t engine) {
  const bool paired = engine == SB_PAIRED_ENGINE;
  const sb_weight *query = layer.weights, *key = query + 1, *value = query + 2, *output = query + 3;
  const sb_weight *up = query + 4, *down = query + 5;
  const bool joint = key->out_features == 0 && value->out_features == 0;
  for (const sb_weight& w : layer.weights)
    if (!known(w, engine) && !(joint && (&w == key || &w == value))) return false;
  int64_t scores = 0, values = 0;
  for (int i = 0; i < layer.groups; i++) {
    const int32_t* group = layer.heads + 3 * i;
    if (group[0] < 1 || group[1] < 1 || group[2] < 1) return false;
    if (paired && (group[1] % 32 || group[2] % 32)) return false;
    scores += int64_t{group[0]} * group[1];
    values += int64_t{group[0]} * group[2];
  }
  if (layer.rotary && (layer.groups != 1 || layer.heads[1] % (paired ? 64 : 2))) return false;
  if (paired && layer.gated && down->in_features % 2) return false;
  if (layer.relative_bias && (layer.scale == 0 || layer.reach < 0)) return false;
  const bool projections =
      joint ? query->out_features == 2 * scores + values
            : key->in_features == hidden && value->in_features == hidden && query->out_features == scores &&
                  key->out_features == scores && value->out_features == values;
  return projections && query->in_features == hidden && output->in_features == values &&
         output->out_features == hidden && up->in_features == hidden &&
         up->out_features == down->in_features * (layer.gated ? 2 : 1) && down->out_features == hidden;
}

// Whether the encoder can compute what comes before and after the layers.
bool fits(const sb_ends& ends, const sb_encoder_call& call) {
  const sb_weight &projection = ends.weights[0], &pooler = ends.weights[1];
  const bool paired = call.engine == SB_PAIRED_ENGINE;
  if (ends.table_dtype != SB_F32 && !(paired && ends.table_dtype == SB_BF16)) return false;
  if (projection.out_features > 0 &&
      (!known(projection, call.engine) || projection.in_features != ends.width || projection.out_features != call.hidden))
    return false;
  if (ends.words && ((projection.out_features == 0 && ends.width != call.hidden) || !call.ids)) return false;
  return pooler.out_features == 0 ? !call.pooled : known(pooler, call.engine) && pooler.in_features == call.hidden;
}

// Checks the numbers of tokens, positions and types, and the mask: SB_DONE, or what is wrong.
sb_result check_tokens(const sb_encoder_call& call) {
  const sb_ends* ends = call.ends && call.ends->words ? call.ends : nullptr;
  int64_t positions = INT64_MAX;  // of the tables of rotary positions
  bool relative = false;
  for (int i = 0; i < call.count; i++) {
    const sb_layer& layer = call.layers[i];
    relative |= layer.relative_bias || layer.rotary || layer.window >= 0;
    if (layer.rotary && layer.positions < positions) positions = layer.positions;
  }
  if (call.length > positions) return SB_BAD_ID;
  for (int64_t s = 0; s < call.sequences; s++) {
    const int64_t first = s * call.length;
    if (call.first_kept && call.length && !sb::keeps(call.mask, call.mask_bytes, first)) return SB_PADDING_FIRST;
    int64_t words = 0;
    bool gap = false;
    for (int64_t i = first; i < first + call.length; i++) {
      const bool kept = sb::keeps(call.mask, call.mask_bytes, i);
      if (relative && kept && gap) return SB_GAP;
      gap |= !kept;
      if (!ends) continue;
      if (call.ids[i] < 0 || call.ids[i] >= ends->vocabulary) return SB_BAD_ID;
      if (call.types && ends->types && (call.types[i] < 0 || call.types[i] >= ends->type_count)) return SB_BAD_ID;
      words += call.ids[i] != ends->padding;
    }
    if (!ends || !ends->positions || !call.length) continue;
    const int64_t last = ends->padding < 0 ? call.length - 1 : ends->padding + words;
    if (last >= ends->position_count) return SB_BAD_ID;
  }
  return SB_DONE;
}

// Whether a mask keeps each token in full or not at all.
bool unweighted(const void* mask, int32_t bytes, int64_t tokens) {
  if (!mask || bytes != 8) return true;
  for (int64_t i = 0; i < tokens; i++)
    if (static_cast<uint64_t>(static_cast<const int64_t*>(mask)[i]) > 1) return false;
  return true;
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
SB_API int sb_abi_version() { return 6; }

// Returns the name of the i-th instruction set that this machine supports, best first; null past the last.
SB_API const char* sb_instruction_set(int i) {
  for (const InstructionSet& set : kInstructionSets)
    if (!set.hidden && set.supported() && i-- == 0) return set.name;
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
  if (call->x_dtype == SB_PAIRED && weights[0].format != SB_ROW_PANEL) return 1;
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

// Returns 1 if this machine has this engine for encoders, the paired one in the instruction set in use, else 0.
SB_API int sb_has_engine(int32_t engine) {
  switch (engine) {
    case SB_FP32_ENGINE: return 1;
    case SB_PAIRED_ENGINE: return active->kernels->paired_encoder != nullptr;
    case SB_FP16_ENGINE:
    case SB_FP16_EMULATED_ENGINE: return sb::fp16_encoder(engine == SB_FP16_EMULATED_ENGINE) != nullptr;
    default: return 0;
  }
}

// Computes the layers of an encoder, and what comes before and after them. Returns SB_DONE, or, with nothing computed:
// SB_UNFIT for an engine or weights that the instruction set in use does not support, or weights that do not fit
// together, SB_BAD_ID for numbers outside their tables, SB_PADDING_FIRST as the call asks, SB_GAP for padding between
// tokens where their distances matter, and SB_WEIGHTED for vectors from a mask with other values than 0 and 1. In fp16,
// SB_OUT_OF_RANGE for values that fp16 cannot hold, NaN among them: y is then of no use.
SB_API int sb_encoder(const sb_encoder_call* call) {
  const bool paired = call->engine == SB_PAIRED_ENGINE;
  const bool takes_x = call->x_dtype == SB_F32 || (paired && call->x_dtype == SB_BF16);
  if (!sb_has_engine(call->engine) || !takes_x) return SB_UNFIT;
  if (call->threads < 1 || (call->mask && call->mask_bytes != 1 && call->mask_bytes != 8)) return SB_UNFIT;
  for (int i = 0; i < call->count; i++)
    if (!fits(call->layers[i], call->hidden, call->engine)) return SB_UNFIT;
  if (call->ends ? !fits(*call->ends, *call) : call->pooled != nullptr) return SB_UNFIT;
  if (call->vectors && !unweighted(call->mask, call->mask_bytes, call->sequences * call->length)) return SB_WEIGHTED;
  if (const sb_result result = check_tokens(*call)) return result;
  switch (call->engine) {
    case SB_FP32_ENGINE: active->kernels->encoder(*call); break;
    case SB_PAIRED_ENGINE: active->kernels->paired_encoder(*call); break;
    default:
      if (!sb::fp16_encoder(call->engine == SB_FP16_EMULATED_ENGINE)(*call)) return SB_OUT_OF_RANGE;
  }
  if (call->vectors)
    active->kernels->pool({call->y, call->vectors, call->mask, call->sequences, call->length, call->hidden,
                           call->mask_bytes, call->mean, call->normalize, call->threads, call->x_dtype, 0});
  return SB_DONE;
}

// Reduces each sequence to one vector. Returns 0 on success, 1 for an invalid call or a mask that weights tokens.
SB_API int sb_pool(const sb_pool_call* call) {
  if (call->threads < 1 || (call->mask && call->mask_bytes != 1 && call->mask_bytes != 8)) return 1;
  if (call->x_dtype != SB_F32 && call->x_dtype != SB_BF16) return 1;
  if (!unweighted(call->mask, call->mask_bytes, call->sequences * call->length)) return 1;
  active->kernels->pool(*call);
  return 0;
}
