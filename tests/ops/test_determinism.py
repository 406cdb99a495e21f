"""The same bits whatever the number of threads, the neighbours in the batch, the run and the process."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sparsebert_kernels import linear_operator, ops
from sparsebert_kernels.cpu import native
from tests.ops.problem import Problem, gradient_of

FP32, BF16 = torch.float32, torch.bfloat16
# Several row blocks and column blocks, so that there is something to share out.
BLOCKS = {"block_rows": 16, "block_columns": 64}
PROBLEMS = [
    Problem(N=100, options=BLOCKS),
    Problem(N=100, options=BLOCKS, dtype=BF16),
    Problem(N=100, format="vector", options=BLOCKS),
    Problem(N=100, format="vector", options=BLOCKS, dtype=BF16),
]


def _answer_and_gradients(problem: Problem) -> list[Tensor]:
    x = problem.x().requires_grad_()
    packed = problem.packed()
    packed = packed.replace(values=packed.values.clone().requires_grad_())
    y = ops.linear(x, packed, problem.bias_vector(), "gelu")
    y.backward(problem.gradient())
    return [y.detach(), gradient_of(x), gradient_of(packed.values)]


def _assert_same_bits(these: list[Tensor], those: list[Tensor]) -> None:
    for this, that in zip(these, those, strict=True):
        assert torch.equal(this, that)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
class TestSameBits:
    # Few tokens are shared out by rows, many by tiles.
    @pytest.mark.parametrize("tokens", [1, 8, 33, 250])
    def test_on_one_thread_and_on_more(self, problem: Problem, tokens: int, instruction_set: str) -> None:
        problem = replace(problem, M=tokens)
        answers = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            answers.append(_answer_and_gradients(problem))
        _assert_same_bits(answers[0], answers[1])
        _assert_same_bits(answers[0], answers[2])

    def test_in_every_run(self, problem: Problem, end: str) -> None:
        _assert_same_bits(_answer_and_gradients(problem), _answer_and_gradients(problem))

    def test_for_a_token_alone_and_in_a_batch(self, problem: Problem, instruction_set: str) -> None:
        packed, x = problem.packed(), replace(problem, M=150).x()
        together = ops.linear(x, packed, problem.bias_vector(), "gelu")
        for first, last in ((0, 1), (7, 15), (10, 43), (90, 150)):
            part = ops.linear(x[first:last], packed, problem.bias_vector(), "gelu")
            assert torch.equal(part, together[first:last])

    def test_called_directly_and_through_the_operator(self, problem: Problem, end: str) -> None:
        through_operator, *_ = _answer_and_gradients(problem)
        with torch.no_grad():
            directly = ops.linear(problem.x(), problem.packed(), problem.bias_vector(), "gelu")
        assert torch.equal(directly, through_operator)


class TestConcurrency:
    @pytest.mark.parametrize("problem", PROBLEMS, ids=str)
    def test_python_threads_share_a_layer(self, problem: Problem, end: str) -> None:
        torch.set_num_threads(1)
        packed, bias = problem.packed(), problem.bias_vector()
        inputs = [torch.randn(5 + 9 * i, problem.K).to(problem.dtype) for i in range(8)]
        expected = [ops.linear(x, packed, bias, "gelu") for x in inputs]
        failures: list[int] = []
        start = threading.Barrier(len(inputs))

        def call(i: int) -> None:
            start.wait()
            for _ in range(20):
                if not torch.equal(ops.linear(inputs[i], packed, bias, "gelu"), expected[i]):
                    failures.append(i)

        threads = [threading.Thread(target=call, args=(i,)) for i in range(len(inputs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures

    def test_a_forked_process_computes_the_same(self) -> None:
        """Like a worker of a DataLoader: forked from a process that has used the kernels, on one thread."""
        script = """
import multiprocessing, torch
from sparsebert_kernels import formats, ops
packed = formats.pack(torch.randn(200, 300), torch.rand(200, 300) < 0.2, format="element")
x = torch.randn(150, 300)
torch.set_num_threads(2)
expected = ops.linear(x, packed)

def child():
    torch.set_num_threads(1)
    raise SystemExit(0 if torch.equal(ops.linear(x, packed), expected) else 3)

process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(60)
raise SystemExit("stuck" if process.exitcode is None else process.exitcode)
"""
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr

    def test_a_forked_process_computes_on_one_thread(self) -> None:
        """The threads of its parent do not exist there; a parallel region would wait for them forever."""
        script = """
import multiprocessing, torch, warnings
from sparsebert_kernels import formats, ops
packed = formats.pack(torch.randn(200, 300), torch.rand(200, 300) < 0.2, format="element")
x = torch.randn(150, 300)
torch.set_num_threads(2)
expected = ops.linear(x, packed)

def child():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        same = torch.equal(ops.linear(x, packed), expected) and torch.equal(ops.linear(x, packed), expected)
    said = [str(warning.message) for warning in caught if "forked" in str(warning.message)]
    raise SystemExit(0 if same and len(said) == 1 else f"{same} {said}")

process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(60)
raise SystemExit("stuck" if process.exitcode is None else process.exitcode)
"""
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr


class TestDirectCall:
    """The operator is called where somebody watches who needs it: not in plain inference, nor by autograd."""

    @pytest.fixture
    def operator_calls(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        calls: list[str] = []
        operator = linear_operator.sparse_linear

        def spy(*arguments: object) -> Tensor:
            calls.append("operator")
            return operator(*arguments)

        monkeypatch.setattr(linear_operator, "sparse_linear", spy)
        return calls

    @pytest.mark.skipif(not native.available(), reason="needs the native library")
    def test_in_inference(self, operator_calls: list[str]) -> None:
        problem = Problem()
        ops.linear(problem.x(), problem.packed(), problem.bias_vector())
        with torch.no_grad():
            ops.linear(
                problem.x().requires_grad_(), problem.packed(), torch.nn.Parameter(torch.zeros(problem.N))
            )
        with torch.inference_mode():
            ops.linear(problem.x(), problem.packed())
        assert not operator_calls

    def test_where_a_gradient_is_wanted(self, operator_calls: list[str]) -> None:
        problem = Problem()
        packed = problem.packed()
        trainable = packed.replace(values=packed.values.clone().requires_grad_())
        recorded = [
            ops.linear(problem.x().requires_grad_(), packed),
            ops.linear(problem.x(), packed, torch.nn.Parameter(torch.zeros(problem.N))),
            ops.linear(problem.x(), trainable),
        ]
        assert all(y.requires_grad for y in recorded)
        assert not operator_calls

    def test_with_the_gradients_of_the_operator(self) -> None:
        problem = Problem()

        def gradients(call: Callable[..., Tensor]) -> list[Tensor]:
            x, bias = problem.x().requires_grad_(), problem.bias_vector().requires_grad_()
            packed = problem.packed()
            trainable = packed.replace(values=packed.values.clone().requires_grad_())
            residual = torch.ones(*x.shape[:-1], problem.N, requires_grad=True)
            y = call(x, trainable, bias, (), "gelu", residual)
            return [y, *torch.autograd.grad(y.square().sum(), (x, trainable.values, bias, residual))]

        pairs = zip(gradients(linear_operator.call_eagerly), gradients(linear_operator.call), strict=True)
        assert all(torch.equal(eager, operator) for eager, operator in pairs)

    def test_not_for_tensor_subclasses_and_modes(self, operator_calls: list[str]) -> None:
        class Subclass(torch.Tensor):
            pass

        problem = Problem()
        packed = problem.packed()
        assert isinstance(ops.linear(problem.x().as_subclass(Subclass), packed), Subclass)
        with FlopCounterMode(display=False):
            ops.linear(problem.x(), packed)
        assert len(operator_calls) == 2
