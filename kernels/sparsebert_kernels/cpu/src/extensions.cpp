// The extensions of this CPU that kernels use, and the objects that the library consists of, for the choice of kernels
// and for `sparsebert env`.
#include <cstring>

#include "native.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#define SB_API extern "C" __attribute__((visibility("default")))

namespace {

// State of an extension; a negative number is the error of the system that refused the permission to use it.
enum State : int32_t {
  USABLE = 0,
  CPU_LACKS_IT = 1,
  NOT_ENABLED = 2,  // the operating system does not save its registers
};

struct Extension {
  const char* name;
  State (*state)();
};

#if defined(__x86_64__)

struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  if (!__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d)) return {};
  return r;
}

// The state components whose registers the operating system saves.
uint64_t enabled_states() {
  if (!(cpuid(1, 0).c >> 27 & 1)) return 0;  // OSXSAVE
  uint32_t low, high;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

constexpr uint64_t YMM = 0x6, ZMM = YMM | 0xe0, TILES = 0x60000;

State state_of(bool present, uint64_t states) {
  if (!present) return CPU_LACKS_IT;
  return (enabled_states() & states) == states ? USABLE : NOT_ENABLED;
}

// Linux grants the tile registers to a process that asks for them.
State with_tile_permission(State state) {
  constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  if (state != USABLE) return state;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 ? USABLE : static_cast<State>(-errno);
}

bool avx2() { return (cpuid(7, 0).b >> 5 & 1) && (cpuid(1, 0).c >> 12 & 1); }  // with FMA

bool avx512() {
  constexpr uint32_t F_DQ_BW_VL = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
  return (cpuid(7, 0).b & F_DQ_BW_VL) == F_DQ_BW_VL;
}

bool tiles() { return cpuid(7, 0).d >> 24 & 1; }

const Extension kExtensions[] = {
    {"avx2", [] { return state_of(avx2(), YMM); }},
    {"avx_vnni", [] { return state_of(avx2() && (cpuid(7, 1).a >> 4 & 1), YMM); }},
    {"avx512", [] { return state_of(avx512(), ZMM); }},
    {"avx512_vnni", [] { return state_of(avx512() && (cpuid(7, 0).c >> 11 & 1), ZMM); }},
    {"avx512_bf16", [] { return state_of(avx512() && (cpuid(7, 1).a >> 5 & 1), ZMM); }},
    {"avx512_fp16", [] { return state_of(avx512() && (cpuid(7, 0).d >> 23 & 1), ZMM); }},
    {"amx_bf16", [] { return with_tile_permission(state_of(tiles() && (cpuid(7, 0).d >> 22 & 1), ZMM | TILES)); }},
    {"amx_int8", [] { return with_tile_permission(state_of(tiles() && (cpuid(7, 0).d >> 25 & 1), ZMM | TILES)); }},
};

#elif defined(__aarch64__)

State state_of(unsigned long bits, int bit) { return bits >> bit & 1 ? USABLE : CPU_LACKS_IT; }

const Extension kExtensions[] = {
    {"neon", [] { return USABLE; }},
    {"neon_dotprod", [] { return state_of(getauxval(AT_HWCAP), 20); }},  // HWCAP_ASIMDDP
    {"neon_fp16", [] { return state_of(getauxval(AT_HWCAP), 10); }},     // HWCAP_ASIMDHP
    {"neon_i8mm", [] { return state_of(getauxval(AT_HWCAP2), 13); }},    // HWCAP2_I8MM
    {"neon_bf16", [] { return state_of(getauxval(AT_HWCAP2), 14); }},    // HWCAP2_BF16
};

#else

const Extension kExtensions[] = {{"none", [] { return CPU_LACKS_IT; }}};

#endif

constexpr int COUNT = sizeof(kExtensions) / sizeof(kExtensions[0]);

}  // namespace

bool sb::usable(const char* extension) {
  // Of each extension: 0 until the first call, then 1 if it is usable, else 2. Every int8 and fp16 layer asks, and a
  // virtual machine traps cpuid.
  static int8_t answers[COUNT];
  for (int i = 0; i < COUNT; i++) {
    if (strcmp(kExtensions[i].name, extension) != 0) continue;
    int8_t answer = __atomic_load_n(&answers[i], __ATOMIC_RELAXED);
    if (answer == 0) {
      answer = kExtensions[i].state() == USABLE ? 1 : 2;
      __atomic_store_n(&answers[i], answer, __ATOMIC_RELAXED);
    }
    return answer == 1;
  }
  return false;
}

// Returns the name of the i-th extension, null past the last, and writes its State. Asks the operating system for the
// permission to use AMX.
SB_API const char* sb_extension(int i, int32_t* state) {
  if (i < 0 || i >= COUNT) return nullptr;
  *state = kExtensions[i].state();
  return kExtensions[i].name;
}

// Returns the names of the objects with kernels that the library was built from, separated by spaces.
SB_API const char* sb_objects() { return SB_OBJECTS; }
