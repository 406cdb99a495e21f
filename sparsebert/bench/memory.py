"""Memory of a backend: bytes of its weights, and resident bytes of its process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from sparsebert.accounting.process_memory import clear_peak
from sparsebert.nn.sparse_linear import SparseLinear


@dataclass(frozen=True)
class Memory:
    """Resident bytes of a backend in a process of its own.

    Attributes:
        baseline: The interpreter with torch and transformers, before any model.
        peak: Maximum of all, including loading and packing.
        running: Maximum during inference, after loading.
    """

    baseline: int
    peak: int
    running: int

    def record(self) -> dict[str, int]:
        """Return the fields and their differences from the baseline."""
        return {
            **asdict(self),
            "peak_over_baseline": self.peak - self.baseline,
            "running_over_baseline": self.running - self.baseline,
        }


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of a linear layer's weight as stored: dense, prepacked or sparse; without bias."""
    stored = getattr(module, "nbytes", None)
    if isinstance(stored, int):
        return stored
    weight = module.weight
    if not isinstance(weight, torch.Tensor):
        raise ValueError(f"{type(module).__name__} has no weight tensor")
    return weight.numel() * weight.element_size()


def model_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers, sparse layers as packed and shared ones once."""
    held: dict[int, int] = {}
    for module in model.modules():
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if isinstance(module, SparseLinear):
            # A sparse layer registers only some of its tensors.
            held[id(module)] = module.nbytes
            tensors = [] if module.bias is None else [module.bias]
        held |= {id(tensor): tensor.nbytes for tensor in tensors}
    return sum(held.values())


def measure(spec: Mapping[str, Any]) -> Memory:
    """Build and run a backend in a fresh process.

    Args:
        spec: See ``sparsebert.bench.worker``.

    Raises:
        RuntimeError: The process fails; the message holds the last line of its stderr.
    """
    done = subprocess.run(
        [sys.executable, "-m", "sparsebert.bench.worker"],
        input=json.dumps(spec),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()
        raise RuntimeError(
            f"the memory worker of {spec['provider']} failed: {words[-1] if words else 'no message'}"
        )
    return Memory(**json.loads(done.stdout.strip().splitlines()[-1]))


def reset_peak() -> None:
    """Return freed memory to the system and reset the peak to the current size (Linux only)."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
    clear_peak()
