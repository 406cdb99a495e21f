"""Layers fed by one tensor run as one call, and nobody can tell the difference."""

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

from sparsebert.nn import shared_input
from sparsebert.nn.shared_input import MAX_WASTED_ROUNDS, SharedInput
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert_kernels import ops


class Siblings(nn.Module):
    """Three layers of one shape that share their input."""

    def __init__(self) -> None:
        super().__init__()
        shared = SharedInput()
        for name in ("query", "key", "value"):
            layer = SparseLinear.from_linear(nn.Linear(16, 16), torch.rand(16, 16) < 0.3)
            layer.shared_input = shared
            shared.join(layer)
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.query(x), self.key(x), self.value(x)])

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
    monkeypatch.setattr(shared_input, "ops", counting)
    return counting.shared


@pytest.fixture
def siblings() -> Siblings:
    return Siblings()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, 16)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_one_call_serves_all_siblings(siblings: Siblings, x: Tensor, calls: list[int], mode: Any) -> None:
    with mode():
        for _ in range(3):
            assert torch.equal(siblings(x), siblings.alone(x))
    assert calls == [3, 3, 3]


def test_the_order_of_the_calls_does_not_matter(siblings: Siblings, x: Tensor, calls: list[int]) -> None:
    with torch.no_grad():
        value, query, key = siblings.value(x), siblings.query(x), siblings.key(x)
    assert torch.equal(torch.stack([query, key, value]), siblings.alone(x))
    assert calls == [3]


def test_every_tensor_gets_its_own_answer(siblings: Siblings, x: Tensor) -> None:
    other = torch.randn(2, 5, 16)
    with torch.no_grad():
        answers = siblings.query(x), siblings.key(other), siblings.value(x), siblings.query(other)
        query, key, value = siblings.alone(x), siblings.alone(other), siblings.alone(x)
    expected = query[0], key[1], value[2], key[0]
    assert all(torch.equal(*pair) for pair in zip(answers, expected, strict=True))


def test_a_tensor_changed_in_place_counts_as_another(siblings: Siblings, x: Tensor) -> None:
    with torch.no_grad():
        siblings.query(x)
        x.mul_(2)
        assert torch.equal(siblings.key(x), siblings.alone(x)[1])


def test_weights_changed_in_between_are_seen(siblings: Siblings, x: Tensor) -> None:
    with torch.no_grad():
        siblings.query(x)
        siblings.key.bias.add_(1)
        siblings.value.load_state_dict({name: 2 * t for name, t in siblings.value.state_dict().items()})
        assert torch.equal(siblings.key(x), siblings.alone(x)[1])
        assert torch.equal(siblings.value(x), siblings.alone(x)[2])


def test_a_sibling_called_twice_answers_twice(siblings: Siblings, x: Tensor) -> None:
    with torch.no_grad():
        first, second = siblings.query(x), siblings.query(x)
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


def test_gradients_are_not_lost(siblings: Siblings, x: Tensor, calls: list[int]) -> None:
    with torch.no_grad():
        siblings.query(x)
    x.requires_grad_()
    siblings(x).sum().backward()
    assert x.grad is not None
    assert all(layer.bias.grad is not None for layer in siblings.children())
    assert calls == [3]  # under no_grad only


def test_a_single_thread_computes_one_layer_at_a_time(
    siblings: Siblings, x: Tensor, calls: list[int]
) -> None:
    torch.set_num_threads(1)
    with torch.no_grad():
        assert torch.equal(siblings(x), siblings.alone(x))
        torch.set_num_threads(2)
        assert torch.equal(siblings(x), siblings.alone(x))
    assert calls == [3]  # on two


def test_modes_that_watch_see_one_layer_at_a_time(siblings: Siblings, x: Tensor, calls: list[int]) -> None:
    with torch.no_grad(), FlopCounterMode(display=False):
        siblings(x)
    with torch.no_grad(), torch.device("cpu"):
        siblings(x)
    assert not calls


def test_autocast_computes_one_layer_at_a_time(siblings: Siblings, x: Tensor, calls: list[int]) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert siblings(x).dtype == torch.bfloat16
    assert not calls


def test_pre_hooks_see_and_change_what_they_are_given(
    siblings: Siblings, x: Tensor, calls: list[int]
) -> None:
    handle = siblings.key.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    with torch.no_grad():
        answer = siblings(x)
        assert torch.equal(answer[1], siblings.alone(x + 1)[1])
        assert not calls
        handle.remove()
        assert torch.equal(siblings(x), siblings.alone(x))
    assert calls == [3]


def test_forward_hooks_fire_once_a_call(siblings: Siblings, x: Tensor) -> None:
    seen = []
    for name, layer in siblings.named_children():
        layer.register_forward_hook(lambda module, args, output, name=name: seen.append((name, args[0] is x)))
    with torch.no_grad():
        siblings(x)
    assert seen == [("query", True), ("key", True), ("value", True)]


def test_a_sibling_that_was_replaced_is_computed_no_more(
    siblings: Siblings, x: Tensor, calls: list[int]
) -> None:
    siblings.key = nn.Identity()
    with torch.no_grad():
        siblings.query(x), siblings.value(x)
    assert calls == [2]


def test_layers_that_are_not_fed_one_tensor_give_up_sharing(siblings: Siblings, calls: list[int]) -> None:
    with torch.no_grad():
        for _ in range(3 * MAX_WASTED_ROUNDS):
            siblings.query(torch.randn(2, 16)), siblings.key(torch.randn(2, 16))
    assert len(calls) == MAX_WASTED_ROUNDS


def test_what_waits_goes_with_its_tensor(siblings: Siblings) -> None:
    x = torch.randn(2, 16)
    with torch.no_grad():
        siblings.query(x)
    outputs = siblings.query.shared_input._local.round.outputs
    waiting = [weakref.ref(each.output) for each in outputs.values()]
    assert len(waiting) == 2
    del x
    gc.collect()
    assert not any(ref() is not None for ref in waiting)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_share_among_themselves(siblings: Siblings, x: Tensor, calls: list[int], twin_of: Any) -> None:
    twin = twin_of(siblings)
    assert twin.query.shared_input is twin.value.shared_input is not siblings.query.shared_input
    with torch.no_grad():
        for layer in twin.children():
            layer.bias.add_(1)
        assert torch.equal(twin(x), twin.alone(x))
        assert torch.equal(siblings(x), siblings.alone(x))
        assert not torch.equal(twin(x), siblings(x))
    assert calls == [3, 3, 3, 3]


def test_a_single_copied_layer_stands_alone(siblings: Siblings, x: Tensor, calls: list[int]) -> None:
    twin = copy.deepcopy(siblings.key)
    with torch.no_grad():
        assert torch.equal(twin(x), siblings.alone(x)[1])
    assert not calls
    assert len(pickle.dumps(siblings.key)) < 1.5 * len(pickle.dumps(siblings)) / 3


def test_a_shallow_copy_stays_outside(siblings: Siblings, x: Tensor, calls: list[int]) -> None:
    twin = copy.copy(siblings.key)
    with torch.no_grad():
        assert torch.equal(twin(x), siblings.alone(x)[1])
        for _ in range(2 * MAX_WASTED_ROUNDS):
            siblings(x)
    assert set(calls) == {3}


def test_threads_do_not_see_each_other(siblings: Siblings) -> None:
    inputs = torch.randn(6, 4, 16)
    expected = [siblings.alone(x) for x in inputs]
    wrong = []

    def work(index: int) -> None:
        with torch.no_grad():
            for _ in range(30):
                if not torch.equal(siblings(inputs[index]), expected[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_compilers_see_three_plain_layers(siblings: Siblings, x: Tensor, calls: list[int]) -> None:
    torch._dynamo.reset()
    compiled: Any = torch.compile(siblings, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), siblings.alone(x))
        program = torch.export.export(siblings, (x,), strict=False)
        torch.testing.assert_close(program.module()(x), siblings.alone(x))
        traced: Any = torch.fx.experimental.proxy_tensor.make_fx(siblings)(x)
        torch.testing.assert_close(traced(x + 1), siblings.alone(x + 1))
    assert not calls
