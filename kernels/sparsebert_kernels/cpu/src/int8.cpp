// The int8 kernels; this file is compiled once for each unit of dot products, whose name is SB_ISA.
#include "native.h"
#ifdef __AVX512F__
#include "simd_avx512.h"
#else
#include "simd_portable.h"
#endif
// The header below needs the vectors above.
#include "int8_linear.h"

namespace SB_ISA {

extern const sb::Int8Kernels kernels;
const sb::Int8Kernels kernels = {[](const sb::Int8Call& call) {
  call.x_dtype == SB_F32 ? int8_linear<float>(call) : int8_linear<uint16_t>(call);
}};

}  // namespace SB_ISA
