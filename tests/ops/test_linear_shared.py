"""``ops.linear_shared``: one x, several weights, the bits of separate calls."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparsebert_kernels import formats, ops
from sparsebert_kernels.cpu import native
from tests.ops.problem import Problem, gradient_of

FP32, BF16 = torch.float32, torch.bfloat16
PROBLEMS = [Problem(format=name, dtype=dtype) for name in formats.ANY_MASK for dtype in (FP32, BF16)]
NATIVE = [problem for problem in PROBLEMS if problem.format in ("element", "vector")]


def _weights(
    problem: Problem, features: tuple[int, ...]
) -> tuple[list[formats.PackedWeight], list[Tensor | None]]:
    """Weights of several heights; every third one has no bias."""
    weights, biases = [], []
    for i, n in enumerate(features):
        each = replace(problem, N=n, density=0.2 + 0.1 * i, bias=None if i % 3 == 2 else FP32)
        weights.append(each.packed())
        biases.append(each.bias_vector())
    return weights, biases


def _apart(x: Tensor, weights: list[formats.PackedWeight], biases: list[Tensor | None]) -> list[Tensor]:
    return [ops.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def _assert_same_bits(these: tuple[Tensor, ...], those: list[Tensor]) -> None:
    assert len(these) == len(those)
    for this, that in zip(these, those, strict=True):
        assert torch.equal(this, that)


@pytest.fixture
def native_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many weights each native call had."""
    calls: list[int] = []
    linear = native.linear

    def spy(x: Tensor, packed: list[formats.PackedWeight], *rest: object) -> list[Tensor]:
        calls.append(len(packed))
        return linear(x, packed, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(native, "linear", spy)
    return calls


class TestEqualsSeparateCalls:
    @pytest.mark.parametrize("problem", NATIVE, ids=str)
    @pytest.mark.parametrize("tokens", [0, 1, 33, 130])
    def test_for_any_number_of_tokens(self, problem: Problem, tokens: int, backend: str) -> None:
        x = replace(problem, M=tokens).x()
        weights, biases = _weights(problem, (45, 45, 45))
        _assert_same_bits(ops.linear_shared(x, weights, biases), _apart(x, weights, biases))

    @pytest.mark.parametrize("problem", NATIVE, ids=str)
    def test_for_weights_of_different_heights(self, problem: Problem, backend: str) -> None:
        weights, biases = _weights(problem, (1, 100, 17, 800))
        x = problem.x().view(3, 11, -1)
        expected = _apart(x, weights, biases)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            _assert_same_bits(ops.linear_shared(x, weights, biases), expected)

    @pytest.mark.parametrize("problem", PROBLEMS, ids=str)
    def test_in_every_format_and_dtype_and_under_autocast(self, problem: Problem) -> None:
        weights, biases = _weights(problem, (45, 30))
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            x = problem.x().to(dtype)
            _assert_same_bits(ops.linear_shared(x, weights, biases), _apart(x, weights, biases))
        with torch.autocast("cpu", torch.bfloat16):
            x = problem.x()
            _assert_same_bits(ops.linear_shared(x, weights, biases), _apart(x, weights, biases))

    @pytest.mark.parametrize("problem", PROBLEMS, ids=str)
    def test_gradients(self, problem: Problem) -> None:
        weights, biases = _weights(problem, (45, 30))
        gradients = []
        for function in (ops.linear_shared, _apart):
            x = problem.x().requires_grad_()
            answers = function(x, weights, biases)
            torch.autograd.backward(answers, [torch.ones_like(y) for y in answers])
            gradients.append(gradient_of(x))
        assert torch.equal(*gradients)


@pytest.mark.skipif(not native.available(), reason="needs the native library")
class TestNativeCalls:
    @pytest.mark.parametrize("problem", NATIVE, ids=str)
    def test_one_for_all_weights(self, problem: Problem, native_calls: list[int]) -> None:
        ops.linear_shared(problem.x(), *_weights(problem, (45, 45, 45)))
        assert native_calls == [3]

    def test_one_each_for_weights_that_do_not_go_together(self, native_calls: list[int]) -> None:
        problem = Problem()
        apart = [
            replace(problem, options={"block_columns": 64}),
            replace(problem, format="vector"),
            replace(problem, format="vector", options={"vector_rows": 8}),
            replace(problem, dtype=BF16),
        ]
        weights = [p.packed() for p in (problem, *apart)]
        biases: list[Tensor | None] = [None] * len(weights)
        answers = ops.linear_shared(problem.x(), weights, biases)
        assert native_calls == [1] * len(weights)
        _assert_same_bits(answers, _apart(problem.x(), weights, biases))

    def test_one_each_for_more_weights_than_a_call_takes(self, native_calls: list[int]) -> None:
        count = native.MAX_WEIGHTS + 1
        weights, biases = _weights(Problem(), (5,) * count)
        answers = ops.linear_shared(Problem().x(), weights, biases)
        assert native_calls == [1] * count
        _assert_same_bits(answers, _apart(Problem().x(), weights, biases))

    def test_the_library_refuses_weights_of_different_widths_by_itself(self) -> None:
        """Called directly, and without tokens: Python never makes such a call."""
        problem = Problem()
        weights = [problem.packed(), replace(problem, K=problem.K + 1).packed()]
        x, y = problem.x(), torch.empty(0)
        for pair, expected in ((weights[:1] * 2, 0), (weights, 1)):
            call = native._CALL.pack(x.data_ptr(), 0, problem.K, native._DTYPES[x.dtype], 0, 1, len(pair))
            call += b"".join(native.describe(weight, None, y) for weight in pair)
            assert native.library().sb_linear(call) == expected


class TestRefusals:
    def test_what_linear_refuses(self) -> None:
        problem = Problem()
        weights, biases = _weights(problem, (45, 30))
        with pytest.raises(ValueError, match="its last dimension must be 300"):
            ops.linear_shared(problem.x()[:, 1:], weights, biases)
        with pytest.raises(ValueError, match=r"it must be \[30\]"):
            ops.linear_shared(problem.x(), weights, [biases[0], torch.zeros(29)])
        with pytest.raises(ValueError, match="it must have a floating-point dtype"):
            ops.linear_shared(problem.x().int(), weights, biases)

    def test_another_number_of_biases_than_of_weights(self) -> None:
        weights, biases = _weights(Problem(), (45, 30))
        with pytest.raises(ValueError, match="shorter"):
            ops.linear_shared(Problem().x(), weights, biases[:1])

    def test_no_weights_give_no_answers(self) -> None:
        assert ops.linear_shared(Problem().x(), [], []) == ()
