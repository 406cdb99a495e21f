"""Dense layers under a mask, and the answers that a sparse layer must give."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsebert_kernels import formats

FORMATS = sorted(formats.ANY_MASK)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 3e-3, torch.float64: 1e-12}


def layer_and_mask(
    out_features: int = 24, in_features: int = 40, density: float = 0.3, bias: bool = True, height: int = 1
) -> tuple[nn.Linear, Tensor]:
    """A dense layer and a mask of height x 1 vectors."""
    mask = (torch.rand(-(-out_features // height), in_features) < density).repeat_interleave(height, 0)
    return nn.Linear(in_features, out_features, bias=bias), mask[:out_features]


def masked(linear: nn.Linear, mask: Tensor, x: Tensor) -> Tensor:
    """Return the expected answer of the layer, in float64."""
    weight = torch.where(mask, linear.weight, 0).double()
    bias = None if linear.bias is None else linear.bias.double()
    return nn.functional.linear(x.double(), weight, bias)


def assert_answers(layer: nn.Module, linear: nn.Linear, mask: Tensor, x: Tensor) -> None:
    answer, expected = layer(x), masked(linear, mask, x)
    assert answer.shape == expected.shape
    assert answer.dtype == x.dtype
    torch.testing.assert_close(answer.double(), expected, rtol=TOLERANCE[x.dtype], atol=TOLERANCE[x.dtype])
