"""Every linear layer prepacked for oneDNN: the fastest dense library in a torch wheel, and the main baseline.

torch's own float32 ``F.linear`` uses MKL, which takes its AVX2 path on AMD; there, oneDNN from the same wheel
is more than twice as fast. Its operators are private to torch, so each layer is checked against ``F.linear``
when it is built.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from sparsebert.bench.providers.base import TorchBackend
from sparsebert.bench.pruned_model import PrunedModel
from sparsebert_kernels.formats.dense import onednn_linear, prepack, prepacking_works

# Relative to the largest output; oneDNN rounds bfloat16 and float16 sums in another order than torch.
SELF_CHECK = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 3e-3}


class PrepackedLinear(nn.Module):
    """y = x W^T + b through oneDNN, with W [out, in] reordered once for about ``tokens`` rows of x [..., in].

    Raises:
        ValueError: torch lacks the operators, or their results differ from those of ``F.linear``.
    """

    def __init__(self, linear: nn.Linear, tokens: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self.bias = None if linear.bias is None else linear.bias.detach()
        if not prepacking_works(weight.dtype):
            raise ValueError(f"this torch cannot prepack {weight.dtype} for oneDNN")
        self.packed = prepack(weight, tokens)
        self.nbytes = int(torch.ops.mkldnn._nbytes(self.packed))
        sample = torch.linspace(-1, 1, 2 * weight.shape[1], dtype=weight.dtype).view(2, -1)
        with torch.inference_mode():
            expected, answer = F.linear(sample, weight, self.bias), self(sample)
        error, scale = (answer - expected).abs().max().item(), expected.abs().max().item()
        if not error <= SELF_CHECK[weight.dtype] * max(scale, 1.0):
            raise ValueError(
                f"oneDNN's prepacked linear differs from F.linear by {error:.1e}; "
                "it cannot serve as a baseline here"
            )

    def forward(self, x: torch.Tensor, activation: str = "none") -> torch.Tensor:
        return onednn_linear(x, self.packed, self.bias, activation)


def prepack_(model: nn.Module, tokens: int) -> nn.Module:
    """Replace every ``nn.Linear`` of ``model`` by a ``PrepackedLinear``, in place, and return ``model``."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, PrepackedLinear(child, tokens))
    return model


class OneDnn(TorchBackend):
    name: ClassVar[str] = "onednn"
    summary: ClassVar[str] = "all linears prepacked for oneDNN"

    def available(self) -> str | None:
        if not torch.backends.mkldnn.is_available():
            return "this torch is built without oneDNN"
        try:
            PrepackedLinear(nn.Linear(64, 32), tokens=8)
        except ValueError as error:
            return str(error)
        return None

    def convert(self, model: nn.Module, pruned: PrunedModel) -> nn.Module:
        self.require_cpu(pruned)
        if self.precision(pruned) == "float64":
            raise ValueError("onednn cannot compute in float64; use float32 or bfloat16")
        return prepack_(model, pruned.tokens)
