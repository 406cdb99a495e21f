"""Element weights in fp16: bits of AVX512-FP16, every dtype of x, and sums that leave the range of fp16."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsebert_kernels import formats, ops, reference
from sparsebert_kernels.cpu import fp16, native
from sparsebert_kernels.formats import ElementFp16
from tests.ops.problem import Problem

UNITS = ("emulated", fp16.EXTENSION)
X_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=UNITS, autouse=True)
def unit(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kernels of this machine's AVX512-FP16, and their emulation."""
    if not native.available():
        pytest.skip("no native library")
    if request.param == fp16.EXTENSION:
        if reason := fp16.why_unavailable():
            pytest.skip(f"no AVX512-FP16: {reason}")
        yield request.param
        return
    with fp16.emulation():
        yield request.param


def packed_of(problem: Problem, **options: int) -> ElementFp16:
    packed = formats.pack(problem.weight(), problem.mask(), format="element_fp16", **options)
    assert isinstance(packed, ElementFp16)
    return packed


def fused(weight: np.float16, x: np.float16, total: np.float16) -> np.float16:
    """One multiply-add of AVX512-FP16: rounded once. In float64 the product is exact, and so is what matters
    of the sum."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.float16(np.float64(weight) * np.float64(x) + np.float64(total))


@pytest.mark.parametrize("shape", [(1, 3, 7), (5, 9, 40), (70, 5, 24)])
def test_the_bits_are_those_of_a_chain_of_fused_multiply_adds(shape: tuple[int, int, int]) -> None:
    tokens, out_features, in_features = shape
    problem = Problem(M=tokens, N=out_features, K=in_features, density=0.6)
    x = problem.x() * 100
    bias = problem.bias_vector()
    assert bias is not None
    weight, halves = problem.kept_weight().half().numpy(), x.half().numpy()
    expected = np.zeros((tokens, out_features), np.float32)
    for token in range(tokens):
        for row in range(out_features):
            total = np.float16(0)
            for column in np.flatnonzero(problem.mask()[row].numpy()):
                total = fused(weight[row, column], halves[token, column], total)
            expected[token, row] = np.float32(total) + bias[row].numpy()
    answer = ops.linear(x, packed_of(problem, block_columns=16), bias)
    np.testing.assert_array_equal(answer.numpy(), expected)


def test_every_half_is_read_and_written_as_it_is() -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(torch.float16)[:, None]
    packed = formats.pack(torch.ones(1, 1), format="element_fp16")
    finite = x[x.isfinite()][:, None]
    torch.testing.assert_close(ops.linear(finite, packed), finite, rtol=0, atol=0)
    torch.testing.assert_close(ops.linear(finite.float(), packed), finite.float(), rtol=0, atol=0)


def test_inputs_are_rounded_to_nearest_even() -> None:
    packed = formats.pack(torch.ones(1, 1), format="element_fp16")
    halves = torch.arange(0, 0x7BFF, dtype=torch.int16).view(torch.float16).double()
    between = (halves[:-1] + halves[1:]) / 2
    x = torch.cat((between, between * (1 + 2**-20), between * (1 - 2**-20), -between)).float()[:, None]
    torch.testing.assert_close(ops.linear(x, packed), x.half().float(), rtol=0, atol=0)


PROBLEMS = (
    Problem(M=1, N=45, K=300),
    Problem(M=33, N=45, K=300, activation="gelu"),
    Problem(M=130, N=64, K=513, activation="relu", bias=torch.bfloat16),
    Problem(M=17, N=1, K=1, density=1.0, bias=None),
    Problem(M=64, N=900, K=31, activation="gelu_tanh"),
    Problem(M=5, N=40, K=600, density="one weight"),
    Problem(M=0, N=7, K=9),
)


@pytest.mark.parametrize("x_dtype", X_DTYPES, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_error_is_that_of_sums_in_fp16(problem: Problem, x_dtype: torch.dtype) -> None:
    x = problem.x().to(x_dtype)
    answer = ops.linear(x, packed_of(problem), problem.bias_vector(), problem.activation)
    assert answer.dtype == x_dtype
    assert answer.shape == (problem.M, problem.N)
    weight = problem.kept_weight().double()
    bias = problem.bias_vector()
    exact = reference.linear(x.double(), weight, None if bias is None else bias.double(), problem.activation)
    products = int(problem.mask().sum(1).max())
    bound = (products + 3) * 2.0**-11 * (x.double().abs() @ weight.abs().T) * 1.2  # of activations' slope
    bound = bound + exact.abs() * torch.finfo(x_dtype).eps + 1e-4
    assert ((answer.double() - exact).abs() <= bound).all()


def test_a_token_does_not_depend_on_the_batch_nor_on_threads() -> None:
    problem = Problem(M=150, N=80, K=300)
    packed, x, bias = packed_of(problem), problem.x(), problem.bias_vector()
    whole = ops.linear(x, packed, bias)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(ops.linear(x, packed, bias), whole)
    finally:
        torch.set_num_threads(before)
    for begin, end in ((0, 1), (3, 20), (64, 150), (149, 150)):
        assert torch.equal(ops.linear(x[begin:end], packed, bias), whole[begin:end])


class TestRange:
    """Sums beyond 65504."""

    problem = Problem(M=40, N=20, K=64)

    def overflowing(self) -> tuple[Tensor, ElementFp16]:
        x = self.problem.x()
        x[3] *= 3e5  # in x itself
        x[17] *= 3e4  # in the sums
        return x, packed_of(self.problem)

    def test_such_tokens_are_computed_in_fp32_and_counted(self) -> None:
        x, packed = self.overflowing()
        bias = self.problem.bias_vector()
        with pytest.warns(RuntimeWarning, match=r"layer 20x64 exceed the range of fp16 \(65504\)"):
            answer = ops.linear(x, packed, bias)
        assert answer.isfinite().all()
        assert packed.overflow.item() == 2
        in_fp32 = ops.linear(x, packed.in_fp32(), bias)
        assert torch.equal(answer[[3, 17]], in_fp32[[3, 17]])
        others = torch.ones(40, dtype=torch.bool)
        others[[3, 17]] = False
        assert torch.equal(answer[others], ops.linear(x[others], packed, bias))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the warning comes once
            ops.linear(x, packed, bias)
        assert packed.overflow.item() == 4

    def test_activations_do_not_hide_it(self) -> None:
        """The partial sums leave the range, and the sum is inside it; relu would turn -inf into 0."""
        weight = torch.tensor([[-100.0, 100.0, 1.0]])
        packed = formats.pack(weight, format="element_fp16")
        assert isinstance(packed, ElementFp16)
        x = torch.tensor([[1000.0, 1000.0, 5.0]])
        with pytest.warns(RuntimeWarning, match="exceed the range"):
            assert ops.linear(x, packed, None, "relu").item() == 5.0
        assert packed.overflow.item() == 1

    def test_nan_and_infinity_stay_in_their_token_and_are_not_counted(self) -> None:
        packed, bias = packed_of(self.problem), self.problem.bias_vector()
        x = self.problem.x()
        plain = ops.linear(x, packed, bias)
        x[5, 2], x[6, 3] = torch.nan, torch.inf
        answer = ops.linear(x, packed, bias)
        expected = ops.linear(x, packed.in_fp32(), bias)
        torch.testing.assert_close(answer[[5, 6]], expected[[5, 6]], equal_nan=True, rtol=0, atol=0)
        others = torch.ones(40, dtype=torch.bool)
        others[[5, 6]] = False
        assert torch.equal(answer[others], plain[others])
        assert packed.overflow.item() == 0

    def test_a_pruned_column_is_not_read(self) -> None:
        packed = packed_of(self.problem)  # the last column is pruned
        x = self.problem.x()
        plain = ops.linear(x, packed)
        x[:, -1] = torch.tensor([torch.nan, torch.inf, 1e30, 7e4]).repeat(10)
        assert torch.equal(ops.linear(x, packed), plain)
        assert packed.overflow.item() == 0

    def test_a_weight_beyond_the_range_is_refused(self) -> None:
        weight = torch.tensor([[1.0, -70000.0]])
        with pytest.raises(ValueError, match=r"weight 70000 is beyond the range of fp16 \(65504\)"):
            formats.pack(weight, format="element_fp16")
        formats.pack(weight, torch.tensor([[True, False]]), format="element_fp16")


class TestFormat:
    @pytest.mark.parametrize("dtype", X_DTYPES, ids=str)
    def test_it_holds_the_weights_rounded_to_fp16(self, dtype: torch.dtype) -> None:
        problem = Problem(dtype=dtype)
        packed = packed_of(problem)
        assert torch.equal(packed.to_dense(), problem.kept_weight().half())
        assert torch.equal(packed.kept(), problem.mask())
        assert packed.nnz == int(problem.mask().sum())

    def test_no_plan_considers_it(self) -> None:
        assert ElementFp16.name not in formats.FORMATS
        assert ElementFp16.name not in formats.ANY_MASK

    def test_gradients_of_x_are_those_of_the_dense_weight(self) -> None:
        problem = Problem(M=9)
        x = problem.x().requires_grad_()
        ops.linear(x, packed_of(problem)).sum().backward()
        expected = problem.kept_weight().half().float().sum(0).expand(9, -1)
        assert x.grad is not None
        torch.testing.assert_close(x.grad, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("x_dtype", X_DTYPES, ids=str)
def test_without_the_unit_it_is_computed_in_fp32(
    x_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fp16, "why_unavailable", lambda: "the CPU lacks it")
    problem = Problem(M=21)
    packed, x, bias = packed_of(problem), problem.x().to(x_dtype), problem.bias_vector()
    assert torch.equal(ops.linear(x, packed, bias), ops.linear(x, packed.in_fp32(), bias))


def test_a_narrower_instruction_set_excludes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp16, "_emulated", False)
    monkeypatch.setattr(native, "instruction_set", lambda: "avx2")
    assert fp16.why_unavailable() == "the instruction set in use is avx2"


class TestCalibration:
    def test_a_range_is_the_largest_weight_input_and_sum_of_absolute_products(self) -> None:
        weight = torch.tensor([[1.0, -2.0, 0.0], [0.0, 3.0, 0.0]])
        found = fp16.fp16_range(torch.tensor([[5.0, -4.0, 1e9]]), weight)  # no row keeps the last column
        assert found == fp16.Fp16Range(3.0, 5.0, 13.0)
        assert found.fits
        wider = fp16.fp16_range(torch.tensor([[4e4, 0.0, 0.0]]), weight)
        assert not wider.fits
        assert (found | wider) == fp16.Fp16Range(3.0, 4e4, 4e4)

    def test_nan_and_infinity_do_not_fit(self) -> None:
        weight = torch.eye(2)
        for value in (torch.nan, torch.inf):
            found = fp16.fp16_range(torch.tensor([[value, 1.0]]), weight)
            assert not found.fits
            assert not (fp16.fp16_range(torch.ones(1, 2), weight) | found).fits
            assert not (found | fp16.fp16_range(torch.ones(1, 2), weight)).fits

    def test_empty_batches_and_weights(self) -> None:
        assert fp16.fp16_range(torch.ones(0, 2), torch.eye(2)) == fp16.Fp16Range(1.0, 0.0, 0.0)
        assert fp16.fp16_range(torch.ones(3, 2), torch.zeros(2, 2)).fits

    def test_inside_it_no_sum_overflows(self) -> None:
        problem = Problem(M=64, K=128)
        packed = packed_of(problem)
        x = problem.x()
        x *= 3.2e4 / fp16.fp16_range(x, packed.to_dense()).sum
        assert fp16.fp16_range(x, packed.to_dense()).fits
        ops.linear(x, packed)
        assert packed.overflow.item() == 0
