"""One kernel configuration to compile ahead of time, recorded from the kernel's own launcher.

A launcher takes the kernel as its last parameter. With a ``LaunchRecorder`` in the kernel's place and example
tensors on the meta device, the launch is recorded instead of run. A kernel therefore has a single argument
list, in its launcher.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Operand dtype and precision of float32 products, by the short name in labels.
PRODUCTS = {
    "bf16": (torch.bfloat16, "ieee"),
    "fp16": (torch.float16, "ieee"),
    "fp32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
}
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int16: "*i16",
}
ALIGNMENT = 16  # Triton specializes kernels for integer arguments that are multiples of it
DEFAULT_STAGES = 3  # Triton's default number of stages on NVIDIA


@dataclass(frozen=True)
class CompileCase:
    """One kernel in one configuration.

    Attributes:
        family: Purpose of the kernel, e.g. "panel forward".
        label: The configuration in words, e.g. "h64 g64 256x64x64 w8 s4 bf16".
        kernel: The ``@triton.jit`` function.
        arguments: Triton type of each argument ("*bf16", "*i32", "i32", ...), without compile-time constants.
        constants: Value of each compile-time constant.
        aligned: Integer arguments known to be multiples of 16 (pointers always are).
        product: (m, n, k) of the matrix product in one iteration of the main loop; None for a kernel without
            one.
        steps: Iterations of the main loop, on average over the programs of the example; None where a program
            has as many as the tokens demand.
        results: Products (m, n) of a program, one after the other.
        default: Whether an untuned device uses this configuration in bfloat16.
        targets: Names of the targets to compile for (see ``aot.targets.TARGETS``); empty for all of them.
    """

    family: str
    label: str
    kernel: Any
    arguments: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    aligned: tuple[str, ...] = ()
    product: tuple[int, int, int] | None = None
    steps: float | None = None
    results: int = 1
    default: bool = True
    targets: tuple[str, ...] = ()


class LaunchRecorder:
    """Stand-in for a kernel that records the arguments of a launch."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.arguments: dict[str, str] = {}
        self.constants: dict[str, Any] = {}
        self.aligned: list[str] = []
        self.num_warps = self.num_stages = 0

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self._record

    def _record(
        self, *positional: Any, num_warps: int, num_stages: int = DEFAULT_STAGES, **keywords: Any
    ) -> None:
        values = dict(zip(self.kernel.arg_names, positional, strict=False)) | keywords
        for parameter in self.kernel.params:
            self._classify(parameter, values[parameter.name])
        self.num_warps, self.num_stages = num_warps, num_stages

    def _classify(self, parameter: Any, value: Any) -> None:
        if parameter.is_constexpr or value is None:
            self.constants[parameter.name] = value
        elif isinstance(value, Tensor):
            self.arguments[parameter.name] = POINTERS[value.dtype]
        elif value == 1 and not parameter.do_not_specialize:
            self.constants[parameter.name] = value  # as Triton does
        else:
            self.arguments[parameter.name] = "i32"
            if value % ALIGNMENT == 0 and not parameter.do_not_specialize:
                self.aligned.append(parameter.name)


def recorded_case(
    kernel: Any,
    launch: Callable[[Any], object],
    *,
    family: str,
    label: str,
    product: tuple[int, int, int] | None = None,
    steps: float | None = None,
    results: int = 1,
    default: bool = True,
    targets: tuple[str, ...] = (),
) -> CompileCase:
    """Record the case that ``launch`` launches.

    Args:
        kernel: The ``@triton.jit`` function.
        launch: Calls the kernel's launcher with example arguments and, as the kernel, the recorder that it
            receives. The example sizes decide which integers count as aligned: choose typical ones.
        family: See ``CompileCase``.
        label: See ``CompileCase``.
        product: See ``CompileCase``.
        steps: See ``CompileCase``.
        results: See ``CompileCase``.
        default: See ``CompileCase``.
        targets: See ``CompileCase``.
    """
    recorder = LaunchRecorder(kernel)
    launch(recorder)
    return CompileCase(
        family=family,
        label=label,
        kernel=kernel,
        arguments=recorder.arguments,
        constants=recorder.constants,
        num_warps=recorder.num_warps,
        num_stages=recorder.num_stages,
        aligned=tuple(recorder.aligned),
        product=product,
        steps=steps,
        results=results,
        default=default,
        targets=targets,
    )


def example(dtype: torch.dtype, *shape: int) -> Tensor:
    """Return a tensor of this shape without storage, for a launch that is recorded."""
    return torch.empty(shape, dtype=dtype, device="meta")
