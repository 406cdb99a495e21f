"""Linear layers over row panels: on dot products, on tiles, and on emulated tiles, which any x86-64 has."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from sparsebert_kernels import cpu, formats, ops, reference
from sparsebert_kernels.cpu import native, paired
from tests.ops.backends import INSTRUCTION_SETS, using
from tests.ops.problem import assert_as_good_as_torch

EMULATED = "amx_emulated"
FP32, BF16 = torch.float32, torch.bfloat16
BF16_BLOCKS = [(h, g) for h in (16, 32, 64) for g in (1, 2, 4, 8, 16, 32)]
INT8_BLOCKS = [(h, g) for h in (16, 32, 64) for g in (4, 8, 16, 32, 64)]
BLOCKS = [*(("bf16", block) for block in BF16_BLOCKS), *(("int8", block) for block in INT8_BLOCKS)]


@functools.cache
def sets() -> tuple[str, ...]:
    """Return the instruction sets that compute row panels, the emulated one last."""
    computing = []
    for name in (*INSTRUCTION_SETS, EMULATED):
        try:
            with using(name):
                if native.supports("row_panel", BF16, torch.zeros(1, 1)):
                    computing.append(name)
        except ValueError:  # not built
            continue
    return tuple(computing)


@pytest.fixture(params=sets())
def unit(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set that computes row panels, in turn."""
    with using(request.param):
        yield request.param


def random_weight(
    shape: tuple[int, int], block: tuple[int, int], density: float = 0.4, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return a weight that is NaN where it is masked, and a mask of whole blocks, cut off at the edges."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (-(-length // step) for length, step in zip(shape, block, strict=True))
    blocks = torch.rand(rows, columns, generator=generator) < density
    mask = blocks.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[: shape[0], : shape[1]]
    weight = torch.randn(shape, generator=generator) / max(1, int(mask.sum(1).max())) ** 0.5
    return torch.where(mask, weight, torch.nan), mask


def pack(
    shape: tuple[int, int], block: tuple[int, int], dtype: str = "bf16", density: float = 0.4, seed: int = 0
) -> formats.RowPanelSparse:
    weight, mask = random_weight(shape, block, density, seed)
    return formats.RowPanelSparse.from_dense(weight, mask, block=block, dtype=dtype)


def activations(tokens: int, width: int, dtype: torch.dtype = BF16, seed: int = 1) -> Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def quantized_tokens(x: Tensor) -> Tensor:
    """Return what int8 leaves of x, in float64: a scale for each token, integers rounded to even."""
    most = x.float().abs().amax(1, keepdim=True).clamp(min=1e-20)
    rate = torch.full_like(most, 127) / most  # torch computes 127 / most with two roundings
    return (x.double() * rate.double()).round() * (most / 127).double()


class TestResults:
    @pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh"])
    @pytest.mark.parametrize("block", BF16_BLOCKS, ids=str)
    def test_in_bf16_are_as_good_as_torchs(self, unit: str, block: tuple[int, int], activation: str) -> None:
        for tokens, x_dtype in ((1, BF16), (37, FP32), (80, BF16)):
            packed, x = pack((100, 150), block), activations(tokens, 150, x_dtype)
            bias = torch.randn(100, generator=torch.Generator().manual_seed(2))
            rounded, dense = x.to(BF16), packed.to_dense()
            exact = reference.linear(rounded.double(), dense.double(), bias.double(), activation)
            torchs = reference.linear(rounded, dense, bias, activation).to(x_dtype)
            assert_as_good_as_torch(ops.linear(x, packed, bias, activation), torchs, exact)

    @pytest.mark.parametrize("block", INT8_BLOCKS, ids=str)
    def test_in_int8_are_exact_sums_of_integers(self, unit: str, block: tuple[int, int]) -> None:
        for tokens, x_dtype in ((1, BF16), (37, FP32), (80, BF16)):
            packed, x = pack((100, 150), block, "int8"), activations(tokens, 150, x_dtype)
            bias = torch.randn(100, generator=torch.Generator().manual_seed(2))
            exact = quantized_tokens(x.to(BF16)) @ packed.to_dense().double().t() + bias.double()
            error = (ops.linear(x, packed, bias).double() - exact).abs()
            assert (error <= 2**-8 * exact.abs() + 1e-5).all(), "more than the rounding to bf16"

    @pytest.mark.parametrize(("dtype", "block"), BLOCKS, ids=str)
    def test_have_the_same_bits_in_any_batch_and_on_any_number_of_threads(
        self, unit: str, dtype: str, block: tuple[int, int]
    ) -> None:
        packed, x = pack((200, 96), block, dtype), activations(70, 96)
        whole = ops.linear(x, packed, activation="gelu")
        parts = [ops.linear(part, packed, activation="gelu") for part in x.split([1, 16, 47, 6])]
        assert torch.equal(torch.cat(parts), whole)
        threads = torch.get_num_threads()
        try:
            for count in (2, 3):
                torch.set_num_threads(count)
                assert torch.equal(ops.linear(x, packed, activation="gelu"), whole)
        finally:
            torch.set_num_threads(threads)

    @given(st.data())
    def test_of_any_shape(self, data: st.DataObject) -> None:
        dtype, block = data.draw(st.sampled_from(BLOCKS))
        shape = data.draw(st.integers(1, 140)), data.draw(st.integers(1, 140))
        density = data.draw(st.sampled_from((0.0, 0.1, 0.5, 1.0)))
        packed = pack(shape, block, dtype, density, seed=data.draw(st.integers(0, 99)))
        x = activations(data.draw(st.integers(0, 70)), shape[1])
        x = x.t().contiguous().t() if data.draw(st.booleans()) else x
        bias = torch.randn(shape[0], generator=torch.Generator().manual_seed(3)).to(BF16)
        taken = quantized_tokens(x) if dtype == "int8" and x.numel() else x.double()
        exact = taken @ packed.to_dense().double().t() + bias.double()
        for name in sets():
            with using(name):
                error = (ops.linear(x, packed, bias).double() - exact).abs()
            assert (error <= 2**-7 * exact.abs() + 1e-4).all()

    def test_of_several_weights_are_those_of_each(self, unit: str) -> None:
        packed = [pack((rows, 96), (32, 2), seed=rows) for rows in (40, 200, 64)]
        x, biases = activations(35, 96), [torch.randn(40), None, torch.randn(64)]
        assert ops.can_share(packed)
        together = ops.linear_shared(x, packed, biases)
        for y, weight, bias in zip(together, packed, biases, strict=True):
            assert torch.equal(y, ops.linear(x, weight, bias))

    def test_are_torchs_where_no_kernel_is(self) -> None:
        packed, x = pack((40, 64), (32, 2)), activations(5, 64)
        for name in INSTRUCTION_SETS:
            if name not in sets():
                with using(name):
                    assert not native.supports("row_panel", BF16, x)
                    assert torch.equal(ops.linear(x, packed), reference.linear(x, packed.to_dense(), None))

    @pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh"])
    def test_of_an_activation_are_within_a_step_of_bf16(self, unit: str, activation: str) -> None:
        z = torch.cat((torch.linspace(-8, 8, 3001), torch.tensor([-1e30, -100.0, 100.0, 1e30])))
        empty = formats.RowPanelSparse.from_dense(torch.zeros(z.numel(), 4))
        y = ops.linear(torch.zeros(1, 4), empty, z, activation)[0]
        exact = reference.activate(z.double(), activation)
        assert ((y.double() - exact).abs() <= 2**-8 * exact.abs() + 2.5e-4).all()


class TestNonFinite:
    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize(("dtype", "block"), BLOCKS, ids=str)
    def test_values_stay_in_their_token(
        self, unit: str, dtype: str, block: tuple[int, int], value: float
    ) -> None:
        packed, x = pack((64, 96), block, dtype, density=0.7), activations(40, 96)
        expected = ops.linear(x, packed, activation="gelu")
        broken = x.clone()
        broken[17, int(packed.kept().any(0).nonzero()[0])] = value
        y = ops.linear(broken, packed, activation="gelu")
        others = torch.arange(40) != 17
        assert torch.equal(y[others], expected[others])
        assert not y[17].isfinite().all()

    @pytest.mark.parametrize("block", [(16, 1), (32, 2), (64, 4)], ids=str)
    def test_values_in_a_pruned_column_are_not_read(self, unit: str, block: tuple[int, int]) -> None:
        packed, x = pack((40, 96), block, density=0.15), activations(40, 96)
        expected = ops.linear(x, packed)
        pruned = ~packed.kept().any(0)
        assert pruned.any()
        x[:, pruned] = torch.nan
        assert torch.equal(ops.linear(x, packed), expected)


def float32_sums(x: Tensor, packed: formats.RowPanelSparse) -> Tensor:
    """Return x [1, in] @ W.T in float32, before it is rounded: each bias uncovers the next eight bits."""
    found = torch.zeros(packed.shape[0])
    for _ in range(3):
        found += ops.linear(x.float(), packed, -found)[0]
    return found


def flushed(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < 2.0**-126, np.copysign(np.float32(0), values), values).astype(np.float32)


def tile_product(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return TDPBF16PS by its definition, for float32 c [rows], a [rows, 32] and one token b [32].

    Two sums of fused multiply-adds, of the even and of the odd columns, are added to each other, then to c;
    denormals are zero. The products of bf16 are exact in float64.
    """
    pair = np.zeros((2, len(c)), np.float32)
    for k in range(0, 32, 2):
        for j in range(2):
            product = flushed(a[:, k + j]).astype(np.float64) * np.float64(flushed(b[k + j]))
            pair[j] = flushed((pair[j].astype(np.float64) + product).astype(np.float32))
    return flushed(flushed(c) + flushed(pair[0] + pair[1]))


class TestTiles:
    @pytest.mark.parametrize("magnitude", [1.0, 1e-18], ids=["normal", "denormal_products"])
    def test_have_the_bits_of_the_instructions_definition(self, magnitude: float) -> None:
        if EMULATED not in sets():
            pytest.skip("the library has no emulated tiles")
        weight = torch.randn(32, 96, generator=torch.Generator().manual_seed(4)) * 2.0**20
        packed = formats.RowPanelSparse.from_dense(weight * magnitude, block=(16, 32))
        dense = packed.to_dense().float().numpy()
        x = activations(1, 96) * torch.where(torch.rand(96) < 0.3, 2.0**-20 * magnitude, 1.0).to(BF16)
        tokens, sums = x.float().numpy()[0], np.zeros(32, np.float32)
        for k in range(0, 96, 32):
            sums = tile_product(sums, dense[:, k : k + 32], tokens[k : k + 32])
        with using(EMULATED):
            assert float32_sums(x, packed).tolist() == sums.tolist()

    @pytest.mark.skipif("amx" not in INSTRUCTION_SETS, reason="this machine has no AMX")
    @pytest.mark.parametrize("activation", ["none", "gelu", "gelu_tanh"])
    @pytest.mark.parametrize(("dtype", "block"), BLOCKS, ids=str)
    def test_real_and_emulated_have_the_same_bits(
        self, dtype: str, block: tuple[int, int], activation: str
    ) -> None:
        packed, answers = pack((200, 300), block, dtype), []
        for name in ("amx", EMULATED):
            with using(name):
                answers.append(
                    [ops.linear(activations(m, 300), packed, None, activation) for m in (1, 40, 100)]
                )
        for real, emulated in zip(*answers, strict=True):
            assert torch.equal(real, emulated)

    @pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh"])
    @pytest.mark.parametrize("block", INT8_BLOCKS, ids=str)
    def test_and_dot_products_of_int8_have_the_same_bits(
        self, block: tuple[int, int], activation: str
    ) -> None:
        packed, x, answers = pack((200, 300), block, "int8"), activations(40, 300), []
        for name in sets():
            with using(name):
                answers.append(ops.linear(x, packed, torch.linspace(-3, 3, 200), activation))
        assert all(torch.equal(answer, answers[0]) for answer in answers)

    def test_emulated_are_chosen_by_name_only(self) -> None:
        assert EMULATED not in cpu.instruction_sets()
        if EMULATED in sets():
            with using(EMULATED):
                assert cpu.instruction_set() == EMULATED

    def test_are_used_where_the_machine_has_them(self) -> None:
        needed = ("avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
        reasons = native.extensions()
        usable = all(reasons.get(name, "missing") is None for name in needed)
        assert ("amx" in INSTRUCTION_SETS) == (usable and "amx" in native.built_objects())


class TestPairedPanels:
    @pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh"])
    @pytest.mark.parametrize(("dtype", "block"), BLOCKS, ids=str)
    def test_give_the_bits_of_row_major_activations(
        self, unit: str, dtype: str, block: tuple[int, int], activation: str
    ) -> None:
        packed, x = pack((100, 150), block, dtype), activations(40, 150)
        bias = torch.linspace(-2, 2, 100)
        y = paired.linear(paired.pair(x), packed, bias, activation)
        assert torch.equal(paired.unpair(y, 40, 100), ops.linear(x, packed, bias, activation))
        assert not y[:, 50:].any(), "rows past the last are activation(0)"

    def test_need_a_kernel_and_enough_features(self, unit: str) -> None:
        packed, bias = pack((32, 100), (32, 2)), torch.zeros(32)
        with pytest.raises(
            ValueError, match="x has 64 features; it must have a multiple of 64 of at least 100"
        ):
            paired.linear(paired.pair(torch.zeros(1, 64)), packed, bias)
        with using("baseline"), pytest.raises(ValueError, match="baseline has no kernel for RowPanelSparse"):
            paired.linear(paired.pair(torch.zeros(1, 100)), packed, bias)
