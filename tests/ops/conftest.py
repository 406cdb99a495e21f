"""The backends of the kernel tests: instruction sets of this machine, and torch alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sparsebert_kernels.cpu import native
from tests.ops.backends import ENDS, INSTRUCTION_SETS, TORCH_ALONE, using


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set in turn."""
    with using(request.param):
        yield request.param


@pytest.fixture(params=ENDS)
def end(request: pytest.FixtureRequest) -> Iterator[str]:
    """The best instruction set and the baseline."""
    with using(request.param):
        yield request.param


@pytest.fixture(params=(*ENDS, TORCH_ALONE))
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The best instruction set, the baseline, and torch without the native library."""
    if request.param == TORCH_ALONE:
        monkeypatch.setattr(native, "supports", lambda format, dtype, x: False)
        yield request.param
        return
    with using(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan() -> Iterator[None]:
    """Fill torch.empty and its kin with NaN, so that an output element that no kernel writes shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
