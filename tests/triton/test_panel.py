"""``block_sparse_linear``: answers and every gradient of the Triton kernels against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsebert_kernels import ops
from sparsebert_kernels.cuda import tile_configs, tile_rule
from sparsebert_kernels.cuda.tile_rule import Configuration
from sparsebert_kernels.formats import PanelSparse
from sparsebert_kernels.formats.panel import GROUP_COLUMNS, PANEL_ROWS, join
from sparsebert_kernels.formats.transpose import transposed_index
from sparsebert_kernels.reference import ACTIVATIONS
from tests.triton.panels import (
    BF16,
    FP16,
    FP32,
    PanelProblem,
    assert_as_good_as_torch,
    leaf,
    ours,
    torchs,
)

BASE = PanelProblem()
PROBLEMS = [
    *(replace(BASE, h=h, g=g, N=min(3 * h, 192)) for h in PANEL_ROWS for g in GROUP_COLUMNS),
    *(replace(BASE, h=h, g=g, N=192, dtype=BF16) for h, g in ((16, 64), (32, 8), (64, 16), (128, 32))),
    *(replace(BASE, h=h, g=g, N=192, dtype=FP16) for h, g in ((16, 8), (64, 64), (128, 32))),
    *(replace(BASE, density=d) for d in (0, "one block", 0.5, 1)),
    *(replace(BASE, density=d, dtype=t) for d, t in ((0, BF16), (0.5, BF16), (0.5, FP16), (1, FP16))),
    *(replace(BASE, activation=name) for name in ACTIVATIONS),
    *(replace(BASE, activation=name, dtype=t) for name, t in (("gelu", BF16), ("tanh", FP16))),
    *(replace(BASE, residual=True, activation=name) for name in ("none", "gelu")),
    *(replace(BASE, residual=True, activation=n, dtype=t) for n, t in (("none", FP16), ("gelu", BF16))),
    *(replace(BASE, bias=bias) for bias in (None, FP16, BF16, torch.float64)),
    *(replace(BASE, M=m, dtype=BF16) for m in (1, 16, 64, 65, 129)),
    # Neither N nor K a multiple of anything; less than a block; more than one tile a panel
    *(replace(BASE, N=n, K=k, residual=True) for n, k in ((1, 1), (33, 7), (50, 129), (100, 333))),
    *(replace(BASE, N=50, K=129, dtype=t, h=64, g=8) for t in (FP16, BF16)),
]  # fmt: skip


@pytest.mark.parametrize("problem", list({str(p): p for p in PROBLEMS}.values()), ids=str)
def test_answers_and_gradients(problem: PanelProblem, device: torch.device) -> None:
    answers, baseline, exact = ours(problem, device), torchs(problem), torchs(problem, torch.float64)
    for name in ("y", "x", "weight", "bias", "residual"):
        answer = getattr(answers, name)
        if answer is not None:
            assert_as_good_as_torch(answer, getattr(baseline, name), getattr(exact, name))
    assert not answers.weight[~problem.mask()].any()


class TestShapesAndStrides:
    """Each is the answer for the same rows, contiguous and two-dimensional."""

    def answer(self, x: torch.Tensor, device: torch.device) -> torch.Tensor:
        bias = BASE.bias_vector()
        assert bias is not None
        return ops.block_sparse_linear(x.to(device), BASE.packed(device), bias.to(device), "gelu")

    @pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 5)], ids=str)
    def test_no_rows(self, shape: tuple[int, ...], device: torch.device) -> None:
        packed = BASE.packed(device)
        packed = packed.replace(values=packed.values.clone().requires_grad_())
        x = torch.empty(*shape, BASE.K, device=device, requires_grad=True)
        y = ops.block_sparse_linear(x, packed)
        assert y.shape == (*shape, BASE.N)
        y.backward(torch.empty_like(y))
        assert x.grad is not None
        assert x.grad.shape == x.shape
        assert packed.values.grad is not None
        assert not packed.values.grad.any()

    def test_other_numbers_of_dimensions(self, device: torch.device) -> None:
        x = BASE.x()[:24]
        expected = self.answer(x, device)
        assert torch.equal(self.answer(x.view(2, 3, 4, -1), device), expected.view(2, 3, 4, -1))
        assert torch.equal(self.answer(x[0], device), expected[0])

    @pytest.mark.parametrize(
        "name", ["transposed", "every second row", "every second column", "slice", "one row"]
    )
    def test_strides(self, name: str, device: torch.device) -> None:
        dense = BASE.x().to(device)
        nan = dense.new_full((BASE.M, 3), torch.nan)
        x = {
            "transposed": dense.t().contiguous().t(),
            "every second row": dense.repeat_interleave(2, 0)[::2],
            "every second column": dense.repeat_interleave(2, 1)[:, ::2],
            "slice": torch.cat((nan, dense, nan), 1)[:, 3:-3],
            "one row": dense[:1].expand(BASE.M, BASE.K),
        }[name]
        assert torch.equal(self.answer(x, device), self.answer(x.contiguous(), device))

    def test_bias_and_residual_of_any_stride(self, device: torch.device) -> None:
        problem = replace(BASE, residual=True)
        packed, x = problem.packed(device), problem.x().to(device)
        bias, residual = problem.bias_vector(), problem.residual_matrix()
        assert bias is not None
        assert residual is not None
        bias, residual = bias.to(device), residual.to(device)
        strided = bias.repeat_interleave(3)[::3], residual.t().contiguous().t()
        expected = ops.block_sparse_linear(x, packed, bias, "gelu", residual)
        assert torch.equal(ops.block_sparse_linear(x, packed, strided[0], "gelu", strided[1]), expected)

    def test_expanded_gradient(self, device: torch.device) -> None:
        gradients = []
        for one in (torch.ones(1, device=device), torch.ones(BASE.M, BASE.N, device=device)):
            packed, x = BASE.packed(device), leaf(BASE.x(), device)
            assert x is not None
            packed = packed.replace(values=packed.values.clone().requires_grad_())
            ops.block_sparse_linear(x, packed).backward(one.expand(BASE.M, BASE.N))
            assert x.grad is not None
            assert packed.values.grad is not None
            gradients.append((x.grad, packed.values.grad))
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


class TestNan:
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_in_a_pruned_column_does_not_spread(self, value: float, device: torch.device) -> None:
        packed, x = BASE.packed(device), BASE.x().to(device)
        expected = ops.block_sparse_linear(x, packed)
        pruned = ~BASE.mask().any(0)
        assert pruned.any()
        x[:, pruned.to(device)] = value
        assert torch.equal(ops.block_sparse_linear(x, packed), expected)

    def test_reaches_the_panels_that_keep_the_column_and_no_other_token(self, device: torch.device) -> None:
        packed, x, column = BASE.packed(device), BASE.x().to(device), BASE.K // 2
        x[5, column] = torch.nan
        answer = ops.block_sparse_linear(x, packed).isnan().cpu()
        assert torch.equal(answer[5], BASE.mask()[:, column])
        assert answer[5].any()
        assert not answer[5].all()
        assert not answer[:5].any()
        assert not answer[6:].any()

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_goes_through_the_activations(self, activation: str, device: torch.device) -> None:
        identity = PanelSparse.from_dense(torch.eye(16, device=device), block_size=(16, 8))
        special = torch.zeros(16, device=device)
        special[:5] = torch.tensor([torch.nan, torch.inf, -1e4, 1e4, -0.0])
        answer = ops.block_sparse_linear(torch.zeros(3, 16, device=device), identity, special, activation)
        expected = {
            "none": [torch.nan, torch.inf, -1e4, 1e4, 0.0],
            "relu": [torch.nan, torch.inf, 0.0, 1e4, 0.0],
            "tanh": [torch.nan, 1.0, -1.0, 1.0, 0.0],
        }.get(activation, [torch.nan, torch.inf, 0.0, 1e4, 0.0])
        torch.testing.assert_close(answer[0, :5].tolist(), expected, rtol=0, atol=0, equal_nan=True)


class TestNeighbouringPanels:
    """A program of several panels gives the bits of one program a panel."""

    @pytest.mark.parametrize(
        ("h", "neighbours", "N"),
        [(16, 4, 64), (16, 4, 40), (16, 2, 48), (32, 2, 96), (32, 2, 50), (32, 4, 33)],
    )
    @pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
    def test_answer_as_single_ones_do(
        self,
        h: int,
        neighbours: int,
        N: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        problem = PanelProblem(M=70, N=N, K=200, h=h, g=8, dtype=dtype, residual=True)
        packed, x = problem.packed(device), problem.x().to(device)
        bias, residual = problem.bias_vector(), problem.residual_matrix()
        assert bias is not None
        assert residual is not None
        answers = []
        for count in (1, neighbours):
            with tile_configs.forced(Configuration(64, 8, 4, 2, count)):
                y = ops.block_sparse_linear(x, packed, bias.to(device), "gelu", residual.to(device))
            answers.append(y)
        assert torch.equal(*answers)

    def test_of_a_weight_that_keeps_nothing(self, device: torch.device) -> None:
        problem = PanelProblem(N=40, h=16, density=0)
        with tile_configs.forced(Configuration(64, 8, 4, 2, 4)):
            y = ops.block_sparse_linear(problem.x().to(device), problem.packed(device))
        assert not y.any()


class TestDeterminism:
    def test_a_sum_split_over_programs_is_added_up_in_order(
        self, device: torch.device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        problem = replace(BASE, M=1500, N=32, K=48, dtype=BF16)
        monkeypatch.setattr(tile_rule, "multiprocessors", lambda device: 1)
        whole = ours(problem, device)
        monkeypatch.setattr(tile_rule, "multiprocessors", lambda device: 64)
        split = [ours(problem, device) for _ in range(2)]
        assert torch.equal(split[0].weight, split[1].weight)
        exact = torchs(problem, torch.float64)
        assert_as_good_as_torch(split[0].weight, torchs(problem).weight, exact.weight)
        torch.testing.assert_close(split[0].weight, whole.weight, rtol=2**-6, atol=1e-5)

    def test_a_token_answers_the_same_alone_and_among_others(self, device: torch.device) -> None:
        packed, x = BASE.packed(device), BASE.x().to(device)
        together = ops.block_sparse_linear(x, packed, None, "gelu")
        assert torch.equal(ops.block_sparse_linear(x[7:9], packed, None, "gelu"), together[7:9])

    def test_a_kept_transposed_index_changes_nothing(self, device: torch.device) -> None:
        packed = BASE.packed(device)
        gradients = []
        for transposed in ([], transposed_index(packed)):
            x = leaf(BASE.x(), device)
            assert x is not None
            ops.linear(x, packed, None, "gelu", transposed).backward(BASE.gradient().to(device))
            assert x.grad is not None
            gradients.append(x.grad)
        assert torch.equal(*gradients)


class TestSharedInput:
    def test_joined_weights_answer_as_the_members_do(self, device: torch.device) -> None:
        problems = [replace(BASE, density=d, N=n) for d, n in ((0.5, 64), (0, 32), (1, 40))]
        x = BASE.x().to(device)
        biases = [p.bias_vector().to(device) for p in problems]  # type: ignore[union-attr]
        joined, members = join([p.packed(device) for p in problems])
        expected = [ops.linear(x, m, b) for m, b in zip(members, biases, strict=True)]
        for answers in (
            ops.linear_shared(x, members, biases),
            ops.linear(x, joined, torch.cat(biases)).split([64, 32, 40], -1),
        ):
            assert all(torch.equal(a, b) for a, b in zip(answers, expected, strict=True))


class TestRefusals:
    def test_x_in_another_dtype_than_the_weight(self, device: torch.device) -> None:
        with pytest.raises(ValueError, match=r"x is torch\.bfloat16, the weight torch\.float32; on a GPU"):
            ops.block_sparse_linear(BASE.x().to(device, BF16), BASE.packed(device))

    def test_x_of_no_floating_point_dtype(self, device: torch.device) -> None:
        with pytest.raises(ValueError, match=r"x is torch\.int64; it must have a floating-point dtype"):
            ops.block_sparse_linear(BASE.x().to(device, torch.int64), BASE.packed(device))

    def test_x_on_another_device(self, device: torch.device) -> None:
        with pytest.raises(ValueError, match="x is on meta, the weight on"):
            ops.block_sparse_linear(BASE.x().to("meta"), BASE.packed(device))

    def test_a_weight_in_another_format(self, device: torch.device) -> None:
        message = r"weight is Tensor; pack a block-sparse weight with PanelSparse\.from_dense"
        with pytest.raises(ValueError, match=message):
            ops.block_sparse_linear(BASE.x().to(device), BASE.weight().to(device))  # type: ignore[arg-type]

    @pytest.mark.parametrize("shape", [(37, 95), (96,), (1, 96)], ids=str)
    def test_a_residual_of_another_shape(self, shape: tuple[int, ...], device: torch.device) -> None:
        residual = torch.zeros(shape, device=device)
        with pytest.raises(ValueError, match=r"residual is .*; it must be \[37, 96\] of torch.float32"):
            ops.block_sparse_linear(BASE.x().to(device), BASE.packed(device), residual=residual)

    def test_misaligned_values(self, device: torch.device) -> None:
        packed = BASE.packed(device)
        buffer = packed.values.new_empty(packed.values.numel() + 1)
        shifted = packed.replace(values=buffer[1:].view(packed.values.shape))
        with pytest.raises(ValueError, match=r"the weight's values have strides .* a multiple of 16"):
            ops.block_sparse_linear(BASE.x().to(device), shifted)

    def test_an_unknown_activation(self, device: torch.device) -> None:
        with pytest.raises(ValueError, match="unknown activation 'gelo'"):
            ops.block_sparse_linear(BASE.x().to(device), BASE.packed(device), None, "gelo")
