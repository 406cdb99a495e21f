"""Every test starts from the same random state, offline, and leaves torch's settings as it found them."""

from __future__ import annotations

import gc
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
# Tables keep to the width of a terminal; pytest-xdist passes one on to its processes, which have none.
os.environ.pop("COLUMNS", None)
os.environ.pop("LINES", None)

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

# Read when triton is first imported, which is later: without a GPU the kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from sparsebert_kernels import cuda
from sparsebert_kernels.cpu import native
from sparsebert_kernels.cuda import interpreter

# The same examples in every run; `--hypothesis-profile=explore` looks for new ones.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def _same_start_for_every_test() -> Iterator[None]:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Leave files to the cache of the operating system, which outlives a killed process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def _quick_garbage_collection() -> None:
    """Freeze the objects that outlive a module: those of libraries, and what ``torch.compile`` keeps.

    transformers' trainer collects garbage at every training, which takes half a second once a million objects
    are searched.
    """
    if "transformers.trainer" in sys.modules:
        gc.collect()
        gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture
def device() -> Iterator[torch.device]:
    """Where Triton kernels run in this test: on a GPU if there is one, else on CPU tensors."""
    if torch.cuda.is_available():
        yield torch.device("cuda")
        return
    if reason := interpreter.why_broken():
        pytest.skip(reason)
    with cuda.on_cpu():
        yield torch.device("cpu")


@pytest.fixture
def native_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the native functions that the test calls, in turn."""
    library, calls = native.library(), []

    class Recorded:
        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(library, name)

    recorded = Recorded()
    monkeypatch.setattr(native, "library", lambda: recorded)
    return calls


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of task data that SPARSEBERT_DATA names; skips where there is none."""
    folder = os.environ.get("SPARSEBERT_DATA")
    if not folder:
        pytest.skip("SPARSEBERT_DATA names no folder of task data")
    return Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))
