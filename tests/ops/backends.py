"""Instruction sets to test on, and which problems run on which of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from sparsebert_kernels import cpu
from sparsebert_kernels.cpu import native

TORCH_ALONE = "torch"
INSTRUCTION_SETS = cpu.instruction_sets()
ENDS = tuple(dict.fromkeys((*INSTRUCTION_SETS[:1], *INSTRUCTION_SETS[-1:])))
SAMPLED = 5  # every fifth problem runs on a backend between the ends

T = TypeVar("T")


@contextmanager
def using(name: str) -> Iterator[None]:
    """Use an instruction set inside the context."""
    before = cpu.instruction_set()
    native.use_instruction_set(name)
    yield
    native.use_instruction_set(before)


def on_backends(problems: Sequence[T]) -> list[tuple[T, str]]:
    """Pair all problems with the best instruction set and the baseline, every fifth with each other one."""
    others = [name for name in (*INSTRUCTION_SETS, TORCH_ALONE) if name not in ENDS]
    return [
        *((problem, name) for problem in problems for name in ENDS),
        *(
            (problem, name)
            for offset, name in enumerate(others)
            for problem in problems[offset % SAMPLED :: SAMPLED]
        ),
    ]
