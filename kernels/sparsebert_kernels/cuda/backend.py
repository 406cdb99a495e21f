"""Dispatch of calls to the Triton kernels.

The first call that needs Triton imports it. A compiler may trace ``covers``; all other functions run inside
operators.
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

from ..memory import readable
from .hardware import LEAST_CAPABILITY

# Module of this package by format: FORWARD modules have `linear`, BACKWARD modules `input_gradient` and, for
# trainable formats, `values_gradient`.
FORWARD = {
    "panel": "panel_forward",
    "bitmap": "bitmap",
    "column_panel": "column_panel",
    "2:4": "semi_structured",
}
BACKWARD = {**FORWARD, "panel": "panel_backward"}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_cpu_too = False


@contextmanager
def on_cpu() -> Iterator[None]:
    """Send CPU tensors to the kernels as well, which runs the real operators under TRITON_INTERPRET=1."""
    global _cpu_too
    before, _cpu_too = _cpu_too, True
    try:
        yield
    finally:
        _cpu_too = before


def covers(format: str, device: torch.device) -> bool:
    """Return whether kernels exist for a format on a kind of device; ``supports`` tells whether they run."""
    if format not in FORWARD:
        return False
    kind = device.type
    return kind == "cuda" or (_cpu_too and kind == "cpu")


def supports(format: str, x: Tensor) -> bool:
    """Return whether the kernels compute x with a weight of this format; see ``runs_on``."""
    return format in FORWARD and runs_on(x)


def runs_on(x: Tensor) -> bool:
    """Return whether kernels compute x, whatever the weight. Warn once about a GPU that is too old."""
    if not x.is_cuda and not (_cpu_too and x.is_cpu):
        return False
    if x.dtype not in DTYPES:
        return False
    reason = why_unavailable(x.device)
    if reason is not None:
        _warn_once(x.device, reason)
    return reason is None


@functools.cache
def why_unavailable(device: torch.device) -> str | None:
    """Return None if kernels run on ``device``, else the reason in a few words."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "cpu":
        return None
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        major, minor = capability
        return (
            f"{torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, kernels need 8.0"
        )
    return None


@functools.cache
def _warn_once(device: torch.device, reason: str) -> None:
    warnings.warn(f"sparse layers on {device} use dense weights: {reason}", stacklevel=3)


def check_dtype(x: Tensor, packed: Any) -> None:
    """Raise ValueError unless x has the dtype of the packed values, because kernels do not mix dtypes."""
    if x.dtype != packed.values.dtype and x.dtype in DTYPES:
        raise ValueError(
            f"x is {x.dtype}, the weight {packed.values.dtype}; "
            "on a GPU they must have one dtype: convert one, or use autocast, which converts both"
        )


def linear(x: Tensor, packed: Any, bias: Tensor | None, activation: str, residual: Tensor | None) -> Tensor:
    """Return ``activation(x @ W.T + bias) + residual``; see ``ops.linear``."""
    x, bias = readable(x), None if bias is None else readable(bias)
    launch = _module(FORWARD[packed.name]).linear
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():  # entering a context takes longer
        return launch(x, packed, bias, activation, residual)
    with torch.cuda.device_of(x):
        return launch(x, packed, bias, activation, residual)


def quick_call(x: Tensor, packed: Any, bias: Tensor | None, activation: str, residual: Tensor | None) -> Any:
    """Return ``packed.quick_call`` if it computes this call, else None.

    It takes much less time on the host than ``linear`` and the checks before it.
    """
    quick = packed.quick_call
    if quick is None or not (x.get_device() == torch.cuda.current_device() if x.is_cuda else _cpu_too):
        return None
    return quick if quick.fits(x, packed, bias, activation, residual) else None


def input_gradient(gradient: Tensor, packed: Any, transposed: Sequence[Tensor]) -> Tensor:
    """Return gradient @ W for gradient [..., out]; ``transposed``: ``transposed_index(packed)`` or empty."""
    with torch.cuda.device_of(gradient):
        return _module(BACKWARD[packed.name]).input_gradient(gradient, packed, transposed)


def values_gradient(gradient: Tensor, x: Tensor, packed: Any) -> Tensor:
    """Return dL/dvalues in the layout and dtype of ``packed.values`` for gradient [..., out], x [..., in]."""
    with torch.cuda.device_of(x):
        return _module(BACKWARD[packed.name]).values_gradient(gradient, x, packed)


@functools.cache
def _module(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}")
