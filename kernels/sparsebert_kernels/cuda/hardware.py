"""Properties of a GPU that decide whether kernels run on it, and their block sizes."""

from __future__ import annotations

import functools

import torch

# Least compute capability that the kernels, and torch's 2:4 products, run on.
LEAST_CAPABILITY = (8, 0)
# Bytes of shared memory available to one program, by compute capability; others have LEAST_SHARED_MEMORY.
SHARED_MEMORY = {(8, 0): 163 * 1024, (9, 0): 227 * 1024, (10, 0): 227 * 1024, (10, 3): 227 * 1024}
LEAST_SHARED_MEMORY = 99 * 1024
SHARED_MEMORY_AMD = 64 * 1024
DEFAULT_SHARED_MEMORY = 163 * 1024


@functools.cache
def name_of(device: torch.device) -> str:
    """Return the name of a GPU, else the device's type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Return the bytes of shared memory available to one program; the default for a CPU."""
    if device.type != "cuda":
        return DEFAULT_SHARED_MEMORY
    return shared_memory_of(torch.cuda.get_device_capability(device))


def shared_memory_of(capability: tuple[int, int]) -> int:
    """Return the bytes of shared memory available to one program on GPUs of a compute capability."""
    return SHARED_MEMORY_AMD if torch.version.hip else SHARED_MEMORY.get(capability, LEAST_SHARED_MEMORY)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors of a GPU; 8 for a CPU, on which the interpreter runs."""
    if device.type != "cuda":
        return 8
    return torch.cuda.get_device_properties(device).multi_processor_count
