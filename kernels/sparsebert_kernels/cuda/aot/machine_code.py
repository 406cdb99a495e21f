"""Analysis of compiled kernels: tensor-core instructions, pipeline buffers and the main loop.

The functions read the text output of compilers and disassemblers; they need no GPU and no Triton.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Each instruction of these kinds is one tensor-core operation; its name contains the shape.
TENSOR_PTX = re.compile(
    r"\b(?:(?P<mma>mma\.sync)\.aligned|(?P<wgmma>wgmma)\.mma_async\.sync\.aligned)\.(?P<shape>m\d+n\d+k\d+)"
)
TCGEN05_PTX = re.compile(r"\btcgen05\.mma\.")
# The shape of tcgen05 is in a descriptor built at run time, so it is read from Triton's intermediate code.
TCGEN05_TTGIR = re.compile(
    r"ttng\.tc_gen5_mma .*?: !ttg\.memdesc<(\d+)x(\d+)x\w+[^>]*>, !tt\w+\.memdesc<\d+x(\d+)x"
)
MFMA = re.compile(r"\bv_s?mfmac?_\w+?_(\d+x\d+x\d+)\w*")

TENSOR_SASS = re.compile(r"\b(?:HGMMA\.(\d+)x(\d+)x(\d+)|HMMA\.(16816|1688|1684)|(UTC\w*MMA))\b")
NVIDIA_INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;")
HMMA_SHAPES = {"16816": (16, 8, 16), "1688": (16, 8, 8), "1684": (16, 8, 4)}
WARPS_OF_A_GROUP = 4  # four warps issue HGMMA together; each warp issues its own HMMA
# Largest rows, columns and bytes per row of a UTC*MMA instruction, which one thread issues.
TCGEN05 = (128, 256, 32)

PIPELINED = re.compile(r"ttg\.local_alloc\s*:\s*\(\)\s*->\s*!ttg\.memdesc<(\d+)x\d+x\d+x")
STAGED = re.compile(r"ttg\.local_alloc\s+%")


@dataclass(frozen=True)
class Loop:
    """One pass of the main loop, as one warp executes it.

    Attributes:
        instructions: Machine instructions.
        tensor: Number of tensor-core instructions by shape (m, n, k); () for a shape missing from the text.
    """

    instructions: int
    tensor: dict[tuple[int, ...], int]

    def products(self, num_warps: int, tile: tuple[int, int], half: bool) -> int:
        """Return the multiplications of one pass over all warps of a program.

        An instruction whose shape is missing from the text counts as the largest that fits the product.

        Args:
            num_warps: Warps of the program.
            tile: Rows and columns of the program's product.
            half: Whether the operands have 16 bits.
        """
        rows, columns = tile
        unknown = min(rows, TCGEN05[0]) * min(columns, TCGEN05[1]) * TCGEN05[2] // (2 if half else 4)
        groups = {64: num_warps // WARPS_OF_A_GROUP}
        return sum(
            count * (math.prod(shape) * groups.get(shape[0], num_warps) if shape else unknown)
            for shape, count in self.tensor.items()
        )


def tensor_instructions(text: str, ttgir: str = "") -> dict[str, int]:
    """Count the tensor-core instructions in PTX or AMD assembly, e.g. ``{"wgmma m64n128k16": 8}``."""
    counts = Counter(
        f"{'wgmma' if match['wgmma'] else 'mma.sync'} {match['shape']}" for match in TENSOR_PTX.finditer(text)
    )
    if number := len(TCGEN05_PTX.findall(text)):
        shapes = {f"m{m}n{n}k{k}" for m, k, n in TCGEN05_TTGIR.findall(ttgir)}
        counts[f"tcgen05 {'/'.join(sorted(shapes)) or 'of unknown shape'}"] = number
    counts.update(f"mfma {match[1]}" for match in MFMA.finditer(text))
    return dict(sorted(counts.items()))


def shared_buffers(ttgir: str) -> int | None:
    """Return the smallest number of shared-memory buffers of any operand, None if no operand has any.

    With one buffer, no load overlaps the arithmetic.
    """
    pipelined = [int(count) for count in PIPELINED.findall(ttgir)]
    if pipelined:
        return min(pipelined)
    return 1 if STAGED.search(ttgir) else None


def nvidia_loop(sass: str) -> Loop | None:
    """Return the shortest loop with a tensor-core instruction in the output of nvdisasm, None without one."""
    bodies = _loops(
        sass,
        label=re.compile(r"\s*(\.L_x_\d+):"),
        instruction=NVIDIA_INSTRUCTION,
        branch=re.compile(r"\bBRA\b.*`\((\.L_x_\d+)\)"),
    )
    body = _shortest_with(TENSOR_SASS, bodies)
    if body is None:
        return None
    shapes: Counter[tuple[int, ...]] = Counter()
    for line in body:
        if match := TENSOR_SASS.search(line):
            m, n, k, short, _ = match.groups()
            shapes[(int(m), int(n), int(k)) if m else HMMA_SHAPES[short] if short else ()] += 1
    return Loop(len(body), dict(shapes))


def nvidia_epilogue(sass: str) -> int | None:
    """Count the instructions after the last product of a kernel in the output of nvdisasm, None without one.

    The epilogue has no loop and ends with the last EXIT; what follows are only the bodies of calls.
    """
    lines = [match[1] for match in NVIDIA_INSTRUCTION.finditer(sass)]
    products = [number for number, line in enumerate(lines) if TENSOR_SASS.search(line)]
    exits = [number for number, line in enumerate(lines) if "EXIT" in line.split()]
    return exits[-1] - products[-1] if products and exits and exits[-1] > products[-1] else None


def amd_loop(assembly: str) -> Loop | None:
    """Return the shortest loop with a tensor-core instruction in LLVM's AMD assembly, None without one."""
    bodies = _loops(
        assembly,
        label=re.compile(r"(\.LBB\d+_\d+):"),
        instruction=re.compile(r"\t([a-z]\w+.*)"),
        branch=re.compile(r"\bs_c?branch\w*\s+(\.LBB\d+_\d+)"),
    )
    body = _shortest_with(MFMA, bodies)
    if body is None:
        return None
    shapes = Counter(
        tuple(map(int, match[1].split("x"))) for line in body if (match := MFMA.search(line)) is not None
    )
    return Loop(len(body), dict(shapes))


def _shortest_with(instruction: re.Pattern[str], bodies: Iterable[list[str]]) -> list[str] | None:
    """Return the shortest loop that contains a matching instruction; None without one."""
    matches = (body for body in bodies if any(instruction.search(line) for line in body))
    return min(matches, key=len, default=None)


def _loops(
    text: str, *, label: re.Pattern[str], instruction: re.Pattern[str], branch: re.Pattern[str]
) -> Iterator[list[str]]:
    """Yield the instructions from each label up to a branch back to it."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in text.splitlines():
        if match := label.match(line):
            labels[match[1]] = len(instructions)
        elif match := instruction.match(line):
            instructions.append(match[1])
            target = branch.search(match[1])
            if target and target[1] in labels:
                yield instructions[labels[target[1]] :]
