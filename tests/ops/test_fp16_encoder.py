"""The native encoder in float16 against float64: layers, lengths, its range, batches and threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sparsebert_kernels.cpu import fp16, native
from sparsebert_kernels.cpu.encoder import BeyondFp16, NativeEncoder, NativeEnds, has_engine, supports
from sparsebert_kernels.cpu.encoder_parts import EncoderEnds, EncoderLayer, HeadGroup
from sparsebert_kernels.formats import ElementFp16, ElementSparse
from tests.ops.encoder_contract import Sequences, Small
from tests.ops.encoder_problem import ACTIVATIONS, LENGTHS, Problem, masked, reference

FP16 = torch.float16
ROUNDING = 2.0**-11  # the largest relative error of a number in fp16
pytestmark = pytest.mark.skipif(not native.available(), reason="no native library")


@pytest.fixture(autouse=True, scope="module", params=["emulated", fp16.EXTENSION])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine in plain C++, and that of this machine's AVX512-FP16."""
    if request.param == "emulated":
        with fp16.emulation():
            yield request.param
    elif reason := fp16.why_unavailable():
        pytest.skip(f"no AVX512-FP16: {reason}")
    else:
        yield request.param


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rounded(problem: Problem) -> tuple[list[EncoderLayer], list[list[Tensor]]]:
    """The layers of a problem in fp16, and their dense weights as fp16 holds them."""
    layers, dense = problem.layers()
    dense = [[weight.half().float() for weight in weights] for weights in dense]
    in_fp16 = []
    for layer, weights in zip(layers, dense, strict=True):
        joint = layer.weights[1] is None
        matrices = [torch.cat(weights[:3]), None, None, *weights[3:]] if joint else weights
        packed = [None if each is None else ElementFp16.from_dense(each) for each in matrices]
        in_fp16.append(replace(layer, weights=packed))
    return in_fp16, dense


def expected_error(dense: Sequence[Sequence[Tensor]]) -> float:
    """The relative error of independent roundings, none of which grows on its way through the layers.

    Each number is rounded where it is stored: the variance is at most a sixth of ``ROUNDING`` squared. A sum
    of n products is rounded n times, at partial sums with the variance of i products each: together n / 12.
    """
    variance = 1 / 6
    for weights in dense:
        products = [float((weight != 0).sum(1).float().mean()) for weight in weights]
        stored = 4  # context, both norms, and the input of the next layer
        variance += stored / 6 + sum(n / 12 + 1 / 6 for n in products)
    return float(ROUNDING * variance**0.5)


def check(problem: Problem) -> None:
    torch.manual_seed(3)
    layers, dense = rounded(problem)
    x, mask = problem.batch()
    exact = reference(layers, dense, x, mask, torch.float64)
    answer = NativeEncoder(layers, FP16)(x, mask)
    assert answer.dtype == torch.float32
    # Residuals and norms damp errors: they are a sixth to a third of it, in bf16 they would be beyond it.
    assert (answer - exact).norm() <= expected_error(dense) * exact.norm()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("density", [0.1, 0.4, 1.0])
def test_activations_and_densities(density: float, activation: str) -> None:
    check(Problem(density=density, activation=activation))


MODERN = Problem(joint=True, pre_norm=True, gated=True, rotary=True, bias=False)


@pytest.mark.parametrize(
    "problem",
    [
        *(Problem(lengths=lengths) for lengths in (*LENGTHS, (200,))),
        Problem(hidden=5, inner=3, heads=(HeadGroup(1, 3, 2),)),
        Problem(heads=(HeadGroup(1, 7, 3), HeadGroup(3, 1, 12), HeadGroup(1, 16, 1))),
        Problem(hidden=300, inner=800, heads=(HeadGroup(4, 64, 64),), lengths=(40,), density=0.1),
        Problem(bias=False),
        Problem(density=0.0),
        Problem(joint=True),
        Problem(joint=True, heads=(HeadGroup(3, 5, 7), HeadGroup(1, 3, 1))),
        Problem(pre_norm=True),
        Problem(gated=True, activation="relu"),
        Problem(reach=4),
        Problem(reach=100, lengths=(70, 3, 40)),
        Problem(window=3, lengths=(1, 2, 90, 4)),
        Problem(window=5, reach=7, lengths=(40, 41)),
        Problem(rotary=True),
        MODERN,
        replace(MODERN, window=6, lengths=(33, 150), activation="gelu_tanh", bias=True),
    ],
    ids=str,
)
def test_sizes_and_kinds_of_layers(problem: Problem) -> None:
    check(problem)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    groups = st.builds(HeadGroup, st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))
    return Problem(
        hidden=draw(st.integers(4, 60)),
        inner=draw(st.integers(4, 60)),
        heads=tuple(draw(st.lists(groups, min_size=1, max_size=3))),
        joint=draw(st.booleans()),
        pre_norm=draw(st.booleans()),
        gated=draw(st.booleans()),
        window=draw(st.none() | st.integers(0, 40)),
        reach=draw(st.none() | st.integers(0, 40)),
        lengths=tuple(draw(st.lists(st.integers(0, 80), min_size=1, max_size=6).filter(any))),
        density=draw(st.sampled_from((0.05, 0.3, 1.0))),
        activation=draw(st.sampled_from(tuple(ACTIVATIONS))),
        bias=draw(st.booleans()),
    )


@settings(max_examples=15)
@given(problems())
def test_random_problems(problem: Problem) -> None:
    check(problem)


@pytest.fixture
def small() -> Small:
    torch.manual_seed(0)
    problem = Problem()
    return (NativeEncoder(rounded(problem)[0], FP16), *problem.batch())


class TestSequences(Sequences):
    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
    def test_nan_and_inf_stay_in_their_sequence(
        self, small: Small, value: float, instruction_set: str
    ) -> None:
        """Nothing is returned for a batch with them; the next batch is not affected."""
        encoder, x, mask = small
        clean = encoder(x, mask)
        spoilt = x.clone()
        spoilt[1, 2, 3] = value
        with pytest.raises(BeyondFp16, match=r"beyond fp16's range \(65504\) or not finite"):
            encoder(spoilt, mask)
        assert torch.equal(encoder(x, mask), clean)

    def test_a_sequence_has_the_same_bits_in_every_batch(self, small: Small) -> None:
        encoder, x, mask = small
        together = encoder(x, mask)
        for row, kept, answer in zip(x, mask, together, strict=True):
            before = torch.randn(1, int(kept.sum()), x.shape[2])
            alone = encoder(torch.cat((before, row[kept][None])))[1]
            assert torch.equal(alone, answer[kept])

    def test_threads_change_no_bit(self, small: Small) -> None:
        encoder, x, mask = small
        x, mask = x.repeat(9, 1, 1), mask.repeat(9, 1)
        alone = encoder(x, mask)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(encoder(x, mask), alone)


def scaled(layers: Sequence[EncoderLayer], name: str, factor: float) -> list[EncoderLayer]:
    """Layers of which the first has a larger parameter."""
    first, *others = layers
    if name.isdigit():
        weights: list[Any] = list(first.weights)
        weights[int(name)] = ElementFp16.from_dense(weights[int(name)].to_dense().float() * factor)
        return [replace(first, weights=weights), *others]
    if name == "bias":
        biases = [None if bias is None else bias * factor for bias in first.biases]
        return [replace(first, biases=biases), *others]
    weight, bias = getattr(first, name)
    return [replace(first, **{name: (weight * factor, bias)}), *others]


class TestRange:
    """Values beyond 65504, wherever they arise, are noticed by all threads."""

    @pytest.mark.parametrize("threads", [1, 2])
    @pytest.mark.parametrize(
        ("problem", "name", "factor"),
        [
            (Problem(), "0", 5e4),  # query
            (Problem(), "2", 5e4),  # value
            (Problem(), "3", 5e4),  # output
            (Problem(), "4", 5e4),  # up
            (Problem(activation="relu"), "4", 5e4),
            (Problem(), "5", 5e4),  # down
            (Problem(), "bias", 1e5),
            (Problem(), "attention_norm", 3e5),
            (Problem(), "output_norm", 3e5),
            (Problem(joint=True), "0", 5e4),
            (replace(MODERN, pre_norm=False, bias=True), "4", 2e3),  # the product with the gate
        ],
        ids=lambda value: str(value) if not isinstance(value, Problem) else "",
    )
    def test_values_beyond_it(self, problem: Problem, name: str, factor: float, threads: int) -> None:
        torch.manual_seed(3)
        layers, _ = rounded(problem)
        x, mask = problem.batch()
        assert NativeEncoder(layers, FP16)(x, mask).isfinite().all()
        torch.set_num_threads(threads)
        with pytest.raises(BeyondFp16):
            NativeEncoder(scaled(layers, name, factor), FP16)(x, mask)

    def test_of_the_last_norm(self) -> None:
        """No linear layer comes after it."""
        problem = Problem()
        layers, _ = rounded(problem)
        layers = [layers[0], *scaled(layers[1:], "output_norm", 3e5)]
        with pytest.raises(BeyondFp16):
            NativeEncoder(layers, FP16)(*problem.batch())

    def test_minus_infinity_before_relu(self) -> None:
        problem = Problem(activation="relu", hidden=8, density=1.0)
        layers, _ = rounded(problem)
        first = layers[0]
        up = ElementFp16.from_dense(torch.full((72, 8), -4e4))
        norm = (torch.full((8,), 0.01), torch.ones(8) * 10)
        layers[0] = replace(first, weights=[*first.weights[:4], up, first.weights[5]], attention_norm=norm)
        with pytest.raises(BeyondFp16):
            NativeEncoder(layers, FP16)(*problem.batch())

    @pytest.mark.parametrize(("value", "holds"), [(65504.0, True), (65519.0, False), (1e30, False)])
    def test_of_the_input(self, small: Small, value: float, holds: bool) -> None:
        encoder, x, mask = small
        x[0, 3, 7] = value
        if holds:
            assert encoder(x, mask).isfinite().all()
        else:
            with pytest.raises(BeyondFp16):
                encoder(x, mask)

    def test_of_the_last_residual(self) -> None:
        problem = replace(MODERN, gated=False, rotary=False)
        first, last = rounded(problem)[0]
        x, mask = problem.batch()
        x[:, :, 5] = 6e4
        assert NativeEncoder([first, last], FP16)(x, mask).isfinite().all()
        last = replace(last, biases=[*last.biases[:5], torch.full((40,), 1e4)])
        with pytest.raises(BeyondFp16):
            NativeEncoder([first, last], FP16)(x, mask)

    def test_of_a_rotated_key_whose_score_is_minus_infinity(self) -> None:
        """Softmax would turn it into a weight of 0."""
        problem = Problem(hidden=8, heads=(HeadGroup(1, 2, 4),), rotary=True, lengths=(5,))
        layers, _ = rounded(problem)
        query, key = torch.full((2,), -1e-3), torch.full((2,), 4e4)
        table = torch.tensor([[1.0, -1.0], *[[1.0, 0.0]] * 4])  # the first key becomes (8e4, 0)
        layers = [
            replace(
                layer,
                weights=[ElementFp16.from_dense(torch.zeros(2, 8))] * 2 + [*layer.weights[2:]],
                biases=[query, key, *layer.biases[2:]],
                rotary=table,
            )
            for layer in layers
        ]
        with pytest.raises(BeyondFp16):
            NativeEncoder(layers, FP16)(*problem.batch())

    def test_small_values_lose_no_more_than_fp16_does(self, small: Small) -> None:
        encoder, x, mask = small
        assert torch.equal(encoder(x * 1e-9, mask), encoder(x * 0, mask))

    def test_what_lies_past_the_last_token_does_not_count(self, small: Small) -> None:
        """Memory of an earlier call, whose values were beyond the range, is no reason to refuse a batch."""
        encoder, x, mask = small
        clean = encoder(x[:, :5], mask[:, :5])
        spoilt = x.clone()
        spoilt[:] = torch.nan
        with pytest.raises(BeyondFp16):
            encoder(spoilt, mask)
        assert torch.equal(encoder(x[:, :5], mask[:, :5]), clean)


class TestEnds:
    """Embeddings before the layers, LayerNorm and pooler after them, in the same call."""

    def ends(self, width: int, **changes: Any) -> EncoderEnds:
        torch.manual_seed(5)
        projection = masked((40, width), "element", 0.5).half().float()
        pooler = masked((13, 40), "element", 0.5).half().float()
        tables = {
            "words": torch.randn(50, width),
            "positions": torch.randn(60, width),
            "embedding_norm": (torch.rand(width) + 0.5, torch.randn(width)),
            "projection": None if width == 40 else ElementFp16.from_dense(projection),
            "projection_bias": None if width == 40 else torch.randn(40),
            "final_norm": (torch.rand(40) + 0.5, torch.randn(40)),
            "pooler": ElementFp16.from_dense(pooler),
            "pooler_bias": torch.randn(13),
            "epsilons": (1e-3, 1e-5),
        }
        return EncoderEnds(**tables | changes)  # type: ignore[arg-type]

    @pytest.mark.parametrize("width", [40, 23], ids=["as wide", "projected"])
    def test_are_near_those_in_float64(self, width: int) -> None:
        ends = self.ends(width)
        torch.manual_seed(3)
        layers, dense = rounded(Problem())
        mask = torch.arange(33) < torch.tensor((9, 33, 1))[:, None]
        ids = torch.randint(0, 50, mask.shape)
        states, pooled, _ = NativeEncoder(layers, FP16).of_ids(ids, mask, None, NativeEnds(ends, FP16))
        assert ends.words is not None
        assert ends.positions is not None
        assert ends.embedding_norm is not None
        x = (ends.words[ids] + ends.positions[:33]).double()
        x = F.layer_norm(x, (width,), *(each.double() for each in ends.embedding_norm), ends.epsilons[0])
        if ends.projection is not None and ends.projection_bias is not None:
            x = F.linear(x, ends.projection.to_dense().double(), ends.projection_bias.double())
        x = reference(layers, dense, x, mask, torch.float64)
        assert ends.final_norm is not None
        assert ends.pooler is not None
        assert ends.pooler_bias is not None
        x = F.layer_norm(x, (40,), *(each.double() for each in ends.final_norm), ends.epsilons[1])
        x = x * mask[..., None]
        exact_pooled = F.linear(x[:, 0], ends.pooler.to_dense().double(), ends.pooler_bias.double()).tanh()
        assert pooled is not None
        assert (states - x).norm() <= expected_error(dense) * x.norm()
        assert (pooled - exact_pooled).norm() <= expected_error(dense) * exact_pooled.norm()

    def test_many_sequences_are_pooled(self) -> None:
        ends = NativeEnds(self.ends(40), FP16)
        encoder = NativeEncoder(rounded(Problem())[0], FP16)
        ids = torch.randint(0, 50, (70, 6))
        torch.set_num_threads(2)
        _, pooled, _ = encoder.of_ids(ids, None, None, ends)
        torch.set_num_threads(1)
        assert pooled is not None
        for number in (0, 15, 16, 69):
            _, alone, _ = encoder.of_ids(ids[number : number + 1], None, None, ends)
            assert alone is not None
            assert torch.equal(alone[0], pooled[number])

    @pytest.mark.parametrize("name", ["words", "embedding_norm", "final_norm", "pooler_bias"])
    def test_values_beyond_the_range(self, name: str) -> None:
        usual = getattr(self.ends(40), name)
        large = tuple(each * 3e5 for each in usual) if isinstance(usual, tuple) else usual * 3e5
        encoder = NativeEncoder(rounded(Problem())[0], FP16)
        ids = torch.randint(0, 50, (3, 6))
        encoder.of_ids(ids, None, None, NativeEnds(self.ends(40), FP16))
        with pytest.raises(BeyondFp16):
            encoder.of_ids(ids, None, None, NativeEnds(self.ends(40, **{name: large}), FP16))


def test_weights_of_other_formats_are_refused() -> None:
    problem = Problem()
    layers, _ = problem.layers()
    assert not supports(ElementSparse.from_dense(torch.ones(3, 3)), FP16)
    assert supports(ElementFp16.from_dense(torch.ones(3, 3)), FP16)
    with pytest.raises(ValueError, match="the library lacks their formats"):
        NativeEncoder(layers, FP16)(*problem.batch())
    with pytest.raises(ValueError, match="the library lacks their formats"):
        NativeEncoder(rounded(problem)[0])(*problem.batch())
    with pytest.raises(ValueError, match=r"must be \[batch, tokens, 40\] of torch.float32 on cpu"):
        NativeEncoder(rounded(problem)[0], FP16)(problem.batch()[0].half())


def test_weights_packed_in_fp32_are_rounded_and_share_the_index() -> None:
    packed = ElementSparse.from_dense(masked((70, 300), "element", 0.2))
    in_fp16 = ElementFp16.from_fp32(packed)
    assert torch.equal(in_fp16.to_dense(), packed.to_dense().half())
    assert in_fp16.columns is packed.columns
    assert torch.equal(in_fp16.kept(), packed.kept())
    with pytest.raises(ValueError, match=r"weight 70000 is beyond the range of fp16 \(65504\)"):
        ElementFp16.from_fp32(ElementSparse.from_dense(torch.full((2, 2), 7e4)))


def test_a_cpu_without_the_unit_has_no_engine(instruction_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp16, "_emulated", False)
    lacks = native.extensions().get(fp16.EXTENSION, native.CPU_LACKS_IT) is not None
    assert has_engine(FP16) == (not lacks)
    if lacks:
        problem = Problem()
        with pytest.raises(ValueError, match="the library lacks their formats"):
            NativeEncoder(rounded(problem)[0], FP16)(*problem.batch())
