"""Tensors of files of unknown origin: nested tables made flat, and checks that need no memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Nesting of the tables in training checkpoints: {"state_dict": {"model": {...}}}.
_MAX_DEPTH = 8
_DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64),
)


def flat_tensors(table: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of a table and of the tables in it; nested names are joined by dots."""
    return dict(_tensors(table, "", 0))


def require_plain(tensor: Tensor, name: str, path: Path) -> None:
    """Check that a tensor holds the values that it claims, before any of them is read.

    Raises:
        ValueError: In one line, for a sparse, nested, quantized, complex or meta tensor, and for a shape that
            repeats the entries of a smaller storage.
    """
    problem = _problem(tensor)
    if problem:
        raise ValueError(f"{path}: {name!r} must be a dense tensor, got {problem}")


def _problem(tensor: Tensor) -> str:
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout != torch.strided:
        return f"a tensor of layout {str(tensor.layout).removeprefix('torch.')}"
    if tensor.is_quantized:
        return f"a quantized tensor ({str(tensor.dtype).removeprefix('torch.')})"
    if tensor.dtype not in _DTYPES:
        return f"a tensor of dtype {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.is_meta:
        return "a tensor on the meta device, which holds no values"
    needed, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if needed > stored:
        shape = "x".join(map(str, tensor.shape))
        return f"{shape} entries that share {stored} bytes (an expanded tensor; save it contiguous)"
    return ""


def _tensors(table: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    for name, value in table.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping) and depth < _MAX_DEPTH:
            yield from _tensors(value, f"{prefix}{name}.", depth + 1)
