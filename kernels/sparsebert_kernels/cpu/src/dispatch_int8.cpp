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
  const char* extension;  // that it needs, or null

  bool supported() const { return !extension || sb::usable(extension); }
};

// Best first.
const Unit kUnits[] = {
#ifdef SB_HAVE_INT8_AVX512_VNNI
    {"avx512_vnni", &int8_avx512_vnni::kernels, AVX512, "avx512_vnni"},
#endif
#ifdef SB_HAVE_INT8_AVX_VNNI
    {"avx_vnni", &int8_avx_vnni::kernels, AVX2, "avx_vnni"},
#endif
#ifdef SB_HAVE_INT8_AVX2
    {"avx2", &int8_avx2::kernels, AVX2, "avx2"},
#endif
#ifdef SB_HAVE_INT8_NEON_DOTPROD
    {"neon_dotprod", &int8_neon_dotprod::kernels, NARROW, "neon_dotprod"},
#endif
#ifdef SB_HAVE_INT8_NEON
    {"neon", &int8_neon::kernels, NARROW, nullptr},
#endif
#ifdef SB_HAVE_INT8_BASELINE
    {"baseline", &int8_baseline::kernels, NARROW, nullptr},
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
