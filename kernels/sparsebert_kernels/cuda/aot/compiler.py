"""Compile a case for a target and report the figures that decide the kernel's speed."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import machine_code
from .compile_case import CompileCase
from .targets import SCHEDULERS, Target

# Instructions an output element that half-precision kernels with an activation may issue after their loop.
# The erf of the CUDA library alone takes 32; the longest epilogue, GELU with a residual on Blackwell, 25.
MOST_INSTRUCTIONS = 26
LONG_PROGRAM = 32  # output elements of a thread


@dataclass(frozen=True)
class Compiled:
    """One case compiled for one target.

    Attributes:
        precision: Precision of the products, "half", "tf32" or "ieee"; None for a kernel without products.
        registers: Registers per thread.
        spill_stores: Instructions that move registers to memory.
        spill_loads: Instructions that move them back.
        shared_memory: Bytes of shared memory of one program.
        tensor: Number of tensor-core instructions in the text, by name, e.g. ``{"wgmma m64n64k16": 8}``.
        buffers: Pipeline steps in shared memory, see ``machine_code.shared_buffers``.
        loop_instructions: Machine instructions that a warp issues for one step of the main loop.
        element_instructions: Machine instructions that a thread issues after the main loop for each of its
            output elements: bias, activation, residual and the store, with the computation of addresses.
        ceiling: Share of the tensor cores' peak rate that the kernel reaches at most, because the schedulers
            must issue all instructions of the main loop and, if the number of steps is known
            (``CompileCase.steps``), those after it.
        error: Compiler error; all other figures are then None. None for a case that compiles.
        problems: Reasons why the kernel cannot be fast on the target; empty if there are none.
    """

    family: str
    label: str
    target: str
    triton: str
    default: bool
    num_warps: int
    num_stages: int
    precision: str | None = None
    registers: int | None = None
    spill_stores: int | None = None
    spill_loads: int | None = None
    shared_memory: int | None = None
    shared_memory_limit: int | None = None
    tensor: dict[str, int] = field(default_factory=dict)
    buffers: int | None = None
    loop_instructions: float | None = None
    element_instructions: float | None = None
    ceiling: float | None = None
    error: str | None = None
    problems: tuple[str, ...] = ()


def compile_case(case: CompileCase, target: Target) -> Compiled:
    """Compile ``case`` for ``target`` and read the machine code.

    Returns:
        The figures and problems; a compiler error is one of the problems.

    Raises:
        RuntimeError: TRITON_INTERPRET is set, or one of NVIDIA's tools cannot read the kernel.
    """
    import triton

    _refuse_interpreter()
    identity = {
        "family": case.family,
        "label": case.label,
        "target": target.name,
        "triton": triton.__version__,
        "default": case.default,
        "num_warps": case.num_warps,
        "num_stages": case.num_stages,
        "precision": precision(case),
        "shared_memory_limit": target.shared_memory,
    }
    try:
        binary = _compile(case, target)
    except Exception as error:  # compiler passes raise errors of any type
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200] if str(error) else ''}"
        return Compiled(**identity, error=reason, problems=(f"does not compile ({reason})",))
    read = _read_amd if target.backend == "hip" else _read_nvidia
    figures = {"shared_memory": int(binary.metadata.shared), **read(case, target, binary)}
    return Compiled(**identity, **figures, problems=tuple(_problems(case, target, figures)))


def precision(case: CompileCase) -> str | None:
    """Return the precision of the matrix products: "half", "tf32" or "ieee"; None without products.

    "ieee" is exact float32, which NVIDIA's tensor cores lack.
    """
    if case.product is None:
        return None
    if any(kind in ("*bf16", "*fp16") for kind in case.arguments.values()):
        return "half"
    return "tf32" if "tf32" in case.constants.values() else "ieee"


def _compile(case: CompileCase, target: Target) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    mismatched = {*case.arguments, *case.constants} ^ {*case.kernel.arg_names}
    if mismatched:
        raise ValueError(f"case and kernel disagree on the arguments {', '.join(sorted(mismatched))}")
    # Triton expects the kernel's parameters in order; those without an argument are compile-time constants.
    signature = {name: case.arguments.get(name, "constexpr") for name in case.kernel.arg_names}
    attributes = {
        (number,): [["tt.divisibility", 16]]
        for number, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in case.aligned
    }
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=dict(case.constants), attrs=attributes)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    gpu = GPUTarget(target.backend, target.architecture, target.warp_size)
    return triton.compile(source, target=gpu, options=options)


def _read_nvidia(case: CompileCase, target: Target, binary: Any) -> dict[str, Any]:
    # Without data-flow analysis, which looks for the targets of computed branches: kernels have none.
    sass = _disassemble("nvdisasm", "-c", "-ndf", binary=binary.asm["cubin"])
    usage = _disassemble("cuobjdump", "-res-usage", binary=binary.asm["cubin"])
    registers = re.search(r"REG:(\d+)", usage)
    return {
        "registers": int(registers[1]) if registers else None,
        "spill_stores": len(re.findall(r"\bSTL\b", sass)),
        "spill_loads": len(re.findall(r"\bLDL\b", sass)),
        "tensor": machine_code.tensor_instructions(binary.asm["ptx"], binary.asm["ttgir"]),
        "buffers": machine_code.shared_buffers(binary.asm["ttgir"]),
        **_issue_bound(case, target, machine_code.nvidia_loop(sass), machine_code.nvidia_epilogue(sass)),
    }


def _read_amd(case: CompileCase, target: Target, binary: Any) -> dict[str, Any]:
    assembly = binary.asm["amdgcn"]

    def number(name: str) -> int:
        match = re.search(rf"\.{name}:\s+(\d+)", assembly)
        return int(match[1]) if match else 0

    return {
        "registers": number("vgpr_count"),
        "spill_stores": max(number("vgpr_spill_count"), len(re.findall(r"\bscratch_store_", assembly))),
        "spill_loads": len(re.findall(r"\bscratch_load_", assembly)),
        "tensor": machine_code.tensor_instructions(assembly),
        "buffers": machine_code.shared_buffers(binary.asm["ttgir"]),
        **_issue_bound(case, target, machine_code.amd_loop(assembly)),
    }


def _issue_bound(
    case: CompileCase, target: Target, loop: machine_code.Loop | None, epilogue: int | None = None
) -> dict[str, Any]:
    """Return the instructions of a loop step and of an output element, and the bound that they set."""
    if loop is None or case.product is None:
        return {"loop_instructions": None, "element_instructions": None, "ceiling": None}
    m, n, k = case.product
    step = m * n * k
    half = precision(case) == "half"
    # A pass of an unrolled loop holds several steps.
    instructions = loop.instructions * step / loop.products(case.num_warps, (m, n), half)
    elements = m * n * case.results / (case.num_warps * target.warp_size)  # of a thread
    figures = {
        "loop_instructions": round(instructions, 1),
        "element_instructions": None if epilogue is None else round(epilogue / elements, 1),
        "ceiling": None,
    }
    if target.products is None:
        return figures
    tensor_cycles = step / (target.products if half else target.products / 2)
    if case.steps and epilogue is not None:
        instructions += epilogue / (case.steps * case.results)
    issue_cycles = instructions * case.num_warps / SCHEDULERS
    return {**figures, "ceiling": round(min(1.0, tensor_cycles / issue_cycles), 3)}


def _problems(case: CompileCase, target: Target, figures: dict[str, Any]) -> Iterator[str]:
    if figures["spill_stores"] or figures["spill_loads"]:
        yield f"spills registers ({figures['spill_stores']} stores, {figures['spill_loads']} loads)"
    if figures["shared_memory"] > target.shared_memory:
        limit = f"{target.name} has {target.shared_memory}"
        yield f"needs {figures['shared_memory']} bytes of shared memory, {limit}"
    issued = figures["element_instructions"]
    if issued is not None and issued > MOST_INSTRUCTIONS and _activates_long_programs(case, target):
        yield f"issues {issued} instructions an output element after its loop, more than {MOST_INSTRUCTIONS}"
    needs_tensor_cores = precision(case) in ("half", "tf32")
    if needs_tensor_cores and not any(name.startswith(target.instruction) for name in figures["tensor"]):
        yield f"has no {target.instruction} ({', '.join(figures['tensor']) or 'no tensor-core instruction'})"


def _activates_long_programs(case: CompileCase, target: Target) -> bool:
    """Whether half-precision programs activate so many elements that their set-up does not count."""
    if case.product is None or "ACTIVATION" not in case.constants or precision(case) != "half":
        return False
    m, n, _ = case.product
    return m * n * case.results >= LONG_PROGRAM * case.num_warps * target.warp_size


def _disassemble(tool: str, *arguments: str, binary: bytes) -> str:
    """Return the output of one of the NVIDIA tools in Triton's wheel for a cubin."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(binary)
        done = subprocess.run([path, *arguments, cubin], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{tool} cannot read the compiled kernel: {done.stderr.strip()}")
    return done.stdout


def _refuse_interpreter() -> None:
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise RuntimeError(
            "TRITON_INTERPRET is set, so kernels imported in this process cannot be compiled; "
            "run `python -m sparsebert_kernels.cuda.aot`"
        )
