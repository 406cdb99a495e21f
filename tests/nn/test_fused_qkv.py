"""Query, key and value of an attention run as one call, and nothing can observe the difference."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sparsebert.nn import fused_qkv
from sparsebert.nn.fused_qkv import MAX_UNUSED_CALLS, fuse_qkv_, is_fused, unfuse_qkv_
from sparsebert.nn.precomputed import PRECOMPUTED
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert_kernels import ops

NAMES = ("query", "key", "value")


class Attention(nn.Module):
    """Three sparse projections of one input, stacked; ``between`` runs after the query."""

    def __init__(self) -> None:
        super().__init__()
        for name in NAMES:
            setattr(self, name, SparseLinear.from_linear(nn.Linear(16, 16), torch.rand(16, 16) < 0.3))
        self.between: Any = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        query = self.query(hidden_states)
        if self.between is not None:
            hidden_states = self.between(hidden_states)
        return torch.stack([query, self.key(hidden_states), self.value(hidden_states)])

    def alone(self, x: Tensor) -> Tensor:
        """The same, one layer at a time."""
        layers = (self.query, self.key, self.value)
        return torch.stack([ops.linear(x, layer.packed, layer.bias) for layer in layers])


class CountingOps:
    """The operators, with a note of how many layers each shared call ran."""

    def __init__(self) -> None:
        self.shared: list[int] = []

    def linear_shared(self, x: Tensor, packed: list, *rest: Any) -> tuple[Tensor, ...]:
        self.shared.append(len(packed))
        return ops.linear_shared(x, packed, *rest)


@pytest.fixture(autouse=True)
def _several_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counting = CountingOps()
    monkeypatch.setattr(fused_qkv, "ops", counting)
    return counting.shared


@pytest.fixture
def attention() -> Attention:
    attention = Attention()
    fuse_qkv_(attention, NAMES)
    return attention


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, 16)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_one_call_computes_all_projections(
    attention: Attention, x: Tensor, calls: list[int], mode: Any
) -> None:
    with mode():
        for _ in range(2):
            assert torch.equal(attention(x), attention.alone(x))
        assert torch.equal(attention(hidden_states=x), attention.alone(x))
    assert calls == [3, 3, 3]


def test_a_projection_called_by_itself_computes_by_itself(
    attention: Attention, x: Tensor, calls: list[int]
) -> None:
    with torch.no_grad():
        assert torch.equal(attention.key(x), attention.alone(x)[1])
    assert not calls


def test_a_projection_called_twice_answers_twice(attention: Attention, x: Tensor) -> None:
    answers = []
    attention.between = lambda hidden: answers.append(attention.query(hidden)) or hidden
    with torch.no_grad():
        first = attention(x)[0]
    assert torch.equal(first, answers[0])
    assert first.data_ptr() != answers[0].data_ptr()


def test_a_projection_of_another_tensor_is_computed(attention: Attention, x: Tensor) -> None:
    other = torch.randn(2, 5, 16)
    attention.between = lambda hidden: other
    with torch.no_grad():
        expected = torch.stack([attention.alone(x)[0], *attention.alone(other)[1:]])
        assert torch.equal(attention(x), expected)


def test_an_attention_that_projects_something_else_is_left_alone(
    attention: Attention, x: Tensor, calls: list[int]
) -> None:
    attention.between = lambda hidden: hidden.clone()
    with torch.no_grad():
        for _ in range(2 * MAX_UNUSED_CALLS):
            assert torch.equal(attention(x), attention.alone(x))
    assert len(calls) == MAX_UNUSED_CALLS


def test_weights_changed_between_calls_are_seen(attention: Attention, x: Tensor) -> None:
    with torch.no_grad():
        attention(x)
        attention.key.bias.add_(1)
        attention.value.load_state_dict({name: 2 * t for name, t in attention.value.state_dict().items()})
        x.mul_(2)
        assert torch.equal(attention(x), attention.alone(x))


def test_gradients_are_not_lost(attention: Attention, x: Tensor, calls: list[int]) -> None:
    x.requires_grad_()
    attention(x).sum().backward()
    assert x.grad is not None
    assert all(layer.bias.grad is not None for layer in attention.children())
    assert not calls


def test_a_single_thread_computes_one_layer_at_a_time(
    attention: Attention, x: Tensor, calls: list[int]
) -> None:
    torch.set_num_threads(1)
    with torch.no_grad():
        assert torch.equal(attention(x), attention.alone(x))
        torch.set_num_threads(2)
        assert torch.equal(attention(x), attention.alone(x))
    assert calls == [3]  # on two


def test_modes_that_watch_see_one_layer_at_a_time(attention: Attention, x: Tensor, calls: list[int]) -> None:
    with torch.no_grad(), FlopCounterMode(display=False):
        attention(x)
    with torch.no_grad(), torch.device("cpu"):
        attention(x)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(x).dtype == torch.bfloat16
    assert not calls


@pytest.mark.parametrize("where", ["attention", "key"])
def test_pre_hooks_see_and_change_what_they_are_given(
    attention: Attention, x: Tensor, calls: list[int], where: str
) -> None:
    module = attention if where == "attention" else attention.key
    handle = module.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    with torch.no_grad():
        changed, plain = attention.alone(x + 1), attention.alone(x)
        expected = changed if where == "attention" else torch.stack([plain[0], changed[1], plain[2]])
        assert torch.equal(attention(x), expected)
        assert not calls
        handle.remove()
        assert torch.equal(attention(x), plain)
    assert calls == [3]


def test_forward_hooks_fire_once_a_call(attention: Attention, x: Tensor) -> None:
    seen = []
    for name, layer in attention.named_children():
        layer.register_forward_hook(lambda module, args, output, name=name: seen.append((name, args[0] is x)))
    with torch.no_grad():
        attention(x)
    assert seen == [("query", True), ("key", True), ("value", True)]


@pytest.mark.parametrize("where", ["attention", "key"])
def test_patched_forward_methods_are_called(
    attention: Attention, x: Tensor, calls: list[int], where: str
) -> None:
    module: Any = attention if where == "attention" else attention.key
    original = module.forward
    module.forward = lambda x: original(x) + 1
    with torch.no_grad():
        answer = attention(x) - attention.alone(x)
    assert not calls
    assert answer[1].allclose(torch.ones(2, 5, 16))


def test_a_projection_that_was_replaced_is_not_computed(
    attention: Attention, x: Tensor, calls: list[int]
) -> None:
    attention.key = nn.Identity()
    with torch.no_grad():
        assert torch.equal(attention(x)[1], x)
    assert not calls


def test_outputs_are_gone_after_the_call_also_after_an_error(attention: Attention, x: Tensor) -> None:
    waiting = []

    def fail(hidden: Tensor) -> Tensor:
        waiting.extend(weakref.ref(output) for output in PRECOMPUTED.get().outputs.values())  # type: ignore[union-attr]
        raise KeyError

    attention.between = fail
    with torch.no_grad(), pytest.raises(KeyError):
        attention(x)
    gc.collect()
    assert len(waiting) == 2
    assert not any(ref() is not None for ref in waiting)
    assert PRECOMPUTED.get() is None


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_fused_by_themselves(
    attention: Attention, x: Tensor, calls: list[int], twin_of: Any
) -> None:
    twin = twin_of(attention)
    with torch.no_grad():
        for layer in twin.children():
            layer.bias.add_(1)
        assert torch.equal(twin(x), twin.alone(x))
        assert torch.equal(attention(x), attention.alone(x))
        assert not torch.equal(twin(x), attention(x))
    assert calls == [3, 3, 3, 3]


def test_a_copied_projection_stands_alone(attention: Attention, x: Tensor, calls: list[int]) -> None:
    with torch.no_grad():
        for twin in (copy.deepcopy(attention.key), copy.copy(attention.key)):
            assert torch.equal(twin(x), attention.alone(x)[1])
    assert not calls
    assert len(pickle.dumps(attention.key)) < 1.5 * len(pickle.dumps(attention)) / 3


def test_threads_do_not_see_each_other(attention: Attention) -> None:
    inputs = torch.randn(6, 4, 16)
    expected = [attention.alone(x) for x in inputs]
    wrong = []

    def work(index: int) -> None:
        with torch.no_grad():
            for _ in range(30):
                if not torch.equal(attention(inputs[index]), expected[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_compilers_see_three_plain_layers(attention: Attention, x: Tensor, calls: list[int]) -> None:
    torch._dynamo.reset()
    compiled: Any = torch.compile(attention, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), attention.alone(x))
        program = torch.export.export(attention, (x,), strict=False)
        torch.testing.assert_close(program.module()(x), attention.alone(x))
        traced: Any = torch.fx.experimental.proxy_tensor.make_fx(attention)(x)
        torch.testing.assert_close(traced(x + 1), attention.alone(x + 1))
    assert not calls


def test_removing_the_hooks_leaves_those_of_others(attention: Attention, x: Tensor, calls: list[int]) -> None:
    fired: list[str] = []
    attention.register_forward_pre_hook(lambda *_: fired.append("before"))
    attention.register_forward_hook(lambda *_: fired.append("after"))
    assert is_fused(attention)
    unfuse_qkv_(attention)
    assert not is_fused(attention)
    with torch.no_grad():
        assert torch.equal(attention(x), attention.alone(x))
    assert fired == ["before", "after"]
    assert not calls
    assert not attention._forward_pre_hooks_with_kwargs
    assert not attention._forward_hooks_always_called
