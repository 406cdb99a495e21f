"""Which calls go to the Triton kernels, and to which of them.

Nothing here imports Triton before the first call that needs it. `covers` is what a compiler may trace, the
rest runs inside operators.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Format -> module of this package with `linear`; with `input_gradient` and, for what can be trained,
# `values_gradient`.
FORWARD = {
    "panel": "panel_forward",
    "bitmap": "bitmap",
    "column_panel": "column_panel",
    "2:4": "semi_structured",
}
BACKWARD = {**FORWARD, "panel": "panel_backward"}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEAST_CAPABILITY = (8, 0)

_cpu_too = False


@contextmanager
def on_cpu() -> Iterator[None]:
    """Send CPU tensors to the kernels as well: under TRITON_INTERPRET=1 this runs the real operators."""
    global _cpu_too
    before, _cpu_too = _cpu_too, True
    try:
        yield
    finally:
        _cpu_too = before


def covers(format: str, device: torch.device) -> bool:
    """Whether there are kernels for that format on that kind of device; `serves` says whether they run."""
    return format in FORWARD and (device.type == "cuda" or (_cpu_too and device.type == "cpu"))


def serves(format: str, x: Tensor) -> bool:
    """Whether the kernels take x and a weight of that format; see `runs_on`."""
    return covers(format, x.device) and runs_on(x)


def runs_on(x: Tensor) -> bool:
    """Whether kernels take x, whatever the weight. Where a GPU is too old, this says so once."""
    if x.device.type != "cuda" and not (_cpu_too and x.device.type == "cpu"):
        return False
    if x.dtype not in DTYPES:
        return False
    reason = why_unavailable(x.device)
    if reason is not None:
        _warn_once(x.device, reason)
    return reason is None


@functools.cache
def why_unavailable(device: torch.device) -> str | None:
    """None where kernels run on ``device``, else the reason in a few words."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cpu":
        return None
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        major, minor = capability
        return f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, 8.0 is needed"
    return None


@functools.cache
def _warn_once(device: torch.device, reason: str) -> None:
    warnings.warn(f"sparse weights are computed through dense ones on {device}: {reason}", stacklevel=3)


def check_dtype(x: Tensor, packed: Any) -> None:
    """Raise ValueError for an x in another dtype than the values of ``packed``, which kernels do not mix."""
    if x.dtype != packed.values.dtype and x.dtype in DTYPES:
        raise ValueError(
            f"x is {x.dtype}, the weight {packed.values.dtype}; "
            "on a GPU they must agree (autocast converts both)"
        )


def linear(x: Tensor, packed: Any, bias: Tensor | None, activation: str, residual: Tensor | None) -> Tensor:
    """``activation(x @ W.T + bias) + residual``; see `ops.linear`."""
    with torch.cuda.device_of(x):
        return _module(FORWARD[packed.name]).linear(x, packed, bias, activation, residual)


def input_gradient(gradient: Tensor, packed: Any, transposed: Sequence[Tensor]) -> Tensor:
    """gradient @ W for gradient [..., out]; ``transposed`` is what `transposed_index` gives."""
    with torch.cuda.device_of(gradient):
        return _module(BACKWARD[packed.name]).input_gradient(gradient, packed, transposed)


def values_gradient(gradient: Tensor, x: Tensor, packed: Any) -> Tensor:
    """dL/dvalues in the layout and dtype of ``packed.values``, for gradient [..., out] and x [..., in]."""
    with torch.cuda.device_of(x):
        return _module(BACKWARD[packed.name]).values_gradient(gradient, x, packed)


def _module(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}")
