"""A layer that meets texts of every length keeps its memory, and reads only memory that holds its input."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsebert_kernels import bounded_rows, formats, linear_operator, ops
from sparsebert_kernels.masked import masked_linear, pack_mask
from tests.ops.problem import Problem
from tests.ops.special_tensors import SPECIAL

STATUS = Path("/proc/self/statm")
needs_proc = pytest.mark.skipif(not STATUS.exists(), reason="the system has no /proc/self/statm")
needs_own_allocator = pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer keeps freed memory"
)


def resident_mb() -> float:
    return int(STATUS.read_text().split()[1]) * 4096 / 2**20


def serve(packed: formats.PackedWeight, requests: int, longest: int, seed: int) -> None:
    lengths = random.Random(seed)
    x = torch.randn(longest, packed.shape[1]).to(packed.dtype)
    with torch.inference_mode():
        for _ in range(requests):
            ops.linear(x[: lengths.randint(1, longest)], packed)


@needs_own_allocator
class TestRequestsOfRandomLengths:
    @needs_proc
    @pytest.mark.parametrize("threads", [1, 8])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("name", formats.ANY_MASK)
    def test_keep_the_memory(self, name: str, dtype: torch.dtype, threads: int) -> None:
        torch.set_num_threads(threads)
        # Another width for each case: what one has compiled serves another of the same shape.
        width = 64 + 8 * (4 * formats.ANY_MASK.index(name) + 2 * (dtype == torch.bfloat16) + (threads > 1))
        packed = formats.pack(torch.randn(width, 64).to(dtype), torch.rand(width, 64) < 0.3, format=name)
        serve(packed, 250, 300, seed=0)
        before = resident_mb()
        serve(packed, 250, 300, seed=1)
        assert resident_mb() - before < 12, "each new length cost 0.5 MB before"

    @needs_proc
    @pytest.mark.slow
    @pytest.mark.parametrize("threads", [1, 8])
    @pytest.mark.parametrize("name", formats.ANY_MASK)
    def test_ten_thousand(self, name: str, threads: int) -> None:
        torch.set_num_threads(threads)
        packed = formats.pack(torch.randn(384, 384), torch.rand(384, 384) < 0.3, format=name)
        serve(packed, 1000, 600, seed=0)
        before = resident_mb()
        for part in range(10):
            serve(packed, 1000, 600, seed=1 + part)
            assert resident_mb() - before < 24

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("name", ["dense", "compact", "csr"])
    def test_have_the_results_of_exact_lengths(
        self, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        problem = Problem(M=2600, N=24, K=40, format=name, dtype=dtype, activation="gelu")
        packed, bias, x = problem.packed(), problem.bias_vector(), problem.x()
        for shape in ((1,), (2,), (5,), (17,), (3, 7), (2, 301), (1000,), (1024,), (1025,), (2, 1300)):
            part = x[: torch.Size(shape).numel()].view(*shape, 40)
            monkeypatch.setattr(bounded_rows, "EXACT_SIZES", 2**30)
            exact = ops.linear(part, packed, bias, "gelu")
            monkeypatch.setattr(bounded_rows, "EXACT_SIZES", 0)
            bounded_rows._EXACT.clear()
            padded = ops.linear(part, packed, bias, "gelu")
            assert padded.is_contiguous()
            assert torch.equal(padded, exact), shape

    def test_are_rounded_up_to_few_numbers(self) -> None:
        sizes = [bounded_rows.rounded_up(rows) for rows in range(1, bounded_rows.MAX_ROWS + 1)]
        assert len(set(sizes)) == 51
        assert all(rows <= size for rows, size in enumerate(sizes, 1))
        assert all(size <= rows + max(3, rows // 8) for rows, size in enumerate(sizes, 1))


@pytest.mark.parametrize("call", [linear_operator.call_eagerly, linear_operator.call])
@pytest.mark.parametrize("name", formats.ANY_MASK)
class TestUntilTheBackwardPass:
    """Like ``nn.Linear``, a layer keeps its input only if the backward pass reads it."""

    def saved(self, y: Callable[[], Tensor]) -> tuple[Tensor, set[int]]:
        addresses: set[int] = set()

        def note(tensor: Tensor) -> Tensor:
            addresses.add(0 if tensor.is_mkldnn else tensor.data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            return y(), addresses

    def test_frozen_values_keep_no_input(self, name: str, call: Callable[..., Tensor]) -> None:
        problem = Problem(format=name)
        packed, bias = problem.packed(), problem.bias_vector().requires_grad_()
        leaf, residual = problem.x().requires_grad_(), torch.randn(problem.M, problem.N).requires_grad_()
        x = leaf + 0
        y, addresses = self.saved(lambda: call(x, packed, bias, (), "none", residual))
        assert x.data_ptr() not in addresses
        with torch.no_grad():
            x.zero_()  # an error if it had been saved
        upstream = problem.gradient()
        dx, dbias, dresidual = torch.autograd.grad(y, (leaf, bias, residual), upstream)
        torch.testing.assert_close(dx, upstream @ packed.to_dense())
        torch.testing.assert_close(dbias, upstream.sum(0))
        assert torch.equal(dresidual, upstream)

    def test_other_layers_keep_it(self, name: str, call: Callable[..., Tensor]) -> None:
        problem = Problem(format=name)
        packed, x = problem.packed(), problem.x().requires_grad_()
        assert x.data_ptr() in self.saved(lambda: call(x, packed, None, (), "gelu", None))[1]
        if isinstance(packed, ops.TRAINABLE):
            trainable = packed.replace(values=packed.values.clone().requires_grad_())
            assert x.data_ptr() in self.saved(lambda: call(x, trainable, None, (), "none", None))[1]


class TestHalfPrecisionWithStrides:
    """torch 2.13 returns NaN for some bfloat16 x on some CPUs, whose oneDNN reads past the end of a row."""

    @pytest.mark.parametrize(("width", "gap"), [(31, 1), (32, 1), (33, 2), (300, 3)])
    @pytest.mark.parametrize("name", [*formats.ANY_MASK, "masked_linear"])
    def test_reads_nothing_between_the_rows(self, name: str, gap: int, width: int) -> None:
        around = torch.full((7, width + gap), torch.nan, dtype=torch.bfloat16)
        x = around[:, :width]
        x.copy_(torch.randn(7, width))
        weight, mask = torch.randn(16, width).bfloat16(), torch.rand(16, width) < 0.5
        if name == "masked_linear":
            words = pack_mask(mask)
            strided, plain = (masked_linear(each, weight, words) for each in (x, x.contiguous()))
        else:
            packed = formats.pack(weight, mask, format=name)
            strided, plain = (ops.linear(each, packed) for each in (x, x.contiguous()))
        assert strided.isfinite().all()
        assert torch.equal(strided, plain)

    @pytest.mark.parametrize("gap", [1, 2, 3])
    def test_torch_has_the_fault(self, gap: int) -> None:
        """Skipped where torch is sound: ``reference.plain_rows`` can go when it is skipped everywhere."""
        around = torch.full((7, 300 + gap), torch.nan, dtype=torch.bfloat16)
        x = around[:, :300]
        x.copy_(torch.randn(7, 300))
        weight = torch.randn(16, 300).bfloat16()
        assert torch.nn.functional.linear(x.contiguous(), weight).isfinite().all()
        if torch.nn.functional.linear(x, weight).isfinite().all():
            pytest.skip("torch reads strided bfloat16 rows correctly on this machine")


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("name", formats.ANY_MASK)
class TestTensorsWithoutPlainMemory:
    def test_x_bias_and_residual(self, name: str, special: Callable[[Tensor], Tensor]) -> None:
        problem = Problem(M=9, format=name)
        packed, residual = problem.packed(), torch.randn(9, 45)
        x, bias = problem.x(), problem.bias_vector()
        assert bias is not None
        arguments: list[Any] = [special(each) for each in (x, bias, residual)]
        expected = ops.linear(x, packed, bias, residual=residual)
        with torch.no_grad():
            answer = ops.linear(arguments[0], packed, arguments[1], residual=arguments[2])
            shared = ops.linear_shared(arguments[0], [packed, packed], [arguments[1], None])
        assert torch.equal(answer, expected)
        assert torch.equal(shared[0], ops.linear(x, packed, bias))

    def test_gradients_and_values(self, name: str, special: Callable[[Tensor], Tensor]) -> None:
        problem = Problem(M=9, format=name)
        packed = problem.packed()
        if not isinstance(packed, ops.TRAINABLE):
            pytest.skip("not trainable")
        x, values, gradient = problem.x(), packed.values.clone(), problem.gradient()
        specials = [special(each) for each in (x, values, gradient)]
        results = []
        for each, kept, upstream in ((x, values, gradient), specials):
            each, kept = each.detach().requires_grad_(), kept.detach().requires_grad_()
            y = ops.linear(each, packed.replace(values=kept))
            results.append((y, *torch.autograd.grad(y, (each, kept), upstream)))
        for expected, answer in zip(*results, strict=True):
            assert torch.equal(answer, expected)
