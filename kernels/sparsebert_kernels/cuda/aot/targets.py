"""The GPUs that kernels are compiled for ahead of time."""

from __future__ import annotations

from dataclasses import dataclass

from ..hardware import SHARED_MEMORY, SHARED_MEMORY_AMD

SCHEDULERS = 4  # per multiprocessor; each issues one instruction of one warp per cycle


@dataclass(frozen=True)
class Target:
    """A GPU to compile for.

    Attributes:
        name: Name of the target on the command line and in records.
        backend: Triton's backend, "cuda" or "hip".
        architecture: Architecture as Triton's backend names it.
        warp_size: Threads of a warp.
        instruction: Kind of the GPU's tensor-core instruction.
        shared_memory: Bytes of shared memory available to one program.
        products: 16-bit multiply-adds per cycle of the tensor cores of one multiprocessor (half as many in
            TF32); None if the instructions issued in the same cycles cannot be counted from the text.
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
        Target("sm_80", "cuda", 80, 32, "mma.sync", SHARED_MEMORY[8, 0], 1024),
        Target("sm_90", "cuda", 90, 32, "wgmma", SHARED_MEMORY[9, 0], 2048),
        Target("sm_100", "cuda", 100, 32, "tcgen05", SHARED_MEMORY[10, 0], 4096),
        Target("gfx942", "hip", "gfx942", 64, "mfma", SHARED_MEMORY_AMD, None),
    )
}
