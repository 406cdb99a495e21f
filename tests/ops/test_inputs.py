"""``ops.linear``: every shape, stride and dtype of input, NaN and inf, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sparsebert_kernels import cpu, formats, ops, reference
from sparsebert_kernels.cpu import native
from tests.ops.backends import TORCH_ALONE
from tests.ops.problem import Problem, assert_as_good_as_torch, gradient_of

PROBLEMS = [
    Problem(),
    Problem(dtype=torch.bfloat16),
    Problem(format="vector"),
    Problem(format="vector", dtype=torch.bfloat16),
]
ALL_FORMATS = [Problem(format=name) for name in formats.ANY_MASK]


def _answer(problem: Problem, x: Tensor) -> Tensor:
    return ops.linear(x, problem.packed(), problem.bias_vector())


def _assert_same(answer: Tensor, expected: Tensor, backend: str) -> None:
    """Bit by bit, except that torch itself rounds differently for other strides."""
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[answer.dtype] if backend == TORCH_ALONE else 0
    torch.testing.assert_close(answer, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
class TestShapesAndStrides:
    """Each is the answer for the same rows, contiguous and two-dimensional."""

    def test_more_dimensions(self, problem: Problem, backend: str) -> None:
        x = problem.x()[:24]
        _assert_same(_answer(problem, x.view(2, 3, 4, -1)), _answer(problem, x).view(2, 3, 4, -1), backend)

    def test_one_dimension(self, problem: Problem, backend: str) -> None:
        x = problem.x()[:1]
        _assert_same(_answer(problem, x[0]), _answer(problem, x)[0], backend)

    @pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 5)], ids=str)
    def test_no_rows(self, problem: Problem, shape: tuple[int, ...], backend: str) -> None:
        x = problem.x().new_empty(*shape, problem.K).requires_grad_()
        y = _answer(problem, x)
        assert y.shape == (*shape, problem.N)
        y.backward(torch.empty_like(y))
        assert gradient_of(x).shape == x.shape

    @pytest.mark.parametrize(
        "name", ["transposed", "every second row", "every second column", "slice", "one row"]
    )
    def test_strides(self, problem: Problem, name: str, backend: str) -> None:
        dense = problem.x()
        m, k = dense.shape
        nan = dense.new_full((m, 3), torch.nan)
        x = {
            "transposed": dense.t().contiguous().t(),
            "every second row": dense.repeat_interleave(2, 0)[::2],
            "every second column": dense.repeat_interleave(2, 1)[:, ::2],
            "slice": torch.cat((nan, dense, nan), 1)[:, 3:-3],
            "one row": dense[:1].expand(m, k),
        }[name]
        dense = x.contiguous()
        _assert_same(_answer(problem, x), _answer(problem, dense), backend)
        _assert_same(_answer(problem, x.view(3, 11, k)), _answer(problem, dense.view(3, 11, k)), backend)

    @pytest.mark.skipif(not native.available(), reason="needs the native library")
    def test_rows_of_a_wider_tensor_are_read_in_place(
        self, problem: Problem, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pack, addresses = native._CALL.pack, []

        def spy(address: int, *rest: int) -> bytes:
            addresses.append(address)
            return pack(address, *rest)

        monkeypatch.setattr(native, "_CALL", SimpleNamespace(pack=spy))
        x = torch.nn.functional.pad(problem.x(), (0, 5))[:, :-5]
        _answer(problem, x)
        assert addresses == [x.data_ptr()]

    def test_bias_of_any_stride(self, problem: Problem, backend: str) -> None:
        bias = problem.bias_vector()
        assert bias is not None
        strided = ops.linear(problem.x(), problem.packed(), bias.repeat_interleave(3)[::3])
        _assert_same(strided, _answer(problem, problem.x()), backend)

    def test_expanded_gradient(self, problem: Problem, backend: str) -> None:
        gradients = []
        for one in (torch.ones(1), torch.ones(problem.M, problem.N)):
            x = problem.x().requires_grad_()
            packed = problem.packed()
            packed = packed.replace(values=packed.values.clone().requires_grad_())
            gradient = one.to(x.dtype).expand(problem.M, problem.N)
            ops.linear(x, packed).backward(gradient)
            gradients.append((gradient_of(x), gradient_of(packed.values)))
        for expanded, whole in zip(*gradients, strict=True):
            _assert_same(expanded, whole, backend)


@pytest.mark.parametrize("problem", ALL_FORMATS, ids=str)
class TestOtherDtypes:
    def test_float16_is_computed_in_float32(self, problem: Problem) -> None:
        x = problem.x().half()
        answer = _answer(problem, x)
        assert answer.dtype == torch.float16
        assert torch.equal(answer, _answer(problem, x.float()).half())

    def test_float64_keeps_its_precision(self, problem: Problem) -> None:
        problem = replace(problem, bias=torch.float64, activation="gelu")
        answer = ops.linear(problem.x().double(), problem.packed(), problem.bias_vector(), "gelu")
        torch.testing.assert_close(answer, problem.torch_linear(torch.float64), rtol=1e-13, atol=1e-13)

    def test_gradients_come_in_the_dtype_of_x(self, problem: Problem) -> None:
        for dtype in (torch.float16, torch.float64):
            x = problem.x().to(dtype).requires_grad_()
            _answer(problem, x).sum().backward()
            assert gradient_of(x).dtype == dtype
            expected = problem.kept_weight().double().sum(0)
            tolerance = 2e-3 if dtype == torch.float16 else 1e-12
            torch.testing.assert_close(gradient_of(x)[0].double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("problem", ALL_FORMATS, ids=str)
class TestAutocast:
    def test_computes_and_answers_in_autocasts_dtype(self, problem: Problem) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            answer = _answer(problem, problem.x())
        assert answer.dtype == torch.bfloat16
        assert torch.equal(answer, _answer(problem, problem.x().bfloat16()))

    def test_leaves_float64_alone(self, problem: Problem) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            assert _answer(problem, problem.x().double()).dtype == torch.float64

    def test_gradients_are_those_of_the_cast(self, problem: Problem) -> None:
        x = problem.x().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            answer = _answer(problem, x)
        answer.backward(problem.gradient().bfloat16())
        baseline = problem.gradient().bfloat16() @ problem.kept_weight().bfloat16()
        exact = problem.gradient().bfloat16().double() @ problem.kept_weight().double()
        assert_as_good_as_torch(gradient_of(x), baseline.float(), exact)

    def test_a_backward_pass_inside_it_is_not_cast(self, problem: Problem) -> None:
        gradients = []
        for inside in (False, True):
            x = problem.x().requires_grad_()
            y = ops.linear(x, problem.packed(), problem.bias_vector(), "gelu")
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                y.backward(problem.gradient())
            gradients.append(gradient_of(x))
        assert torch.equal(*gradients)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
class TestNanAndInf:
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_in_a_pruned_column_do_not_spread(
        self, problem: Problem, value: float, instruction_set: str
    ) -> None:
        x, column = problem.x(), problem.K - 1
        assert not problem.mask()[:, column].any()
        expected = _answer(problem, x)
        x[:, column] = value
        assert torch.equal(_answer(problem, x), expected)

    def test_reach_the_rows_that_keep_the_column_and_no_other_token(
        self, problem: Problem, instruction_set: str
    ) -> None:
        x, column = problem.x(), problem.K // 2
        expected = _answer(problem, x)
        x[5, column] = torch.nan
        answer = _answer(problem, x)
        hit = torch.zeros_like(answer, dtype=torch.bool)
        hit[5] = problem.mask()[:, column]
        assert 0 < hit.sum() < problem.N
        assert torch.equal(answer.isnan(), hit)
        assert torch.equal(answer[~hit], expected[~hit])

    @pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh"])
    def test_go_through_the_activations(
        self, problem: Problem, activation: str, instruction_set: str
    ) -> None:
        special = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, -1e4, 1e4])
        identity = formats.pack(torch.eye(6), format=problem.format)
        answer = ops.linear(torch.zeros(17, 6), identity, special, activation)
        expected = {
            "none": special,
            "relu": torch.nn.functional.relu(special),
            "gelu": torch.tensor([torch.nan, torch.inf, torch.nan, -0.0, -0.0, 1e4]),
            "gelu_tanh": torch.nn.functional.gelu(special, approximate="tanh"),
        }[activation]
        torch.testing.assert_close(answer, expected.expand(17, 6), rtol=0, atol=0, equal_nan=True)


class TestActivations:
    @pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh"])
    def test_hold_over_the_whole_range(self, activation: str, backend: str) -> None:
        z = torch.cat((torch.linspace(-12, 12, 16000), torch.linspace(-1e4, 1e4, 1600))).view(-1, 16)
        answer = ops.linear(z, formats.pack(torch.eye(16), format="element"), None, activation)
        exact = reference.activate(z.double(), activation)
        # Half an ulp of the result here and there, and 1e-6 of the rational approximations around zero.
        assert ((answer - exact).abs() <= 1e-6 + 2e-7 * exact.abs()).all()


class TestRefusals:
    @pytest.fixture
    def packed(self) -> formats.PackedWeight:
        return Problem().packed()

    @pytest.mark.parametrize("problem", ALL_FORMATS, ids=str)
    def test_x_of_another_width(self, problem: Problem) -> None:
        for x in (
            torch.randn(3, problem.K - 1),
            torch.randn(3, 2 * problem.K),
            torch.randn(()),
            torch.randn(3, 0),
        ):
            with pytest.raises(ValueError, match=r"its last dimension must be 300"):
                ops.linear(x, problem.packed())

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
    def test_x_that_is_no_floating_point(self, dtype: torch.dtype, packed: formats.PackedWeight) -> None:
        with pytest.raises(ValueError, match="it must have a floating-point dtype"):
            ops.linear(Problem().x().to(dtype), packed)

    def test_x_on_another_device(self, packed: formats.PackedWeight) -> None:
        with pytest.raises(ValueError, match="x is on meta, the weight on cpu"):
            ops.linear(Problem().x().to("meta"), packed)

    @pytest.mark.parametrize("problem", ALL_FORMATS, ids=str)
    def test_bias_that_does_not_fit(self, problem: Problem) -> None:
        for shape in ((44,), (46,), (1,), (45, 1), ()):
            with pytest.raises(ValueError, match=r"it must be \[45\]"):
                ops.linear(problem.x(), problem.packed(), torch.randn(shape))
        with pytest.raises(ValueError, match="bias is on meta, x on cpu"):
            ops.linear(problem.x(), problem.packed(), torch.randn(45, device="meta"))

    @pytest.mark.parametrize("problem", ALL_FORMATS, ids=str)
    def test_unknown_activation(self, problem: Problem) -> None:
        with pytest.raises(ValueError, match=r"unknown activation 'gelu_than'.*did you mean 'gelu_tanh'"):
            ops.linear(problem.x(), problem.packed(), None, "gelu_than")

    @pytest.mark.parametrize("name", ["compact", "dense", "csr"])
    def test_training_a_format_that_cannot_be_trained(self, name: str) -> None:
        problem = Problem(format=name)
        packed = problem.packed()
        if packed.values.is_mkldnn:
            packed = packed.replace(values=packed.values.to_dense())
        packed = packed.replace(values=packed.values.clone().requires_grad_())
        y = ops.linear(problem.x(), packed)
        with pytest.raises(
            ValueError, match=f"format '{name}' cannot be trained; trainable formats: 'element', 'vector'"
        ):
            y.sum().backward()


@pytest.mark.skipif(not cpu.available(), reason="the code comes from the native library")
def test_a_gradient_that_the_library_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a gradient of zeros."""
    problem = Problem()
    x, packed = problem.x(), problem.packed()
    monkeypatch.setattr(native.torch, "get_num_threads", lambda: 0)
    with pytest.raises(ValueError, match=r"the gradient of ElementSparse.* cannot be computed on 0 threads"):
        native.values_gradient(problem.gradient(), x, packed)


@pytest.mark.parametrize("format", ["element", "vector"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bfloat16_answers_round_half_to_even(format: str, dtype: torch.dtype, instruction_set: str) -> None:
    half = 2.0**-8  # of the distance between 1 and its neighbour
    bias = torch.tensor([half, 3 * half, -half, -3 * half, half, half])
    identity = formats.pack(torch.eye(6, dtype=dtype), format=format)
    x = torch.tensor([1.0, 1.0, -1.0, -1.0, 1 + 2 * half, 1 - half]).bfloat16()
    answer = ops.linear(torch.diag(x), identity, bias).diagonal().float()
    expected = [1.0, 1 + 4 * half, -1.0, -1 - 4 * half, 1 + 4 * half, 1.0]
    assert answer.tolist() == expected
