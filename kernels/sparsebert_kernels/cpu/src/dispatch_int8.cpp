// The exported functions of the int8 kernels. They pass calls to the best unit of dot products that belongs to the
// instruction set in use.
#include <cstring>

#include "int8_call.h"

#define SB_DECLARE(UNIT)                \
  namespace UNIT {                      \
  extern const sb::Int8Kernels kernels; \
  }
#ifdef SB_HAVE_INT8_AVX512_VNNI
SB_DECLARE(int8_avx512_vnni)
#endif
#ifdef SB_HAVE_INT8_AVX_VNNI
SB_DECLARE(int8_avx_vnni)
#endif
#ifdef SB_HAVE_INT8_AVX2
SB_DECLARE(int8_avx2)
#endif
#ifdef SB_HAVE_INT8_NEON_DOTPROD
SB_DECLARE(int8_neon_dotprod)
#include <sys/auxv.h>
#endif
#ifdef SB_HAVE_INT8_NEON
SB_DECLARE(int8_neon)
#endif
#ifdef SB_HAVE_INT8_BASELINE
SB_DECLARE(int8_baseline)
#endif

#define SB_API extern "C" __attribute__((visibility("default")))

extern "C" const char* sb_chosen();

namespace {

// Instruction sets by the width of their vectors: a unit serves the sets that are at least as wide as itself.
enum Width { NARROW, AVX2, AVX512 };

struct Unit {
  const char* name;
  const sb::Int8Kernels* kernels;
  Width width;
  bool (*supported)();
};

#if defined(SB_HAVE_INT8_BASELINE) || defined(SB_HAVE_INT8_NEON)
bool always() { return true; }
#endif
#ifdef SB_HAVE_INT8_AVX512_VNNI
bool has_avx512_vnni() {
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
}
#endif
#if defined(SB_HAVE_INT8_AVX2) || defined(SB_HAVE_INT8_AVX_VNNI)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif
#ifdef SB_HAVE_INT8_AVX_VNNI
// Not every compiler that builds the kernels knows the name for __builtin_cpu_supports: leaf 7.1, EAX, bit 4.
bool has_avx_vnni() {
  uint32_t a = 7, b, c = 1, d;
  asm("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return has_avx2() && (a >> 4 & 1);
}
#endif
#ifdef SB_HAVE_INT8_NEON_DOTPROD
bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }  // HWCAP_ASIMDDP
#endif

// Best first.
const Unit kUnits[] = {
#ifdef SB_HAVE_INT8_AVX512_VNNI
    {"avx512_vnni", &int8_avx512_vnni::kernels, AVX512, has_avx512_vnni},
#endif
#ifdef SB_HAVE_INT8_AVX_VNNI
    {"avx_vnni", &int8_avx_vnni::kernels, AVX2, has_avx_vnni},
#endif
#ifdef SB_HAVE_INT8_AVX2
    {"avx2", &int8_avx2::kernels, AVX2, has_avx2},
#endif
#ifdef SB_HAVE_INT8_NEON_DOTPROD
    {"neon_dotprod", &int8_neon_dotprod::kernels, NARROW, has_dotprod},
#endif
#ifdef SB_HAVE_INT8_NEON
    {"neon", &int8_neon::kernels, NARROW, always},
#endif
#ifdef SB_HAVE_INT8_BASELINE
    {"baseline", &int8_baseline::kernels, NARROW, always},
#endif
};

Width width_of(const char* instruction_set) {
  if (strcmp(instruction_set, "baseline") == 0 || strcmp(instruction_set, "neon") == 0) return NARROW;
  return strcmp(instruction_set, "avx2") == 0 ? AVX2 : AVX512;
}

const Unit* named = nullptr;

// The unit in use; null if the build has none.
const Unit* unit() {
  if (named) return named;
  const Width width = width_of(sb_chosen());
  for (const Unit& each : kUnits)
    if (each.width <= width && each.supported()) return &each;
  return nullptr;
}

}  // namespace

// Returns the name of the i-th unit of int8 dot products that this machine supports, best first; null past the last.
SB_API const char* sb_int8_unit(int i) {
  for (const Unit& each : kUnits)
    if (each.supported() && i-- == 0) return each.name;
  return nullptr;
}

// Returns the name of the unit in use.
SB_API const char* sb_int8_chosen() { return unit() ? unit()->name : nullptr; }

// Switches to the unit of this name, or to the best one of the instruction set in use (null). Returns 0 on success, 1 if
// this machine or build lacks it.
SB_API int sb_choose_int8(const char* name) {
  if (!name) {
    named = nullptr;
    return 0;
  }
  for (const Unit& each : kUnits)
    if (strcmp(each.name, name) == 0 && each.supported()) {
      named = &each;
      return 0;
    }
  return 1;
}

// Computes y = activation(x @ W.T + bias) for the int8 weights that follow `call` in memory. Returns 0 on success, 1 if
// no kernel supports the call.
SB_API int sb_int8_linear(const sb_call* call) {
  if (call->count < 1 || call->count > sb::MAX_WEIGHTS || call->threads < 1 || !unit()) return 1;
  const auto* weights = reinterpret_cast<const sb_int8_weight*>(call + 1);
  for (int i = 0; i < call->count; i++) {
    const sb_int8_weight& w = weights[i];
    if (w.in_features != weights[0].in_features || w.limit != weights[0].limit) return 1;
    if (w.vector_rows != 2 && w.vector_rows != 4 && w.vector_rows != 8) return 1;
  }
  if (call->tokens > 0) unit()->kernels->linear({*call, weights});
  return 0;
}
