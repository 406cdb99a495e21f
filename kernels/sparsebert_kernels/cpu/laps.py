"""Where native encoders spend their time: ``recorded_laps``."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

from . import native

# As in src/laps.h: linear layers with their activations, attention, residuals with LayerNorm, the change of
# the activations' layout, embeddings, and what follows the last layer.
LAPS = ("qkv", "output", "up", "down", "attention", "norm", "layout", "embeddings", "pooler")


@contextlib.contextmanager
def recorded_laps() -> Iterator[Tensor]:
    """Measure where native encoders spend their time, in all calls of this process meanwhile.

    Yields:
        The nanoseconds of each of ``LAPS`` so far, summed over threads, int64 [len(LAPS)].

    Raises:
        NativeLibraryMissing: There is no native library.
    """
    laps = torch.zeros(len(LAPS), dtype=torch.int64)
    record = native.library().sb_record_laps
    record.argtypes, record.restype = [ctypes.c_void_p], None
    record(laps.data_ptr())
    try:
        yield laps
    finally:
        record(None)
