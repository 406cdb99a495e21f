"""Linear layers in fp16 on CPUs with AVX512-FP16; in fp32 where that is missing, or where fp16 overflows."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats.element_fp16 import LARGEST, ElementFp16
from ..memory import readable
from . import native

EXTENSION = "avx512_fp16"
_X_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 4}
_VALUES = 4  # SB_F16 of src/native.h
_NARROW = ("baseline", "avx2", "neon")  # instruction sets that were chosen instead of AVX-512
_emulated = False


@contextmanager
def emulation() -> Iterator[None]:
    """Compute in plain C++ inside the context, with the results of AVX512-FP16, slowly: for tests."""
    global _emulated
    before, _emulated = _emulated, True
    try:
        yield
    finally:
        _emulated = before


def why_unavailable() -> str | None:
    """Return None if fp16 kernels run here, else the reason in a few words."""
    if not native.available():
        return native.why_unavailable()
    if _emulated:
        return None if native.library().sb_fp16_supported(1) else "the build lacks the emulation"
    if native.instruction_set() in _NARROW:
        return f"the instruction set in use is {native.instruction_set()}"
    return _why_unsupported()


@functools.cache
def _why_unsupported() -> str | None:
    if native.library().sb_fp16_supported(0):
        return None
    return native.extensions().get(EXTENSION, native.CPU_LACKS_IT) or f"the build lacks {EXTENSION}"


def supports(packed: object, x: Tensor) -> bool:
    """Return whether an fp16 kernel computes x [..., in] with this weight."""
    fits = isinstance(packed, ElementFp16) and x.dtype in _X_DTYPES and x.is_cpu and packed.values.is_cpu
    return fits and why_unavailable() is None


def linear(
    x: Tensor, packed: ElementFp16, bias: Tensor | None, activation: str
) -> tuple[Tensor, Tensor] | None:
    """Return ``activation(x @ W.T + bias)`` with products and sums in fp16, bias and activation in fp32.

    Args:
        x: [..., in] in float32, bfloat16 or float16.
        packed: W, which the kernels support with x.
        bias: [out] or None.
        activation: Name of the activation.

    Returns:
        y [..., out] in the dtype of x, and a bool tensor [...]: whether a sum of the token is infinite or
        NaN, because of its x or because it has left the range of fp16. Such sums are NaN in y. None, with
        nothing computed, if the kernels lack the activation or an argument does not fit.
    """
    *leading, in_features = x.shape or (0,)
    out_features, width = packed.shape
    fits = bias is None or (bias.shape == (out_features,) and bias.is_cpu)
    if activation not in native.ACTIVATIONS or width != in_features or not fits:
        return None
    rows = readable(x.reshape(-1, in_features).contiguous())
    bias = None if bias is None else readable(bias.float().contiguous())
    values = readable(packed.values.contiguous())
    packed = packed if values is packed.values else packed.replace(values=values)
    flag = torch.zeros(1, dtype=torch.int32)
    y = rows.new_empty((rows.shape[0], out_features))
    call = native._CALL.pack(
        rows.data_ptr(),
        rows.shape[0],
        in_features,
        _X_DTYPES[x.dtype],
        native.ACTIVATIONS[activation],
        torch.get_num_threads(),
        1,
    )
    call += describe(packed, bias, y, flag)
    if native.library().sb_fp16_linear(call, int(_emulated)) != 0:
        return None
    lost = y.isnan().any(-1) if flag.item() else torch.zeros(len(y), dtype=torch.bool)
    return y.view(*leading, out_features), lost.view(leading)


def describe(packed: ElementFp16, bias: Tensor | None, y: Tensor | None, flag: Tensor | None) -> bytes:
    """Return the bytes of a struct sb_weight; ``flag`` takes note of sums out of range, int32 [1]."""
    return native._WEIGHT.pack(
        *packed.shape,
        0,
        _VALUES,
        packed.block_rows,
        packed.block_columns,
        0,
        0,
        packed.values.data_ptr(),
        packed.columns.data_ptr(),
        packed.rows.data_ptr(),
        packed.groups.data_ptr(),
        packed.blocks.data_ptr(),
        0 if flag is None else flag.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if y is None else y.data_ptr(),
        0,
    )


def emulating() -> bool:
    """Whether this is inside an ``emulation``."""
    return _emulated


def note_overflow(packed: ElementFp16, tokens: int) -> None:
    """Count tokens in ``packed.overflow``, and warn of the first."""
    counter = packed.overflow.numpy()
    if tokens and not counter[0]:
        warnings.warn(
            f"activations of a layer {packed.shape[0]}x{packed.shape[1]} exceed the range of fp16 "
            f"({LARGEST:g}): such tokens are computed again in fp32; choose fp32 or bf16 for this layer",
            RuntimeWarning,
            stacklevel=2,
        )
    counter[0] = min(int(counter[0]) + tokens, 2**31 - 1)


@dataclass(frozen=True)
class Fp16Range:
    """The largest numbers that a layer computes with.

    Attributes:
        weight: Largest absolute weight.
        input: Largest absolute activation.
        sum: Upper bound of every partial sum: the largest sum of absolute products of a row and a token.
    """

    weight: float
    input: float
    sum: float

    @property
    def fits(self) -> bool:
        """Whether all of them are finite and at most half of fp16's largest number, 65504.

        The other half is for activations that the calibration data do not show, and for rounding.
        """
        return all(value <= LARGEST / 2 for value in (self.weight, self.input, self.sum))

    def __or__(self, other: Fp16Range) -> Fp16Range:
        """Return the range of both."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Fp16Range(*(math.nan if math.isnan(a + b) else max(a, b) for a, b in pairs))


def fp16_range(x: Tensor, weight: Tensor) -> Fp16Range:
    """Measure the numbers that a layer computes with, for one batch of its inputs.

    Args:
        x: [..., in] in any floating-point dtype.
        weight: [out, in], with zeros where it is pruned.

    Returns:
        The range; NaN among the numbers makes it NaN, which does not fit.
    """
    x, weight = x.detach().float().reshape(-1, weight.shape[1]).abs(), weight.detach().float().abs()
    if not x.numel():
        return Fp16Range(float(weight.max()), 0.0, 0.0)
    # A pruned column is never read.
    x = x[:, weight.any(0)]
    weight = weight[:, weight.any(0)]
    if not weight.numel():
        return Fp16Range(0.0, 0.0, 0.0)
    return Fp16Range(float(weight.max()), float(x.max()), float((x @ weight.T).max()))
