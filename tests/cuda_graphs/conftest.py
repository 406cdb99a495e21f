"""The runner's graphs on CPU tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sparsebert.cuda_graphs import runner
from sparsebert.cuda_graphs.capture import CudaRecorder
from tests.cuda_graphs.fake_cuda import FakeCuda


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A torch.cuda whose graphs hold CPU tensors, and runners that capture models on the CPU in it."""
    fake = FakeCuda()
    fake.install(monkeypatch)
    recorder: Callable[[object], CudaRecorder] = CudaRecorder  # type: ignore[assignment]
    monkeypatch.setattr(runner, "recorder_for", recorder)
    return fake
