"""Reading compiled kernels: which tensor-core instruction, what spills, how long the main loop is.

Works on the text that the compilers and disassemblers give, so that none of it needs a GPU or triton.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Every instruction of these kinds is one tensor-core operation; the shape is part of its name.
TENSOR_PTX = re.compile(
    r"\b(?:(?P<mma>mma\.sync)\.aligned|(?P<wgmma>wgmma)\.mma_async\.sync\.aligned)\.(?P<shape>m\d+n\d+k\d+)"
)
TCGEN05_PTX = re.compile(r"\btcgen05\.mma\.")
# Its shape stands in a descriptor made at run time, so it is read one step earlier, in Triton's own code.
TCGEN05_TTGIR = re.compile(
    r"ttng\.tc_gen5_mma .*?: !ttg\.memdesc<(\d+)x(\d+)x\w+[^>]*>, !tt\w+\.memdesc<\d+x(\d+)x"
)
MFMA = re.compile(r"\bv_s?mfmac?_\w+?_(\d+x\d+x\d+)\w*")

TENSOR_SASS = re.compile(r"\b(?:HGMMA\.(\d+)x(\d+)x(\d+)|HMMA\.(16816|1688|1684)|(UTC\w*MMA))\b")
HMMA_SHAPES = {"16816": (16, 8, 16), "1688": (16, 8, 8), "1684": (16, 8, 4)}
WARPS_OF_A_GROUP = 4  # HGMMA is issued by four warps together, HMMA by each for itself
# The most rows, columns and bytes of a row that UTC*MMA multiplies; one thread issues it.
TCGEN05 = (128, 256, 32)

PIPELINED = re.compile(r"ttg\.local_alloc\s*:\s*\(\)\s*->\s*!ttg\.memdesc<(\d+)x\d+x\d+x")
STAGED = re.compile(r"ttg\.local_alloc\s+%")


@dataclass(frozen=True)
class Loop:
    """The main loop: machine instructions of one pass, as one warp executes them.

    tensor  shapes (m, n, k) of its tensor-core instructions with their number; () where it is not in the text
    """

    instructions: int
    tensor: dict[tuple[int, ...], int]

    def products(self, num_warps: int, tile: tuple[int, int], half: bool) -> int:
        """Multiplications of one pass over all warps of a program.

        tile, half  rows and columns of the program's product, and whether its operands have 16 bits: with
                    them an instruction whose shape is not in the text is as large as it can be
        """
        rows, columns = tile
        unknown = min(rows, TCGEN05[0]) * min(columns, TCGEN05[1]) * TCGEN05[2] // (2 if half else 4)
        groups = {64: num_warps // WARPS_OF_A_GROUP}
        return sum(
            count * (math.prod(shape) * groups.get(shape[0], num_warps) if shape else unknown)
            for shape, count in self.tensor.items()
        )


def tensor_instructions(text: str, ttgir: str = "") -> dict[str, int]:
    """Tensor-core instructions in PTX or AMD assembly, e.g. ``{"wgmma m64n128k16": 8}``."""
    found = Counter(
        f"{'wgmma' if match['wgmma'] else 'mma.sync'} {match['shape']}" for match in TENSOR_PTX.finditer(text)
    )
    if number := len(TCGEN05_PTX.findall(text)):
        shapes = {f"m{m}n{n}k{k}" for m, k, n in TCGEN05_TTGIR.findall(ttgir)}
        found[f"tcgen05 {'/'.join(sorted(shapes)) or 'of unknown shape'}"] = number
    found.update(f"mfma {match[1]}" for match in MFMA.finditer(text))
    return dict(sorted(found.items()))


def shared_buffers(ttgir: str) -> int | None:
    """Shared-memory copies of the operand that has fewest: 1 means no load overlaps the arithmetic.

    None where no operand goes through shared memory.
    """
    pipelined = [int(count) for count in PIPELINED.findall(ttgir)]
    if pipelined:
        return min(pipelined)
    return 1 if STAGED.search(ttgir) else None


def nvidia_loop(sass: str) -> Loop | None:
    """The shortest loop with a tensor-core instruction in it, from nvdisasm's text."""
    bodies = _loops(
        sass,
        label=re.compile(r"\s*(\.L_x_\d+):"),
        instruction=re.compile(r"\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;"),
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


def amd_loop(assembly: str) -> Loop | None:
    """The same from LLVM's AMD assembly."""
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
    """The shortest loop that has such an instruction in it."""
    found = (body for body in bodies if any(instruction.search(line) for line in body))
    return min(found, key=len, default=None)


def _loops(
    text: str, *, label: re.Pattern[str], instruction: re.Pattern[str], branch: re.Pattern[str]
) -> Iterator[list[str]]:
    """Instructions from each label up to a branch back to it."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in text.splitlines():
        if found := label.match(line):
            labels[found[1]] = len(instructions)
        elif found := instruction.match(line):
            instructions.append(found[1])
            target = branch.search(found[1])
            if target and target[1] in labels:
                yield instructions[labels[target[1]] :]
