"""Kernel tests run on each instruction set of this machine and, where it applies, on torch alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sparsebert_kernels import cpu
from sparsebert_kernels.cpu import native

TORCH_ALONE = "torch"


@pytest.fixture(params=cpu.instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """In use for this test."""
    before = cpu.instruction_set()
    native.use_instruction_set(request.param)
    yield request.param
    native.use_instruction_set(before)


@pytest.fixture(params=(*cpu.instruction_sets(), TORCH_ALONE))
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An instruction set in use, or `TORCH_ALONE`: the path without the native library."""
    if request.param == TORCH_ALONE:
        monkeypatch.setattr(native, "supports", lambda format, dtype, x: False)
        yield request.param
        return
    before = cpu.instruction_set()
    native.use_instruction_set(request.param)
    yield request.param
    native.use_instruction_set(before)


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan() -> Iterator[None]:
    """In this mode torch.empty and its kin give NaN, so that an output element that nobody writes shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
