"""Joined layers: one product computes all of them, changes are seen, and a compiler sees one operator."""

from __future__ import annotations

import copy
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert.nn import joined_linears
from sparsebert.nn.fused_qkv import fuse_qkv_, unfuse_qkv_
from sparsebert.nn.joined_linears import JoinedLinears
from sparsebert.nn.sparse_linear import JOINED, SparseLinear
from sparsebert_kernels import ops
from sparsebert_kernels.cuda import backend
from tests.nn.replicas import replica

WIDTH = 64
NAMES = ("query", "key", "value")


def panel_layer(bias: bool = True) -> SparseLinear:
    mask = (torch.rand(4, 4) < 0.5).repeat_interleave(16, 0).repeat_interleave(16, 1)
    linear = nn.Linear(WIDTH, WIDTH, bias=bias)
    return SparseLinear.from_linear(linear, mask, "panel")


class Attention(nn.Module):
    query: Any
    key: Any
    value: Any

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = panel_layer(), panel_layer(), panel_layer()

    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.stack([layer(hidden_states) for layer in self.children()])

    def alone(self, x: Tensor) -> Tensor:
        """The same, one layer at a time."""
        return torch.stack(
            [ops.linear(x, layer.packed, layer.bias) for layer in (self.query, self.key, self.value)]
        )


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        fuse_qkv_(self.attention, NAMES)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x) * 2


@pytest.fixture
def joins(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of weights of each join."""
    counts: list[int] = []
    join: Any = vars(joined_linears)["join"]

    def counted(packed: Any) -> Any:
        counts.append(len(packed))
        return join(packed)

    monkeypatch.setattr(joined_linears, "join", counted)
    return counts


@torch.no_grad()
def test_an_attention_joins_its_panels_when_fused_and_again_after_a_change(
    device: torch.device, joins: list[int]
) -> None:
    attention = Attention().to(device)
    fuse_qkv_(attention, NAMES)
    assert joins == [3]
    x = torch.randn(2, 3, WIDTH, device=device)
    for _ in range(2):
        assert torch.equal(attention(x), attention.alone(x))
    assert joins == [3]
    storages = {
        layer.values.untyped_storage().data_ptr()
        for layer in (attention.query, attention.key, attention.value)
    }
    assert len(storages) == 1

    attention.key.bias.add_(1)
    assert torch.equal(attention(x), attention.alone(x))
    assert joins == [3]
    state = {name: 2 * tensor for name, tensor in attention.value.state_dict().items()}
    attention.value.load_state_dict(state)
    assert torch.equal(attention(x), attention.alone(x))
    assert joins == [3, 3]
    attention.key.bias.data = torch.ones(WIDTH, device=device)
    assert torch.equal(attention(x), attention.alone(x))
    assert joins == [3, 3, 3]


@torch.no_grad()
def test_a_copy_joins_its_own_panels(device: torch.device, joins: list[int]) -> None:
    attention = Attention().to(device)
    fuse_qkv_(attention, NAMES)
    x = torch.randn(3, WIDTH, device=device)
    attention(x)
    for twin in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
        twin.query.bias.add_(1)
        assert torch.equal(twin(x), twin.alone(x))
        assert torch.equal(attention(x), attention.alone(x))
    assert joins == [3, 3, 3]


def test_an_attention_that_is_no_longer_fused_holds_no_join(device: torch.device) -> None:
    attention = Attention().to(device)
    fuse_qkv_(attention, NAMES)
    assert JOINED in vars(attention.query)
    unfuse_qkv_(attention)
    assert JOINED not in vars(attention.query)


def test_an_attention_that_leaves_its_device_holds_no_memory_of_it(device: torch.device) -> None:
    """A conversion, which replaces all tensors of a layer as a move does."""
    attention = Attention().to(device)
    fuse_qkv_(attention, NAMES)
    held = [weakref.ref(tensor) for tensor in (attention.query.values, attention.query.packed.columns)]
    joined = weakref.ref(vars(attention.query)[JOINED])
    attention.to(torch.float64)
    assert [each() for each in (joined, *held)] == [None, None, None]


def test_layers_without_a_common_form_do_not_join() -> None:
    joined = JoinedLinears()
    full = torch.ones(WIDTH, WIDTH, dtype=torch.bool)
    trainable = SparseLinear.from_linear(nn.Linear(WIDTH, WIDTH), full, "panel", trainable=True)
    assert not joined.join_([panel_layer(), trainable])
    other = SparseLinear.from_linear(nn.Linear(WIDTH, WIDTH), torch.rand(WIDTH, WIDTH) < 0.5)
    assert not joined.join_([panel_layer(), other])
    assert not joined.join_([panel_layer(), nn.Linear(WIDTH, WIDTH)])
    assert not joined.join_([nn.Linear(8, 4), nn.Linear(4, 4)])
    assert not joined.join_([nn.Linear(8, 4), nn.Linear(8, 4).half()])
    half_bias = nn.Linear(8, 4)
    half_bias.bias = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    assert not joined.join_([nn.Linear(8, 4), half_bias])
    assert joined.join_([panel_layer(), panel_layer()])


def element_layer() -> SparseLinear:
    return SparseLinear.from_linear(nn.Linear(WIDTH, WIDTH), torch.rand(WIDTH, WIDTH) < 0.5, "element")


@torch.no_grad()
def test_layers_of_a_format_of_the_cpu_run_in_one_call_but_do_not_join(device: torch.device) -> None:
    layers = [element_layer() for _ in NAMES]
    assert ops.can_share([layer.packed for layer in layers])
    assert not JoinedLinears().join_(layers)
    attention = Attention()
    attention.query, attention.key, attention.value = layers
    fuse_qkv_(attention, NAMES)
    x = torch.randn(2, 3, WIDTH)
    assert torch.equal(attention(x), attention.alone(x))


@torch.no_grad()
def test_inference_tensors_whose_memory_cannot_be_replaced_do_not_join(device: torch.device) -> None:
    with torch.inference_mode():
        dense = [nn.Linear(8, 4) for _ in NAMES]
        attention = Attention().to(device)
    assert not JoinedLinears().join_(dense)
    fuse_qkv_(attention, NAMES)
    x = torch.randn(2, 3, WIDTH, device=device)
    assert torch.equal(attention(x), attention.alone(x))


@torch.no_grad()
def test_a_replica_of_data_parallel_leaves_the_join_to_its_module(
    device: torch.device, joins: list[int]
) -> None:
    attention = Attention().to(device)
    fuse_qkv_(attention, NAMES)
    x = torch.randn(2, 3, WIDTH, device=device)
    assert torch.equal(replica(attention)(x), attention.alone(x))
    assert torch.equal(attention(x), attention.alone(x))
    assert joins == [3]


@torch.no_grad()
def test_dense_layers_join_as_views_of_one_matrix() -> None:
    layers: list[Any] = [nn.Linear(8, 4), nn.Linear(8, 6, bias=False), nn.Linear(8, 2)]
    x = torch.randn(3, 8)
    before = [layer(x) for layer in layers]
    parameters = [layer.weight for layer in layers]
    joined = JoinedLinears()
    assert joined.join_(layers)
    assert all(layer.weight is parameter for layer, parameter in zip(layers, parameters, strict=True))
    assert len({layer.weight.untyped_storage().data_ptr() for layer in layers}) == 1
    for answer, expected in zip(joined.outputs(x), before, strict=True):
        torch.testing.assert_close(answer, expected)
    layers[1].weight.mul_(2)
    layers[2].bias.add_(1)
    assert joined.is_current(layers)
    for answer, layer in zip(joined.outputs(x), layers, strict=True):
        torch.testing.assert_close(answer, layer(x))
    layers[0].weight.data = torch.zeros(4, 8)
    assert not joined.is_current(layers)
    layers[0].weight = nn.Parameter(torch.zeros(4, 8))
    assert not joined.is_current(layers)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the CPU as a device with panel kernels, computed by the reference."""
    monkeypatch.setattr(backend, "covers", lambda format, device: format == "panel")
    monkeypatch.setattr(backend, "runs_on", lambda x: True)
    monkeypatch.setattr(backend, "supports", lambda format, x: False)


@pytest.mark.usefixtures("as_on_a_gpu")
@torch.inference_mode()
def test_a_compiler_sees_one_operator_for_joined_projections() -> None:
    torch._dynamo.reset()
    with torch.inference_mode(False):
        layer = Layer()
    operators: list[int] = []

    def backend_of(graph: torch.fx.GraphModule, _: Any) -> Any:
        operators.append(sum("sparsebert.linear" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    x = torch.randn(2, 3, WIDTH)
    compiled = torch.compile(layer, backend=backend_of, fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), 2 * layer.attention.alone(x))
    assert operators == [1]
    # A changed bias is in the joined one, and another one is not.
    layer.attention.key.bias.add_(1)
    torch.testing.assert_close(compiled(x), 2 * layer.attention.alone(x))
    assert operators == [1]
    with torch.inference_mode(False):
        layer.attention.value.bias = nn.Parameter(torch.ones(WIDTH))
    torch.testing.assert_close(compiled(x), 2 * layer.attention.alone(x))
    assert operators == [1, 3]
    layer(x)  # joins in eager mode
    torch._dynamo.reset()
    torch.testing.assert_close(compiled(x), 2 * layer.attention.alone(x))
    assert operators == [1, 3, 1]
    torch._dynamo.reset()
