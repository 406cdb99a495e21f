"""What it takes to compile one kernel configuration ahead of time, without a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class CompileCase:
    """One kernel in one configuration.

    family     what the kernel is for, e.g. "panel forward"
    label      the configuration in words, e.g. "h64 g64 256x64x64 w8 s4 bf16"
    kernel     the ``@triton.jit`` function
    arguments  argument -> Triton type ("*bf16", "*i32", "i32", ...), compile-time constants left out
    constants  compile-time constant -> value
    aligned    integer arguments known to be multiples of 16 (pointers always are)
    tile       (m, n, k) of the matrix product in one iteration of the main loop; None where there is none
    default    whether an untuned device gets this configuration in bfloat16: `make test` compiles those
    targets    the names of the targets that it is for (see `aot.TARGETS`), where it is not for all of them
    """

    family: str
    label: str
    kernel: Any
    arguments: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    aligned: tuple[str, ...] = ()
    tile: tuple[int, int, int] | None = None
    default: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
