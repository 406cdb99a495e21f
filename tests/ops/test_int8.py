"""int8 layers: exact integer sums on every unit, whatever the shape, and each token by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsebert_kernels import formats, ops, quantization, reference
from sparsebert_kernels.cpu import int8, native
from sparsebert_kernels.formats import VectorInt8
from tests.ops.backends import INSTRUCTION_SETS, using

UNITS = int8.units()
needs_library = pytest.mark.skipif(not UNITS, reason="no native library")


@pytest.fixture(params=UNITS or ("none",))
def unit(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every unit in turn."""
    if not UNITS:
        pytest.skip("no native library")
    int8.use_unit(request.param)
    yield request.param
    int8.use_unit(None)


def random_mask(rows: int, columns: int, vector_rows: int, density: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    live = torch.rand(-(-rows // vector_rows), columns, generator=generator) < density
    return live.repeat_interleave(vector_rows, 0)[:rows]


def problem(
    tokens: int, rows: int, columns: int, *, vector_rows: int = 4, density: float = 0.3, seed: int = 0
) -> tuple[Tensor, VectorInt8]:
    """Return x and a packed weight whose scales are 1: the results are the integer sums times x's scales."""
    generator = torch.Generator().manual_seed(seed)
    mask = random_mask(rows, columns, vector_rows, density, seed)
    weight = torch.randint(-127, 128, (rows, columns), generator=generator).float()
    packed = formats.pack(weight, mask, format="vector_int8", vector_rows=vector_rows)
    assert isinstance(packed, VectorInt8)
    ones = torch.ones_like(packed.scales)
    return torch.randn(tokens, columns, generator=generator), packed.replace(scales=ones)


def integer_sums(x: Tensor, packed: VectorInt8) -> Tensor:
    """Return the sums in numpy's integers."""
    values = quantization.quantize_tokens(x).values.numpy().astype("int64")
    return torch.from_numpy(values @ packed.quantized().values.numpy().astype("int64").T)


def assert_exact(x: Tensor, packed: VectorInt8, y: Tensor) -> None:
    """One multiplication, by the scale of the token, separates the results from the integer sums."""
    scales = quantization.quantize_tokens(x).scales
    assert torch.equal(y, integer_sums(x, packed).float() * scales[:, None])


@needs_library
@given(
    st.sampled_from(UNITS or ("none",)),
    st.integers(1, 140),
    st.integers(1, 150),
    st.integers(1, 90),
    st.sampled_from((2, 4, 8)),
    st.sampled_from((0.0, 0.1, 0.5, 1.0)),
    st.integers(1, 3),
)
def test_sums_are_exact_for_any_shape(
    name: str, tokens: int, rows: int, columns: int, vector_rows: int, density: float, threads: int
) -> None:
    before = torch.get_num_threads()
    x, packed = problem(tokens, rows, columns, vector_rows=vector_rows, density=density, seed=rows)
    int8.use_unit(name)
    torch.set_num_threads(threads)
    try:
        assert_exact(x, packed, ops.linear(x, packed))
    finally:
        int8.use_unit(None)
        torch.set_num_threads(before)


def test_sums_that_saturate_sixteen_bits_are_exact(unit: str) -> None:
    """Every product is the largest: pairs of them exceed 16 bits, and 3072 of them 24 bits."""
    packed = formats.pack(torch.ones(8, 3072), format="vector_int8")
    x = torch.ones(5, 3072)
    x[1], x[2, ::2], x[3] = -1, -1, 0
    y = ops.linear(x, packed.replace(scales=torch.ones(8)))
    assert isinstance(packed, VectorInt8)
    assert_exact(x, packed, y)
    assert y[0, 0] == torch.tensor(3072.0 * 127 * 127) * torch.tensor(1.0) / 127


def test_values_next_to_ties_are_rounded_as_in_torch(unit: str) -> None:
    """A rate that differs in its last bit would round many of them to the next integer."""
    generator = torch.Generator().manual_seed(5)
    most = torch.rand(200, 1, generator=generator) + 1
    ties = torch.randint(0, 126, (200, 63), generator=generator) + 0.5
    nearest = (ties.double() * most / 127).float()
    x = torch.cat((most, torch.nextafter(nearest, most), nearest), 1)
    packed = formats.pack(torch.eye(127), format="vector_int8")
    assert isinstance(packed, VectorInt8)
    packed = packed.replace(scales=torch.ones_like(packed.scales))
    assert_exact(x, packed, ops.linear(x, packed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh", "tanh"])
def test_scales_bias_and_activation_follow(unit: str, dtype: torch.dtype, activation: str) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(45, 70, generator=generator) / 5, torch.randn(45, generator=generator)
    packed = formats.pack(weight, random_mask(45, 70, 4, 0.4, 1), format="vector_int8")
    x = torch.randn(2, 39, 70, generator=generator).to(dtype)
    y = ops.linear(x, packed, bias, activation)
    tokens = quantization.quantize_tokens(x.reshape(-1, 70))
    assert isinstance(packed, VectorInt8)
    exact = tokens.values.double() @ packed.quantized().values.double().t()
    exact = exact * tokens.scales.double()[:, None] * packed.scales[:45].double() + bias.double()
    expected = reference.activate(exact, activation).view(2, 39, 45)
    assert y.shape == expected.shape
    assert y.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


def test_is_near_the_layer_in_fp32(unit: str) -> None:
    generator = torch.Generator().manual_seed(4)
    weight, mask = torch.randn(96, 256, generator=generator), random_mask(96, 256, 4, 0.2, 2)
    x = torch.randn(64, 256, generator=generator)
    exact = x.double() @ torch.where(mask, weight, 0).double().t()
    y = ops.linear(x, formats.pack(weight, mask, format="vector_int8"))
    assert (y - exact).norm() / exact.norm() < 0.01


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("limit", [None, 4.0])
def test_a_token_that_is_not_finite_is_nan_and_no_other(unit: str, bad: float, limit: float | None) -> None:
    """A scale belongs to the whole token: its results are NaN even in rows that keep nothing."""
    mask = random_mask(20, 30, 4, 0.5, 5)
    mask[:4] = False
    packed = formats.pack(torch.randn(20, 30), mask, format="vector_int8", limit=limit)
    clean = torch.randn(70, 30, generator=torch.Generator().manual_seed(6))
    x = clean.clone()
    x[3, 29] = x[66, 0] = bad
    y, expected = ops.linear(x, packed), ops.linear(clean, packed)
    rows = torch.zeros(70, dtype=torch.bool)
    rows[[3, 66]] = True
    assert y[rows].isnan().all()
    assert torch.equal(y[~rows], expected[~rows])


def test_zeros_equal_values_and_tiny_tokens(unit: str) -> None:
    packed = formats.pack(torch.ones(4, 6), format="vector_int8")
    x = torch.tensor([0.0, 0.25, -3.0, 1e-25, 3e38])[:, None].expand(5, 6)
    y = ops.linear(x, packed, torch.full((4,), 0.5))
    expected = torch.tensor([0.5, 2.0, -17.5, 0.5, 18e38])
    torch.testing.assert_close(y, expected[:, None].expand(5, 4), rtol=1e-6, atol=0)


def test_a_calibrated_limit_saturates(unit: str) -> None:
    packed = formats.pack(torch.eye(4), format="vector_int8", limit=2.0)
    x = torch.tensor([[1.0, 2.0, 5.0, -5.0]])
    expected = torch.tensor([[64 * 2 / 127, 2.0, 2.0, -2.0]])
    torch.testing.assert_close(ops.linear(x, packed), expected, rtol=1e-6, atol=0)


def test_bits_depend_on_neither_batch_nor_threads(unit: str) -> None:
    x, packed = problem(150, 100, 60)
    whole = ops.linear(x, packed, activation="gelu")
    one_by_one = torch.cat([ops.linear(token[None], packed, activation="gelu") for token in x])
    assert torch.equal(one_by_one, whole)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(ops.linear(x, packed, activation="gelu"), whole)
        assert torch.equal(ops.linear(x[:70], packed, activation="gelu"), whole[:70])
    finally:
        torch.set_num_threads(before)


def test_strided_and_empty_tokens(unit: str) -> None:
    x, packed = problem(20, 30, 40)
    wide = torch.full((20, 50), torch.nan)
    wide[:, 5:45] = x
    assert torch.equal(ops.linear(wide[:, 5:45], packed), ops.linear(x, packed))
    assert torch.equal(ops.linear(x.t().contiguous().t(), packed), ops.linear(x, packed))
    assert ops.linear(x[:0], packed).shape == (0, 30)


def test_several_layers_share_the_rounded_tokens(unit: str) -> None:
    x, first = problem(33, 20, 40)
    _, other = problem(33, 70, 40, vector_rows=8, seed=7)
    bias = torch.randn(70)
    assert ops.can_share([first, other])
    outputs = ops.linear_shared(x, (first, other), (None, bias))
    assert torch.equal(outputs[0], ops.linear(x, first))
    assert torch.equal(outputs[1], ops.linear(x, other, bias))


def test_calibrated_layers_do_not_share_a_call(unit: str) -> None:
    x, first = problem(9, 8, 12)
    limited = first.replace(limit=torch.tensor([1.0]))
    assert not ops.can_share([first, limited])
    outputs = ops.linear_shared(x, (first, limited), (None, None))
    assert torch.equal(outputs[1], ops.linear(x, limited))


class TestWithoutTheLibrary:
    @pytest.fixture(autouse=True)
    def _torch_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native, "supports", lambda format, dtype, x: False)

    def test_sums_are_as_exact(self) -> None:
        x, packed = problem(9, 30, 40)
        assert_exact(x, packed, ops.linear(x, packed))

    def test_other_dtypes_and_limits(self) -> None:
        packed = formats.pack(torch.randn(8, 12), format="vector_int8", limit=1.0)
        x = torch.randn(3, 12)
        torch.testing.assert_close(
            ops.linear(x.half(), packed).float(), ops.linear(x, packed), rtol=0.01, atol=0.01
        )


def test_gradients_of_x_are_those_of_the_dequantized_weight() -> None:
    x, packed = problem(5, 12, 20)
    x = x.requires_grad_()
    ops.linear(x, packed).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, packed.to_dense().sum(0).expand_as(x))


def test_compiles() -> None:
    x, packed = problem(5, 12, 20)
    compiled = torch.compile(lambda x: ops.linear(x, packed), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), ops.linear(x, packed))


@needs_library
def test_each_instruction_set_has_a_unit_of_its_width() -> None:
    for name in INSTRUCTION_SETS:
        with using(name):
            assert int8.unit() in UNITS
            if name in ("baseline", "neon", "avx2"):
                assert int8.unit() in {"avx2": ("avx2", "avx_vnni")}.get(name, (name, f"{name}_dotprod"))


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="int8 unit 'mmx' is not supported here; supported: "):
        int8.use_unit("mmx")
