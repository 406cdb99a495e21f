"""A frozen layer in packed panels whose x has gradients: the transposed index is computed once and kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert_kernels.cuda import panel_backward


def layer(device: torch.device, *, trainable: bool = False) -> SparseLinear:
    weight = torch.randn(64, 96, device=device, requires_grad=trainable)
    mask = (torch.rand(4, 12) < 0.4).repeat_interleave(16, 0).repeat_interleave(8, 1).to(device)
    return SparseLinear(weight, mask, format="panel", block_size=(16, 8), trainable=trainable)


def input_gradient(linear: SparseLinear, x: Tensor) -> Tensor:
    """The gradient of x for dL/dy = 1."""
    x = x.clone().requires_grad_()
    linear(x).sum().backward()
    assert x.grad is not None
    return x.grad


@pytest.fixture
def x(device: torch.device) -> Tensor:
    return torch.randn(5, 96, device=device)


def test_the_backward_pass_computes_no_index(
    x: Tensor, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(packed: object) -> list[Tensor]:
        raise AssertionError("the index is computed in the backward pass")

    linear = layer(device)
    monkeypatch.setattr(panel_backward, "transposed_panels", refuse)
    for _ in range(2):
        torch.testing.assert_close(input_gradient(linear, x), linear.weight.sum(0).expand(5, 96))


def test_it_is_computed_once_and_only_when_a_gradient_asks_for_it(x: Tensor, device: torch.device) -> None:
    linear = layer(device)
    before = linear.nbytes
    linear(x)
    with torch.no_grad():
        linear(x.clone().requires_grad_())
    assert linear.nbytes == before
    input_gradient(linear, x)
    index = linear._transposed()
    assert linear.nbytes == before + sum(tensor.nbytes for tensor in index)
    assert sorted(linear.state_dict()) == ["weight"]
    input_gradient(linear, x)
    assert all(a is b for a, b in zip(linear._transposed(), index, strict=True))


def test_another_weight_gets_an_index_of_its_own(x: Tensor, device: torch.device) -> None:
    linear = layer(device)
    input_gradient(linear, x)
    linear.to(torch.bfloat16)
    assert not linear._transposed()
    gradient = input_gradient(linear, x.bfloat16())
    torch.testing.assert_close(gradient, linear.weight.sum(0).expand(5, 96), rtol=2**-6, atol=2**-6)


def test_a_trainable_layer_has_it_from_the_start(device: torch.device) -> None:
    assert len(layer(device, trainable=True)._transposed()) == 4


def test_without_kernels_nothing_is_kept() -> None:
    linear = layer(torch.device("cpu"))
    input_gradient(linear, torch.randn(5, 96))
    assert not linear._transposed()
