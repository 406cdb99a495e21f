"""Every linear layer prepacked for oneDNN: the best dense library in a torch wheel, and the bar to clear.

torch's own fp32 `F.linear` goes to MKL, which takes its AVX2 path on AMD; oneDNN in the same wheel is more
than twice as fast there. The two operators used are private to torch, so each layer is checked against
`F.linear` when built.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from sparsebert.bench.providers.base import TorchBackend
from sparsebert.bench.pruned_model import Subject
from sparsebert_kernels.formats.dense import prepack, prepacking_works

# Relative to the largest answer; bf16 and fp16 sums are rounded in another order than torch's.
SELF_CHECK = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 3e-3}


class PrepackedLinear(nn.Module):
    """y = x W^T + b through oneDNN, W [out, in] reordered once for about `tokens` rows of x [..., in].

    Raises ValueError where torch lacks the operators or they give wrong numbers.
    """

    def __init__(self, linear: nn.Linear, tokens: int) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.bias = None if linear.bias is None else linear.bias.detach()
        if not prepacking_works(weight.dtype):
            raise ValueError(f"this torch cannot prepack {weight.dtype} for oneDNN")
        self.packed = prepack(weight, tokens)
        self.nbytes = int(torch.ops.mkldnn._nbytes(self.packed))
        sample = torch.linspace(-1, 1, 2 * weight.shape[1], dtype=weight.dtype).view(2, -1)
        with torch.inference_mode():
            expected, answer = F.linear(sample, weight, self.bias), self(sample)
        off, scale = (answer - expected).abs().max().item(), expected.abs().max().item()
        if not off <= SELF_CHECK[weight.dtype] * max(scale, 1.0):
            raise ValueError(
                f"oneDNN's prepacked linear is off by {off:.1e} from F.linear: not used as a bar"
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def prepack_(model: nn.Module, tokens: int) -> nn.Module:
    """Replace every nn.Linear of `model` by a `PrepackedLinear`."""
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

    def convert(self, model: nn.Module, subject: Subject) -> nn.Module:
        if subject.workload.device != "cpu":
            raise ValueError("onednn runs on the CPU only")
        if self.precision(subject) == "float64":
            raise ValueError("onednn does not compute in float64")
        return prepack_(model, subject.tokens)
