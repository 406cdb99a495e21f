"""Capture of a call in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def capture_call(graph: torch.cuda.CUDAGraph, call: Callable[[], Any], **options: Any) -> Any:
    """Capture ``call`` in ``graph`` and return its result.

    The end of an invalid capture fails too, and would hide why; the error of ``call`` is raised instead.

    Args:
        graph: A new graph.
        call: Launches kernels.
        **options: As for ``torch.cuda.graph``.
    """
    failure = None
    try:
        with torch.cuda.graph(graph, **options):
            try:
                return call()
            except Exception as error:
                failure = error
                raise
    except Exception:
        if failure is not None:
            raise failure from None
        raise
