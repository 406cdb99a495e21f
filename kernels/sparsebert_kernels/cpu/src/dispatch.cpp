// The exported functions. They select an instruction set once and pass calls to its kernels.
#include <cstring>
#ifdef SB_HAVE_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif
#ifdef SB_HAVE_AVX512
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif
#ifdef SB_HAVE_AVX512_BF16
// Every CPU with the one has the other.
bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}
#endif
#ifdef SB_HAVE_AMX
// Why AMX cannot be used, or null. The kernel grants a process the use of tiles on request, once and for all threads.
const char* find_why_no_amx() {
  uint32_t a, b, c, d;
  constexpr uint32_t BF16 = 1u << 22, TILE = 1u << 24, INT8 = 1u << 25;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (BF16 | TILE | INT8)) != (BF16 | TILE | INT8))
    return "this CPU has no AMX";
  if (!has_avx512_bf16()) return "this CPU has AMX but not AVX512-BF16 and AVX512-VNNI";
  uint32_t low = 0, high = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) && (c & bit_OSXSAVE)) asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr uint32_t TILE_STATE = 3u << 17;
  if ((low & TILE_STATE) != TILE_STATE) return "the operating system does not save AMX tiles";
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) != 0) return "the kernel does not grant AMX tiles";
  return nullptr;
}

const char* why_no_amx() {
  static const char* const reason = find_why_no_amx();
  return reason;
}

bool has_amx() { return why_no_amx() == nullptr; }
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

// Whether an engine can compute this layer.
bool fits(const sb_layer& layer, int64_t hidden, bool paired) {
  const sb_weight *query = layer.weights, *key = query + 1, *value = query + 2, *output = query + 3;
  const sb_weight *up = query + 4, *down = query + 5;
  for (const sb_weight& w : layer.weights)
    if (!(paired ? computes_paired(w) : computes_fp32(w)) || w.bias_dtype != SB_F32 || !w.bias || w.out_features < 1)
      return false;
  int64_t scores = 0, values = 0;
  for (int i = 0; i < layer.groups; i++) {
    const int32_t* group = layer.heads + 3 * i;
    if (group[0] < 1 || group[1] < 1 || group[2] < 1) return false;
    if (paired && (group[1] % 32 || group[2] % 32)) return false;
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
    if (!set.hidden && set.supported() && i-- == 0) return set.name;
  return nullptr;
}

// Returns why AMX cannot be used; null if it can.
SB_API const char* sb_why_no_amx() {
#ifdef SB_HAVE_AMX
  return why_no_amx();
#else
  return "the library was built without AMX";
#endif
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

// Returns 1 if the instruction set in use has this engine for encoders, else 0.
SB_API int sb_has_engine(int32_t engine) {
  return engine == SB_FP32_ENGINE || (engine == SB_PAIRED_ENGINE && active->kernels->paired_encoder);
}

// Computes the layers of an encoder. Returns 0 on success, 1 for an engine or weights that the instruction set in use
// does not support, or weights that do not fit together.
SB_API int sb_encoder(const sb_encoder_call* call) {
  const bool paired = call->engine == SB_PAIRED_ENGINE;
  if (call->threads < 1 || !sb_has_engine(call->engine)) return 1;
  if (call->x_dtype != SB_F32 && !(paired && call->x_dtype == SB_BF16)) return 1;
  for (int i = 0; i < call->count; i++)
    if (!fits(call->layers[i], call->hidden, paired)) return 1;
  if (paired) active->kernels->paired_encoder(*call);
  else active->kernels->encoder(*call);
  return 0;
}
