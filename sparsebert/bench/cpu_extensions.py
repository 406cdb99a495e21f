"""The extensions of this CPU: which kernels use them, and why one is not used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparsebert_kernels.cpu import native

# What an extension brings, and the objects of the library with kernels for it.
_KERNELS = {
    "avx2": ("fp32 and bf16 weights, 8 lanes", "avx2"),
    "avx_vnni": ("int8 vectors, 8 lanes", "int8_avx_vnni"),
    "avx512": ("fp32 and bf16 weights, 16 lanes", "avx512"),
    "avx512_vnni": ("int8 vectors, 16 lanes", "int8_avx512_vnni"),
    "avx512_bf16": ("dot products of bf16 weights", "avx512_bf16"),
    "avx512_fp16": ("single weights in fp16, 32 lanes; whole encoders in fp16", "avx512_fp16"),
    "amx_bf16": ("row panels in bf16, as products of tiles", "amx"),
    "amx_int8": ("row panels in int8, as products of tiles", "amx"),
    "neon": ("fp32 and bf16 weights, 4 lanes", "neon"),
    "neon_dotprod": ("int8 vectors", "int8_neon_dotprod"),
    "neon_i8mm": ("int8 products of matrices", "int8_neon_i8mm"),
    "neon_bf16": ("row panels and whole encoders in bf16 and int8", "neon_bf16"),
}


@dataclass(frozen=True)
class Extension:
    """An extension of the instruction set.

    Attributes:
        name: Its name.
        missing: Why it cannot be used on this machine; None if it can.
        cpu_lacks_it: Whether the CPU lacks it.
        brings: The computations that its kernels speed up.
        built: Whether the library contains these kernels.
    """

    name: str
    missing: str | None
    cpu_lacks_it: bool
    brings: str
    built: bool

    def record(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dict(vars(self))


def detect_extensions() -> list[Extension]:
    """Return the extensions that kernels use on CPUs of this family; none without the compiled library."""
    built = native.built_objects()
    extensions = []
    for name, missing in native.extensions().items():
        brings, kernels = _KERNELS.get(name, ("no kernel uses it", ""))
        extensions.append(
            Extension(name, missing, missing == native.CPU_LACKS_IT, brings, built=kernels in built)
        )
    return extensions
