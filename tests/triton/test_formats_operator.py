"""``sparsebert::linear`` over the formats that only GPU kernels compute directly, as torch sees it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparsebert_kernels import formats, ops
from tests.ops.problem import SHORT


def _arguments(name: str, dtype: torch.dtype, device: torch.device, gradients: bool) -> tuple[Any, ...]:
    weight, mask = torch.randn(45, 100).to(device, dtype), (torch.rand(45, 100) < 0.1).to(device)
    packed = formats.pack(weight, mask, format=name)
    x, bias = (torch.randn(size).to(device, dtype).requires_grad_(gradients) for size in ((9, 100), (45,)))
    index = [tensor for key, tensor in packed.tensors().items() if key != "values"]
    return x, packed.values, index, bias, [], name, [], 45, "gelu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=SHORT.get)
@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", ["bitmap", "column_panel"])
def test_opcheck(name: str, gradients: bool, dtype: torch.dtype, device: torch.device) -> None:
    torch.library.opcheck(torch.ops.sparsebert.linear, _arguments(name, dtype, device, gradients))


@pytest.mark.parametrize("name", ["bitmap", "column_panel"])
def test_compiles_without_a_graph_break_for_any_number_of_tokens(name: str, device: torch.device) -> None:
    torch.compiler.reset()
    weight, mask = torch.randn(45, 100, device=device), torch.rand(45, 100, device=device) < 0.1
    packed = formats.pack(weight, mask, format=name)
    compiled = torch.compile(
        lambda x: ops.linear(x, packed), fullgraph=True, backend="aot_eager", dynamic=True
    )
    with torch.no_grad():
        for tokens in (33, 2, 70):
            x = torch.randn(tokens, 100, device=device)
            assert torch.equal(compiled(x), ops.linear(x, packed))


@pytest.mark.parametrize("name", ["bitmap", "column_panel"])
def test_x_in_another_dtype_than_the_weight_is_refused(name: str, device: torch.device) -> None:
    packed = formats.pack(torch.randn(45, 100, device=device), format=name)
    with pytest.raises(ValueError, match=r"x is torch.bfloat16, the weight torch.float32"):
        ops.linear(torch.randn(3, 100, device=device).bfloat16(), packed)
