"""What the compiler makes of a kernel, without a GPU: `python -m sparsebert_kernels.cuda.aot --target sm_90`.

Every kernel file's `compile_cases` are compiled ahead of time for a target, and the result is read for
what decides speed: registers and spills, shared memory, the tensor-core instruction, how many steps the
pipeline keeps under way, and how many instructions the main loop issues for the products it makes. The tools
come with triton.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from . import machine_code
from .compile_case import CompileCase

PACKAGE = __package__ or ""
SCHEDULERS = 4  # of a multiprocessor; each issues one instruction of one warp a cycle


@dataclass(frozen=True)
class Target:
    """A GPU to compile for.

    instruction    the kind of its tensor-core instruction
    shared_memory  bytes that one program may have
    products       multiply-adds a cycle of one multiprocessor's tensor cores in 16 bits (half that in TF32);
                   None where the instructions it issues meanwhile cannot be told from the text
    """

    name: str
    backend: str
    architecture: int | str
    warp_size: int
    instruction: str
    shared_memory: int
    products: int | None


TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", "cuda", 80, 32, "mma.sync", 163 * 1024, 1024),
        Target("sm_90", "cuda", 90, 32, "wgmma", 227 * 1024, 2048),
        Target("sm_100", "cuda", 100, 32, "tcgen05", 227 * 1024, 4096),
        Target("gfx942", "hip", "gfx942", 64, "mfma", 64 * 1024, None),
    )
}


@dataclass(frozen=True)
class Compiled:
    """One case on one target; `problems` is empty for a kernel that can be fast there.

    precision           of the products: "half", "tf32" or "ieee"; None where there are none
    registers           a thread
    spill_stores/loads  instructions that move registers to memory and back
    shared_memory       bytes of one program
    tensor              tensor-core instructions with their number in the text, e.g. {"wgmma m64n64k16": 8}
    buffers             steps of the pipeline in shared memory, see `machine_code.shared_buffers`
    loop_instructions   machine instructions a warp issues for one step of the main loop
    ceiling             share of the tensor cores' peak at which the schedulers can issue that loop: nothing
                        else taken into account, no kernel is faster than this
    error               why it does not compile, the other figures are None then
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
    ceiling: float | None = None
    error: str | None = None
    problems: tuple[str, ...] = ()


def compile_case(case: CompileCase, target: Target) -> Compiled:
    """Compile ``case`` for ``target`` and read the result. A compiler error becomes part of it."""
    import triton

    _refuse_interpreter()
    known = {
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
    except Exception as error:  # the compiler raises whatever its passes do
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200] if str(error) else ''}"
        return Compiled(**known, error=reason, problems=(f"does not compile ({reason})",))
    read = _read_amd if target.backend == "hip" else _read_nvidia
    figures = {"shared_memory": int(binary.metadata.shared), **read(case, target, binary)}
    return Compiled(**known, **figures, problems=tuple(_problems(case, target, figures)))


def precision(case: CompileCase) -> str | None:
    """In which the case multiplies matrices: "half", "tf32" or exact float32, "ieee"; None where it does not.

    NVIDIA's tensor cores have all of them but the last.
    """
    if case.tile is None:
        return None
    if any(kind in ("*bf16", "*fp16") for kind in case.arguments.values()):
        return "half"
    return "tf32" if "tf32" in case.constants.values() else "ieee"


def cases(modules: Sequence[str] = ()) -> Iterator[tuple[str, int, CompileCase]]:
    """(module, number, case) of the modules named, or of every kernel file of this package."""
    for name in modules or kernel_modules():
        module = importlib.import_module(name)
        for number, case in enumerate(module.compile_cases()):
            yield name, number, case


def kernel_modules() -> list[str]:
    """The modules of this package that have something to compile."""
    folder = importlib.import_module(PACKAGE).__path__
    names = [f"{PACKAGE}.{info.name}" for info in pkgutil.iter_modules(folder)]
    others = [name for name in names if not name.endswith((".aot", ".machine_code"))]
    return [name for name in others if hasattr(importlib.import_module(name), "compile_cases")]


def _compile(case: CompileCase, target: Target) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    mismatched = {*case.arguments, *case.constants} ^ {*case.kernel.arg_names}
    if mismatched:
        raise ValueError(f"the case and the kernel do not both name {', '.join(sorted(mismatched))}")
    # A kernel wants its arguments in its own order; what is not an argument is a compile-time constant.
    signature = {name: case.arguments.get(name, "constexpr") for name in case.kernel.arg_names}
    attributes = {
        (number,): [["tt.divisibility", 16]]
        for number, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in case.aligned
    }
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=dict(case.constants), attrs=attributes)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, **case.options}
    gpu = GPUTarget(target.backend, target.architecture, target.warp_size)
    return triton.compile(source, target=gpu, options=options)


def _read_nvidia(case: CompileCase, target: Target, binary: Any) -> dict[str, Any]:
    sass = _tool("nvdisasm", "-c", binary=binary.asm["cubin"])
    usage = _tool("cuobjdump", "-res-usage", binary=binary.asm["cubin"])
    registers = re.search(r"REG:(\d+)", usage)
    loop = machine_code.nvidia_loop(sass)
    return {
        "registers": int(registers[1]) if registers else None,
        "spill_stores": len(re.findall(r"\bSTL\b", sass)),
        "spill_loads": len(re.findall(r"\bLDL\b", sass)),
        "tensor": machine_code.tensor_instructions(binary.asm["ptx"], binary.asm["ttgir"]),
        "buffers": machine_code.shared_buffers(binary.asm["ttgir"]),
        **_issue_bound(case, target, loop, case.num_warps),
    }


def _read_amd(case: CompileCase, target: Target, binary: Any) -> dict[str, Any]:
    assembly = binary.asm["amdgcn"]

    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        return int(found[1]) if found else 0

    return {
        "registers": number("vgpr_count"),
        "spill_stores": max(number("vgpr_spill_count"), len(re.findall(r"\bscratch_store_", assembly))),
        "spill_loads": len(re.findall(r"\bscratch_load_", assembly)),
        "tensor": machine_code.tensor_instructions(assembly),
        "buffers": machine_code.shared_buffers(binary.asm["ttgir"]),
        **_issue_bound(case, target, machine_code.amd_loop(assembly), case.num_warps),
    }


def _issue_bound(
    case: CompileCase, target: Target, loop: machine_code.Loop | None, num_warps: int
) -> dict[str, Any]:
    """Instructions of one step, and the cycles of its products against those of issuing it."""
    if loop is None or case.tile is None:
        return {"loop_instructions": None, "ceiling": None}
    m, n, k = case.tile
    step = m * n * k
    half = precision(case) == "half"
    # A pass may hold several steps: an unrolled loop.
    instructions = loop.instructions * step / loop.products(num_warps, (m, n), half)
    if target.products is None:
        return {"loop_instructions": round(instructions, 1), "ceiling": None}
    tensor_cycles = step / (target.products if half else target.products / 2)
    issue_cycles = instructions * num_warps / SCHEDULERS
    return {
        "loop_instructions": round(instructions, 1),
        "ceiling": round(min(1.0, tensor_cycles / issue_cycles), 3),
    }


def _problems(case: CompileCase, target: Target, figures: dict[str, Any]) -> Iterator[str]:
    if figures["spill_stores"] or figures["spill_loads"]:
        yield f"spills registers ({figures['spill_stores']} stores, {figures['spill_loads']} loads)"
    if figures["shared_memory"] > target.shared_memory:
        yield f"takes {figures['shared_memory']} bytes of shared memory, there are {target.shared_memory}"
    wanted = precision(case) in ("half", "tf32")
    if wanted and not any(name.startswith(target.instruction) for name in figures["tensor"]):
        yield f"has no {target.instruction} ({', '.join(figures['tensor']) or 'no tensor-core instruction'})"


def _tool(name: str, *arguments: str, binary: bytes) -> str:
    """What one of NVIDIA's tools in triton's wheel says about a cubin."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(binary)
        done = subprocess.run([path, *arguments, cubin], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{name} cannot read the compiled kernel: {done.stderr.strip()}")
    return done.stdout


def _refuse_interpreter() -> None:
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise RuntimeError(
            "TRITON_INTERPRET is set, and kernels imported meanwhile cannot be compiled: "
            "use `python -m sparsebert_kernels.cuda.aot`, a process of its own"
        )


def _compile_numbered(module: str, number: int, target: str) -> Compiled:
    """For worker processes, which cannot be sent a kernel."""
    case = next(case for _, index, case in cases([module]) if index == number)
    return compile_case(case, TARGETS[target])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON object a case and target. Exit code 1: `--check` found a problem."""
    # Before triton is imported: its decorators ask at import time.
    os.environ.pop("TRITON_INTERPRET", None)
    # Its default changes with triton 3.10; every version is to be asked for the same.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    parser = argparse.ArgumentParser(
        prog="python -m sparsebert_kernels.cuda.aot", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this one")
    parser.add_argument(
        "--module", action="append", default=[], help="only this kernel file, e.g. package.module"
    )
    parser.add_argument("--default", action="store_true", help="only what an untuned device gets in bfloat16")
    parser.add_argument("--match", type=re.compile, help="only where this is found in the label")
    parser.add_argument("--check", action="store_true", help="fail where a kernel has a problem")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args(arguments)
    try:
        chosen = [case for case in cases(options.module) if case[2].default or not options.default]
    except ModuleNotFoundError as error:
        parser.error(f"{error}; kernel files are, with their package: {', '.join(kernel_modules())}")
    work = [
        (module, number, target)
        for target in options.target or TARGETS
        for module, number, case in chosen
        if not case.targets or target in case.targets
        if options.match is None or options.match.search(case.label)
    ]
    found = 0
    for compiled in _compile_all(work, options.jobs):
        print(json.dumps(asdict(compiled)), flush=True)
        for problem in compiled.problems:
            found += 1
            where = f"{compiled.target}, triton {compiled.triton}"
            print(f"{compiled.family}, {compiled.label}, {where}: {problem}", file=sys.stderr)
    return 1 if found and options.check else 0


def _compile_all(work: Sequence[tuple[str, int, str]], jobs: int) -> Iterator[Compiled]:
    if jobs == 1 or len(work) < 2:
        yield from itertools.starmap(_compile_numbered, work)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_compile_numbered, *zip(*work, strict=True), chunksize=4)


if __name__ == "__main__":
    sys.exit(main())
