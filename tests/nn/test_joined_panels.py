"""Joined panels: one launch computes the projections of an attention, and changes of its layers are seen."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert.nn import joined_panels
from sparsebert.nn.fused_qkv import fuse_qkv_
from sparsebert.nn.joined_panels import JoinedPanels
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert_kernels import ops

WIDTH = 64


def panel_layer(bias: bool = True) -> SparseLinear:
    mask = (torch.rand(4, 4) < 0.5).repeat_interleave(16, 0).repeat_interleave(16, 1)
    linear = nn.Linear(WIDTH, WIDTH, bias=bias)
    return SparseLinear.from_linear(linear, mask, "panel")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = panel_layer(), panel_layer(), panel_layer()

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.stack([layer(hidden_states) for layer in self.children()])

    def alone(self, x: Tensor) -> Tensor:
        """The same, one layer at a time."""
        return torch.stack([ops.linear(x, layer.packed, layer.bias) for layer in self.children()])


@pytest.fixture
def joins(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of weights of each join."""
    counts: list[int] = []
    join = joined_panels.join

    def counted(packed: Any) -> Any:
        counts.append(len(packed))
        return join(packed)

    monkeypatch.setattr(joined_panels, "join", counted)
    return counts


@torch.no_grad()
def test_an_attention_joins_its_panels_once_and_again_after_a_change(
    device: torch.device, joins: list[int]
) -> None:
    attention = Attention().to(device)
    fuse_qkv_(attention, ("query", "key", "value"))
    x = torch.randn(2, 3, WIDTH, device=device)
    for _ in range(2):
        assert torch.equal(attention(x), attention.alone(x))
    assert joins == [3]
    storages = {layer.values.untyped_storage().data_ptr() for layer in attention.children()}
    assert len(storages) == 1

    attention.key.bias.add_(1)
    assert torch.equal(attention(x), attention.alone(x))
    assert joins == [3]
    state = {name: 2 * tensor for name, tensor in attention.value.state_dict().items()}
    attention.value.load_state_dict(state)
    assert torch.equal(attention(x), attention.alone(x))
    assert joins == [3, 3]


@torch.no_grad()
def test_a_copy_joins_its_own_panels(device: torch.device, joins: list[int]) -> None:
    attention = Attention().to(device)
    fuse_qkv_(attention, ("query", "key", "value"))
    x = torch.randn(3, WIDTH, device=device)
    attention(x)
    twin = copy.deepcopy(attention)
    twin.query.bias.add_(1)
    assert torch.equal(twin(x), twin.alone(x))
    assert torch.equal(attention(x), attention.alone(x))
    assert joins == [3, 3]


def test_layers_without_a_common_form_do_not_join() -> None:
    joined = JoinedPanels()
    full = torch.ones(WIDTH, WIDTH, dtype=torch.bool)
    trainable = SparseLinear.from_linear(nn.Linear(WIDTH, WIDTH), full, "panel", trainable=True)
    assert joined.weight([panel_layer(), trainable]) is None
    other = SparseLinear.from_linear(nn.Linear(WIDTH, WIDTH), torch.rand(WIDTH, WIDTH) < 0.5)
    assert joined.weight([panel_layer(), other]) is None
    assert joined.weight([panel_layer(), panel_layer()]) is not None


def test_biases_join_where_every_layer_has_one() -> None:
    joined = JoinedPanels()
    one, other = torch.ones(2), torch.zeros(3)
    assert joined.bias([one, None]) is None
    assert torch.equal(joined.bias([one, other]), torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]))  # type: ignore[arg-type]
    other.add_(2)
    assert torch.equal(joined.bias([one, other]), torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0]))  # type: ignore[arg-type]
