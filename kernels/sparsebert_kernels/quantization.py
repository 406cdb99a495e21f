"""Symmetric int8: a scale for each row of a weight, and a scale for each token of its input.

A weight row or a token with the largest magnitude m is stored as integers q = round(127 w / m) between -127
and 127 with the scale m / 127, so that its products are sums of integers times two scales:

    y[t, n] = token_scale[t] * row_scale[n] * sum_k q_x[t, k] q_w[n, k] + bias[n]

The sums are exact on every instruction set. No zero points: the pruned weights and the padding are exact
zeros, and the sums need no correction. The scheme is the symmetric one of Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018 (arXiv:1712.05877), with a
scale for each row of the weight; the scale for each token is that of Yao et al., "ZeroQuant", 2022
(arXiv:2206.01861). Instead of the maximum of each token, a calibrated limit may serve all tokens: the largest
magnitude that ``observe_limits`` saw. Larger activations then saturate.

A token with a NaN or infinity has the scale NaN: all its results are NaN, and no other token's change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import reference

LEVELS = 127
# Smaller maxima of a token count as this one: all its values are then zeros.
SMALLEST_MOST = 1e-20


class Quantized(NamedTuple):
    """``values`` int8 [rows, columns] and ``scales`` float32 [rows]."""

    values: Tensor
    scales: Tensor

    def dequantized(self) -> Tensor:
        """Return the float32 matrix that the values stand for."""
        return self.values.float() * self.scales[:, None]


def quantize_rows(weight: Tensor) -> Quantized:
    """Quantize a weight [out, in], each row by its largest magnitude; a row of zeros has the scale 0.

    Raises:
        ValueError: The weight has a NaN or infinity.
    """
    exact = weight.detach().double()
    most = exact.abs().amax(1) if exact.shape[1] else exact.new_zeros(exact.shape[0])
    if not most.isfinite().all():
        row = int((~most.isfinite()).nonzero()[0])
        raise ValueError(f"row {row} of the weight has a NaN or infinity, which int8 cannot hold")
    scales = (most / LEVELS).float()
    rates = torch.where(scales > 0, LEVELS / most, 0)
    return Quantized((exact * rates[:, None]).round().clamp(-LEVELS, LEVELS).to(torch.int8), scales)


def quantize_tokens(x: Tensor, limit: Tensor | None = None) -> Quantized:
    """Quantize tokens x [tokens, in] as the native kernels do, bit by bit.

    Args:
        x: float32 or bfloat16.
        limit: The calibrated limit (float32, one element); None for the largest magnitude of each token.
    """
    x = x.detach().float()
    most = x.abs().amax(1) if x.shape[1] else x.new_zeros(x.shape[0])
    finite = most.isfinite()
    if limit is not None:
        most = limit.to(x.device).expand(x.shape[0])
    most = most.clamp(min=SMALLEST_MOST)[:, None]
    # Quotients of tensors, as in the kernels: torch multiplies by a rounded reciprocal for those of numbers.
    levels = torch.full_like(most, LEVELS)
    # The product of two float32 is exact in float64.
    rates = (levels / most).double()
    values = (torch.minimum(torch.maximum(x, -most), most).double() * rates).round()
    scales = torch.where(finite, (most / levels)[:, 0], torch.nan)
    return Quantized(torch.where(finite[:, None], values, 0).to(torch.int8), scales)


def integer_linear(x: Quantized, weight: Quantized, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Return ``activation(x @ W.T + bias)`` in float32 from exact integer sums."""
    # Sums below 2^53 are exact in float64, whose products are far faster in torch than those of integers.
    sums = x.values.double() @ weight.values.double().t()
    y = sums.float() * x.scales[:, None] * weight.scales
    return reference.activate(y if bias is None else y + bias.float(), activation)


def checked_limit(limit: float) -> float:
    """Return a calibrated limit. Raises ValueError unless it is a positive finite number."""
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit < math.inf:
        raise ValueError(f"limit must be a positive finite number, got {limit!r}")
    return float(limit)


@torch.no_grad()
def observe_limits(
    model: nn.Module, modules: Mapping[str, nn.Module], batches: Iterable[Mapping[str, Any]]
) -> dict[str, float]:
    """Return the largest magnitude of each module's input over batches of tokenized texts.

    The limits calibrate int8 layers: pass them as ``limit`` to ``VectorInt8.from_dense``, which stores them
    with the packed weight.

    Args:
        model: Called as ``model(**batch)`` for each batch, without gradients, in its present mode.
        modules: The modules to observe, by name; their first positional argument is their input.
        batches: The batches, e.g. what a tokenizer returns. Padding counts too: mask it or leave it out.

    Raises:
        ValueError: There are no batches, a module did not run, or its input had a NaN or infinity or nothing
            but zeros.
    """
    largest: dict[str, Tensor] = {}

    def observer(name: str) -> Any:
        def observe(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments[0].numel():
                most = arguments[0].detach().abs().amax().float()
                # The order of the operands keeps a NaN of either.
                largest[name] = torch.maximum(largest[name], most) if name in largest else most

        return observe

    handles = [module.register_forward_pre_hook(observer(name)) for name, module in modules.items()]
    try:
        for batch in batches:
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    limits = {name: float(most) for name, most in largest.items()}
    for name in modules:
        if name not in limits:
            raise ValueError(
                f"module {name!r} did not run: calibration needs at least one batch that reaches it"
            )
        if not 0 < limits[name] < math.inf:
            raise ValueError(
                f"the largest input of module {name!r} is {limits[name]}; it must be positive and finite"
            )
    return limits
