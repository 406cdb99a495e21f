"""``masked_linear``: its answer and every gradient, in plain torch and in the Triton kernels."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from sparsebert_kernels.cuda import interpreter, on_cpu
from sparsebert_kernels.masked import masked_linear, pack_mask, unpack_mask
from tests.ops.problem import SHORT, gradient_of
from tests.triton.tolerance import assert_as_exact_as_torch

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Problem:
    """x [M, K] times a masked weight [N, K]; ``str`` names it."""

    M: int = 33
    N: int = 48
    K: int = 112
    density: float = 0.3
    dtype: torch.dtype = FP32
    weight_dtype: torch.dtype | None = None  # None: as dtype
    straight_through: bool = False

    def __str__(self) -> str:
        weight = f"-weight_{SHORT[self.weight_dtype]}" if self.weight_dtype else ""
        straight = "-straight_through" if self.straight_through else ""
        return f"M{self.M}-N{self.N}-K{self.K}-{self.density}-{SHORT[self.dtype]}{weight}{straight}"

    def random(self, seed: int, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator).to(dtype or self.dtype)

    def mask(self) -> Tensor:
        """Random; first row and last column are empty unless everything is kept."""
        mask = torch.rand(self.N, self.K, generator=torch.Generator().manual_seed(1)) < self.density
        if self.density < 1:
            mask[0], mask[:, -1] = False, False
        return mask

    def weight(self) -> Tensor:
        return self.random(2, self.N, self.K, dtype=self.weight_dtype)

    def x(self) -> Tensor:
        return self.random(3, self.M, self.K)

    def gradient(self) -> Tensor:
        return self.random(4, self.M, self.N)

    def bias(self) -> Tensor:
        return self.random(5, self.N)

    def results(self, device: str, **changes: Any) -> dict[str, Tensor]:
        """The answer and all gradients; ``changes`` replace tensors of the same names."""
        leaves = {
            "x": self.x(),
            "weight": self.weight(),
            "bias": self.bias(),
            "scores": torch.zeros(self.N, self.K),
        }
        leaves = {name: changes.get(name, leaf).to(device).requires_grad_() for name, leaf in leaves.items()}
        y = masked_linear(
            leaves["x"],
            leaves["weight"],
            pack_mask(self.mask()).to(device),
            leaves["bias"],
            scores=leaves["scores"],
            straight_through=self.straight_through,
        )
        y.backward(self.gradient().to(device))
        return {"y": y.detach().cpu(), **{name: gradient_of(leaf).cpu() for name, leaf in leaves.items()}}

    def expected(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What torch answers for the masked weight, rounded as x is, computed in ``dtype``."""
        x, gradient, bias = (t.to(dtype) for t in (self.x(), self.gradient(), self.bias()))
        mask, weight = self.mask(), self.weight()
        kept = torch.where(mask, weight.to(self.dtype).to(dtype), 0)
        full = gradient.t() @ x
        dweight = full if self.straight_through else torch.where(mask, full, 0)
        return {
            "y": torch.nn.functional.linear(x, kept, bias),
            "x": gradient @ kept,
            "weight": dweight,
            "bias": gradient.sum(0),
            "scores": full * weight.to(dtype),
        }


PROBLEMS = [
    Problem(),
    Problem(straight_through=True),
    Problem(density=0),
    Problem(density=1),
    Problem(M=1, N=16, K=16),
    Problem(M=130, N=192, K=128),
    Problem(M=1100, N=32, K=48),  # dW in several parts
    Problem(M=1100, N=32, K=48, straight_through=True),
    # Not whole lines of 16: y and dX from a masked copy.
    Problem(N=45, K=100),
    Problem(M=1100, N=33, K=40),
    Problem(M=1, N=1, K=1),
    Problem(N=2),
    Problem(K=312),
]
PROBLEMS += [replace(p, dtype=dtype) for p in PROBLEMS[:7] for dtype in (FP16, BF16)]
PROBLEMS += [replace(p, dtype=BF16) for p in PROBLEMS[8:13]]
PROBLEMS += [Problem(N=n, K=k, dtype=BF16, weight_dtype=FP32) for n, k in ((48, 112), (45, 112), (45, 100))]
PROBLEMS += [Problem(dtype=FP16, weight_dtype=FP32)]
PROBLEMS += [Problem(M=1100, N=32, K=k, dtype=BF16, weight_dtype=FP32) for k in (48, 40)]


@pytest.fixture(params=["torch", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    """Name of the implementation."""
    return request.param


@pytest.fixture
def device(backend: str) -> Iterator[str]:
    """Device of the tensors: "triton" runs on a GPU, or in its interpreter on the CPU."""
    on_gpu = backend == "triton" and torch.cuda.is_available()
    if backend == "triton" and not on_gpu and (reason := interpreter.why_broken()):
        pytest.skip(reason)
    with on_cpu() if backend == "triton" and not on_gpu else nullcontext():
        yield "cuda" if on_gpu else "cpu"


@functools.cache
def results_of(problem: Problem, device: str, backend: str) -> dict[str, Tensor]:
    """Compute once for all tests of a problem and backend. The interpreter's device is that of torch."""
    return problem.results(device)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
class TestResults:
    def test_are_as_exact_as_torchs(self, problem: Problem, device: str, backend: str) -> None:
        results = results_of(problem, device, backend)
        exact, torchs = problem.expected(torch.float64), problem.expected(problem.dtype)
        for name, result in results.items():
            assert_as_exact_as_torch(result, torchs[name].to(result.dtype), exact[name])

    def test_of_the_weight_are_exactly_zero_where_it_is_masked(
        self, problem: Problem, device: str, backend: str
    ) -> None:
        masked = results_of(problem, device, backend)["weight"][~problem.mask()]
        if problem.straight_through:
            assert not masked.numel() or masked.any()
        else:
            assert not masked.any()


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16], ids=SHORT.get)
class TestMaskedWeights:
    @pytest.mark.parametrize("poison", [torch.nan, torch.inf])
    def test_are_never_read(self, dtype: torch.dtype, poison: float, device: str) -> None:
        problem = Problem(dtype=dtype)
        poisoned = problem.weight().masked_fill(~problem.mask(), poison)
        clean, results = problem.results(device), problem.results(device, weight=poisoned)
        for name in ("y", "x", "weight", "bias"):
            assert torch.equal(results[name], clean[name])
        kept = problem.mask()
        assert torch.equal(results["scores"][kept], clean["scores"][kept])


class TestGradients:
    @pytest.mark.parametrize("dtype", [FP32, BF16], ids=SHORT.get)
    def test_have_the_same_bits_every_time(self, dtype: torch.dtype, device: str) -> None:
        """Added over the tokens in several parts, but always in the same order."""
        problem = Problem(M=1100, N=33, K=40, dtype=dtype)
        first, second = problem.results(device), problem.results(device)
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_only_requested_ones_are_computed(self, device: str) -> None:
        problem = Problem()
        for requested in range(4):
            leaves = [problem.x(), problem.weight(), problem.bias(), torch.zeros(problem.N, problem.K)]
            leaves = [leaf.to(device) for leaf in leaves]
            leaves[requested].requires_grad_()
            x, weight, bias, scores = leaves
            words = pack_mask(problem.mask()).to(device)
            masked_linear(x, weight, words, bias, scores=scores).sum().backward()
            assert [leaf.grad is not None for leaf in leaves] == [i == requested for i in range(4)]

    def test_gradcheck(self) -> None:
        problem = Problem(M=3, N=5, K=40)
        leaves = [t.double().requires_grad_() for t in (problem.x(), problem.weight(), problem.bias())]
        words = pack_mask(problem.mask())
        assert torch.autograd.gradcheck(lambda x, w, b: masked_linear(x, w, words, b), leaves)

    def test_of_scores_come_in_their_dtype(self, device: str) -> None:
        problem = Problem()
        for dtype in (FP32, BF16):
            scores = torch.zeros(problem.N, problem.K, dtype=dtype, device=device, requires_grad=True)
            words = pack_mask(problem.mask()).to(device)
            x, weight = problem.x().to(device), problem.weight().to(device)
            masked_linear(x, weight, words, scores=scores).sum().backward()
            assert gradient_of(scores).dtype == dtype


class TestInputs:
    def test_of_any_shape_and_stride(self, device: str) -> None:
        problem = Problem(M=24)
        x, weight = problem.x().to(device), problem.weight().to(device)
        words = pack_mask(problem.mask()).to(device)
        expected = masked_linear(x, weight, words)
        wide = torch.full((problem.N, 3 * problem.K), torch.nan, device=device)
        wide[:, 1 : problem.K + 1] = weight
        views = {
            "x in 3D": (x.view(2, 12, -1), weight),
            "x transposed": (x.t().contiguous().t(), weight),
            "weight transposed": (x, weight.t().contiguous().t()),
            "weight a slice": (x, wide[:, 1 : problem.K + 1]),
            "one x": (x[:1].expand(24, -1), weight),
        }
        for name, (some_x, some_weight) in views.items():
            answer = masked_linear(some_x, some_weight, words)
            same = masked_linear(x[:1], weight, words).expand(24, -1) if name == "one x" else expected
            torch.testing.assert_close(answer.reshape(24, -1), same, rtol=1e-5, atol=1e-5, msg=name)

    def test_of_a_bias_of_any_stride(self, device: str) -> None:
        problem = Problem()
        x, weight, bias = (t.to(device) for t in (problem.x(), problem.weight(), problem.bias()))
        words = pack_mask(problem.mask()).to(device)
        views = (bias[:, None].expand(-1, 2).contiguous()[:, 1], bias[:1].expand(problem.N))
        for view in views:
            expected = masked_linear(x, weight, words, view.clone())
            assert torch.equal(masked_linear(x, weight, words, view), expected)

    def test_without_a_token(self, device: str) -> None:
        problem = Problem(M=0)
        results = problem.results(device)
        assert results["y"].shape == (0, problem.N)
        assert results["x"].shape == (0, problem.K)
        assert not results["weight"].any()
        assert not results["scores"].any()

    def test_under_autocast_the_weight_stays_float32(self, device: str) -> None:
        problem = Problem()
        x, weight = problem.x().to(device), problem.weight().to(device).requires_grad_()
        words = pack_mask(problem.mask()).to(device)
        with torch.autocast(device, BF16):
            y = masked_linear(x, weight, words)
        assert y.dtype == BF16
        assert torch.equal(y, masked_linear(x.bfloat16(), weight, words))
        y.sum().backward()
        assert gradient_of(weight).dtype == FP32


class TestLines:
    """What the kernels of the product load: 16 bytes at a time, or nothing."""

    @pytest.fixture
    def launched(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, ...]]:
        """The tensors of each launch of the forward and input gradient kernels."""
        from sparsebert_kernels.cuda import masked as kernels

        launches = []
        for name in ("_launch_forward", "_launch_input_gradient"):
            launch = getattr(kernels, name)

            def recorded(*arguments: Any, launch: Any = launch) -> None:
                launches.append(tuple(each for each in arguments if isinstance(each, Tensor)))
                launch(*arguments)

            monkeypatch.setattr(kernels, name, recorded)
        return launches

    @pytest.mark.parametrize("backend", ["triton"], indirect=True)
    @pytest.mark.parametrize(("N", "K"), [(45, 112), (48, 100), (2, 48), (312, 32)])
    def test_a_weight_without_whole_lines_is_multiplied_by_torch(
        self, N: int, K: int, device: str, launched: list[tuple[Tensor, ...]]
    ) -> None:
        Problem(N=N, K=K, M=3).results(device)
        assert launched == []

    @pytest.mark.parametrize("backend", ["triton"], indirect=True)
    def test_views_that_begin_or_end_inside_a_line_are_copied(
        self, device: str, launched: list[tuple[Tensor, ...]]
    ) -> None:
        problem = Problem(dtype=BF16)
        words = pack_mask(problem.mask()).to(device)
        shifted = []
        for tensor in (problem.x(), problem.weight()):
            wide = torch.zeros(len(tensor), tensor.shape[1] + 3, dtype=BF16, device=device)
            wide[:, 1:-2] = tensor
            shifted.append(wide[:, 1:-2].requires_grad_())
        bias = torch.cat([problem.bias()[:1], problem.bias()]).to(device)[1:]
        y = masked_linear(*shifted, words, bias)
        y.backward(problem.gradient().to(device))
        assert len(launched) == 2
        for tensor in itertools.chain(*launched):
            assert tensor.data_ptr() % 16 == 0
            assert tensor.dtype == torch.int32 or tensor.dim() == 1 or tensor.stride(0) % 16 == 0


class TestOperator:
    @pytest.mark.parametrize("dtype", [FP32, BF16], ids=SHORT.get)
    @pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
    def test_opcheck(self, dtype: torch.dtype, gradients: bool, device: str) -> None:
        problem = Problem(M=9, dtype=dtype)
        leaves = [problem.x(), problem.weight(), problem.bias(), torch.zeros(problem.N, problem.K)]
        x, weight, bias, scores = (leaf.to(device).requires_grad_(gradients) for leaf in leaves)
        words = pack_mask(problem.mask()).to(device)
        torch.library.opcheck(torch.ops.sparsebert.masked_linear, (x, weight, words, bias, scores, False))

    def test_opcheck_of_the_gradients(self, device: str) -> None:
        problem = Problem(M=9)
        tensors = problem.gradient(), problem.x(), problem.weight(), pack_mask(problem.mask())
        arguments = tuple(tensor.to(device) for tensor in tensors)
        for needs in ((True, True, FP32), (True, False, None), (False, True, None), (False, False, BF16)):
            torch.library.opcheck(torch.ops.sparsebert.masked_linear_backward, (*arguments, False, *needs))

    def test_compiles_without_a_graph_break_for_any_number_of_tokens(self, device: str) -> None:
        torch.compiler.reset()
        problem = Problem()
        weight, words = problem.weight().to(device), pack_mask(problem.mask()).to(device)
        compiled = torch.compile(masked_linear, fullgraph=True, backend="aot_eager", dynamic=True)
        for tokens in (33, 2, 70):
            x = replace(problem, M=tokens).x().to(device)
            assert torch.equal(compiled(x, weight, words), masked_linear(x, weight, words))


class TestPackedMasks:
    @given(st.integers(1, 20), st.integers(1, 200), st.floats(0, 1), st.integers(0, 2**16))
    def test_round_trip(self, rows: int, columns: int, density: float, seed: int) -> None:
        mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < density
        words = pack_mask(mask)
        assert (words.dtype, words.shape) == (torch.int32, (rows, -(-columns // 32)))
        assert torch.equal(unpack_mask(words, columns), mask)

    def test_put_column_i_into_bit_i(self) -> None:
        mask = torch.zeros(1, 40, dtype=torch.bool)
        mask[0, [0, 5, 31, 33]] = True
        assert pack_mask(mask).tolist() == [[1 + 2**5 - 2**31, 2]]


class TestRefusals:
    @pytest.mark.parametrize(
        ("message", "changes"),
        [
            (r"x has shape \[3, 99\]; its last dimension must be 100", {"x": torch.ones(3, 99)}),
            ("x is torch.int64; it must have a floating", {"x": torch.ones(3, 100, dtype=torch.int64)}),
            (r"weight is torch.float16, x torch.float32", {"weight": torch.ones(45, 100).half()}),
            (r"weight has shape \[100\]", {"weight": torch.ones(100)}),
            (r"packed mask is \[45, 3\]", {"packed_mask": torch.ones(45, 3, dtype=torch.int32)}),
            ("packed mask is .* of torch.int64", {"packed_mask": torch.ones(45, 4, dtype=torch.int64)}),
            (r"bias has shape \[44\]; it must be \[45\]", {"bias": torch.ones(44)}),
            (r"scores are \[45, 4\]", {"scores": torch.ones(45, 4)}),
            ("weight is on meta, x on cpu", {"weight": torch.ones(45, 100, device="meta")}),
        ],
    )
    def test_what_does_not_fit(self, message: str, changes: dict[str, Tensor]) -> None:
        problem = Problem(N=45, K=100)
        arguments = {"x": problem.x(), "weight": problem.weight(), "packed_mask": pack_mask(problem.mask())}
        with pytest.raises(ValueError, match=message):
            masked_linear(**{**arguments, **changes})

    def test_masks_that_are_none(self) -> None:
        with pytest.raises(ValueError, match=r"mask must be a torch\.bool matrix"):
            pack_mask(torch.ones(3, 4))
        with pytest.raises(ValueError, match=r"100 columns need torch.int32 \[N, 4\]"):
            unpack_mask(torch.ones(3, 3, dtype=torch.int32), 100)
