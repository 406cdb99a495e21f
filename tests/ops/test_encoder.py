"""The native encoder against float64: shapes, formats, lengths, instruction sets and threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sparsebert_kernels.cpu.encoder import (
    BadTokens,
    DensePanel,
    EncoderEnds,
    EncoderLayer,
    HeadGroup,
    NativeEncoder,
    NativeEnds,
    OutOfRange,
    supports,
)
from sparsebert_kernels.formats import ElementSparse, PackedWeight, VectorSparse
from tests.ops.backends import INSTRUCTION_SETS, using
from tests.ops.special_tensors import SPECIAL

pytestmark = pytest.mark.skipif(not INSTRUCTION_SETS, reason="no native library")

FORMATS = ("element", "vector2", "vector4", "vector8", "dense")
ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


@dataclass(frozen=True)
class Problem:
    """Two layers and a batch."""

    hidden: int = 40
    inner: int = 72
    heads: tuple[HeadGroup, ...] = (HeadGroup(2, 16, 16),)
    formats: tuple[str, ...] = ("element",) * 6
    lengths: tuple[int, ...] = (9, 33, 1)
    density: float = 0.4
    activation: str = "gelu"
    bias: bool = True
    joint: bool = False
    pre_norm: bool = False
    gated: bool = False
    window: int | None = None
    reach: int | None = None  # of a relative bias
    rotary: bool = False

    def layers(self) -> tuple[list[EncoderLayer], list[list[Tensor]]]:
        """The layers, and their dense weights."""
        score = sum(group.heads * group.score for group in self.heads)
        value = sum(group.heads * group.value for group in self.heads)
        shapes = [(score, self.hidden)] * 2 + [(value, self.hidden), (self.hidden, value)]
        shapes += [(self.inner * (1 + self.gated), self.hidden), (self.hidden, self.inner)]
        layers, dense = [], []
        heads = sum(group.heads for group in self.heads)
        angles = torch.rand(max(self.lengths), self.heads[0].score // 2) * 6
        for number in range(2):
            weights = [
                masked(shape, format, self.density)
                for shape, format in zip(shapes, self.formats, strict=True)
            ]
            packed: list[PackedWeight | None] = [
                pack(*each) for each in zip(weights, self.formats, strict=True)
            ]
            biases = [torch.randn(rows) if self.bias else None for rows, _ in shapes]
            first_norm = (torch.rand(self.hidden) + 0.5, torch.randn(self.hidden))
            relative = None if self.reach is None else torch.randn(heads, 2 * self.reach + 1)
            if self.joint:
                joined = [bias for bias in biases[:3] if bias is not None]
                packed[:3] = [pack(torch.cat(weights[:3]), self.formats[0]), None, None]
                biases[:3] = [torch.cat(joined) if joined else None, None, None]
            layers.append(
                EncoderLayer(
                    weights=packed,
                    biases=biases,
                    attention_norm=None if self.pre_norm and number == 0 else first_norm,
                    output_norm=(torch.rand(self.hidden) + 0.5, torch.randn(self.hidden)),
                    epsilons=(1e-5, 1e-3),
                    heads=self.heads,
                    scale=0.3,
                    activation=self.activation,
                    pre_norm=self.pre_norm,
                    gated=self.gated,
                    window=self.window,
                    relative_bias=relative,
                    rotary=torch.cat((angles.cos(), angles.sin()), 1) if self.rotary else None,
                )
            )
            dense.append(weights)
        return layers, dense

    def batch(self) -> tuple[Tensor, Tensor]:
        tokens = max(self.lengths)
        mask = torch.arange(tokens) < torch.tensor(self.lengths)[:, None]
        return torch.randn(len(self.lengths), tokens, self.hidden), mask


def masked(shape: tuple[int, int], format: str, density: float) -> Tensor:
    rows, columns = shape
    height = int(format[6:]) if format.startswith("vector") else 1
    mask = torch.rand(-(-rows // height), columns) < (1.0 if format == "dense" else density)
    return torch.randn(shape) / columns**0.5 * mask.repeat_interleave(height, 0)[:rows]


def pack(weight: Tensor, format: str) -> PackedWeight:
    if format == "dense":
        return DensePanel.from_dense(weight)
    if format == "element":
        return ElementSparse.from_dense(weight)
    return VectorSparse.from_dense(weight, vector_rows=int(format[6:]))


def reference(
    layers: Sequence[EncoderLayer], dense: Sequence[Sequence[Tensor]], x: Tensor, mask: Tensor, dtype: Any
) -> Tensor:
    """The same layers in torch; zero at padding."""
    x = x.to(dtype)

    def of(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(dtype)

    def norm(x: Tensor, parameters: tuple[Tensor, Tensor] | None, epsilon: float) -> Tensor:
        return x if parameters is None else F.layer_norm(x, x.shape[-1:], *map(of, parameters), epsilon)

    def rotated(x: Tensor, table: Tensor | None) -> Tensor:
        if table is None:
            return x
        cosine, sine = table[: x.shape[1]].to(dtype).chunk(2, -1)
        low, high = x.chunk(2, -1)
        return torch.cat((low * cosine - high * sine, high * cosine + low * sine), -1)

    for layer, weights in zip(layers, dense, strict=True):
        rows = [len(weight) for weight in weights[:3]]
        if layer.weights[1] is None:
            biases = [None] * 3 if layer.biases[0] is None else layer.biases[0].split(rows)
        else:
            biases = layer.biases[:3]
        inner = norm(x, layer.attention_norm, layer.epsilons[0]) if layer.pre_norm else x
        q, k, v = (F.linear(inner, weights[i].to(dtype), of(biases[i])) for i in range(3))
        context, score, value = [], 0, 0
        distance = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        for group in layer.heads:
            for _ in range(group.heads):
                head = slice(score, score + group.score)
                query, key = (rotated(each[..., head], layer.rotary) for each in (q, k))
                scores = query @ key.transpose(1, 2) * layer.scale
                if layer.relative_bias is not None:
                    reach = layer.relative_bias.shape[1] // 2
                    table = layer.relative_bias[len(context)].to(dtype)
                    scores = scores + table[distance.clamp(-reach, reach) + reach]
                seen = mask[:, None]
                if layer.window is not None:
                    seen = seen & (distance.abs() <= layer.window)
                attended = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
                context.append(attended @ v[..., value : value + group.value])
                score, value = score + group.score, value + group.value
        attended = F.linear(torch.cat(context, -1), weights[3].to(dtype), of(layer.biases[3])) + x
        if not layer.pre_norm:
            attended = norm(attended, layer.attention_norm, layer.epsilons[0])
        inner = norm(attended, layer.output_norm, layer.epsilons[1]) if layer.pre_norm else attended
        neurons = F.linear(inner, weights[4].to(dtype), of(layer.biases[4]))
        if layer.gated:
            neurons, gate = neurons.chunk(2, -1)
            neurons = ACTIVATIONS[layer.activation](neurons) * gate
        else:
            neurons = ACTIVATIONS[layer.activation](neurons)
        x = F.linear(neurons, weights[5].to(dtype), of(layer.biases[5])) + attended
        if not layer.pre_norm:
            x = norm(x, layer.output_norm, layer.epsilons[1])
    return x * mask[..., None]


def check(problem: Problem, threads: int = 1) -> None:
    """Compare with float64; the error may be a few times that of torch in float32."""
    torch.manual_seed(3)
    layers, dense = problem.layers()
    x, mask = problem.batch()
    exact = reference(layers, dense, x, mask, torch.float64)
    error_of_torch = (reference(layers, dense, x, mask, torch.float32) - exact).abs().max()
    torch.set_num_threads(threads)
    answer = NativeEncoder(layers)(x, mask)
    assert (answer - exact).abs().max() <= 4 * error_of_torch + 2e-6


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_and_activation(format: str, activation: str, instruction_set: str) -> None:
    check(Problem(formats=(format,) * 6, activation=activation))


@pytest.mark.parametrize(
    "problem",
    [
        Problem(lengths=(1,)),
        Problem(lengths=(8,)),
        Problem(lengths=(16, 16)),
        Problem(lengths=(17, 31, 32)),
        Problem(lengths=(64, 65)),
        Problem(lengths=(200,)),
        Problem(lengths=(3,) * 30),
        Problem(lengths=(0, 5, 0)),
        Problem(hidden=5, inner=3, heads=(HeadGroup(1, 3, 2),)),
        Problem(heads=(HeadGroup(1, 7, 3), HeadGroup(3, 1, 12), HeadGroup(1, 16, 1))),
        Problem(hidden=300, inner=800, heads=(HeadGroup(4, 64, 64),), lengths=(40,)),
        Problem(hidden=300, inner=800, heads=(HeadGroup(4, 64, 64),), formats=("dense",) * 6, lengths=(40,)),
        Problem(
            hidden=300, inner=800, heads=(HeadGroup(4, 64, 64),), formats=("vector4",) * 6, lengths=(40,)
        ),
        Problem(bias=False),
        Problem(density=0.0),
        Problem(formats=("dense", "element", "vector4", "vector8", "vector2", "dense")),
    ],
    ids=str,
)
def test_sizes(problem: Problem, instruction_set: str) -> None:
    check(problem)


MODERN = Problem(joint=True, pre_norm=True, gated=True, rotary=True, bias=False)


@pytest.mark.parametrize(
    "problem",
    [
        Problem(joint=True),
        Problem(joint=True, formats=("dense",) * 6, heads=(HeadGroup(3, 5, 7), HeadGroup(1, 3, 1))),
        Problem(pre_norm=True),
        Problem(gated=True, activation="relu"),
        Problem(gated=True, inner=13, formats=("dense",) * 6),
        Problem(reach=4),
        Problem(reach=100, lengths=(70, 3, 40)),
        Problem(reach=0, heads=(HeadGroup(2, 5, 3), HeadGroup(1, 8, 8))),
        Problem(window=0),
        Problem(window=3, lengths=(1, 2, 90, 4)),
        Problem(window=64, lengths=(200, 9)),
        Problem(window=5, reach=7, lengths=(40, 41)),
        Problem(rotary=True),
        Problem(rotary=True, heads=(HeadGroup(2, 6, 9),), lengths=(70, 5)),
        MODERN,
        replace(MODERN, window=6, formats=("dense",) * 6, lengths=(33, 150), activation="gelu_tanh"),
        replace(MODERN, window=6, formats=("vector4",) * 6, lengths=(33, 150), bias=True),
    ],
    ids=str,
)
def test_kinds_of_layers(problem: Problem, instruction_set: str) -> None:
    check(problem)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    sizes = st.integers(4, 90)
    rotary = draw(st.booleans())
    width = draw(st.integers(1, 10))
    one = st.builds(HeadGroup, st.integers(1, 3), st.just(2 * width), st.integers(1, 20))
    groups = st.builds(HeadGroup, st.integers(1, 3), st.integers(1, 20), st.integers(1, 20))
    return Problem(
        hidden=draw(sizes),
        inner=draw(sizes),
        heads=(draw(one),) if rotary else tuple(draw(st.lists(groups, min_size=1, max_size=3))),
        rotary=rotary,
        joint=draw(st.booleans()),
        pre_norm=draw(st.booleans()),
        gated=draw(st.booleans()),
        window=draw(st.none() | st.integers(0, 40)),
        reach=draw(st.none() | st.integers(0, 40)),
        formats=tuple(draw(st.lists(st.sampled_from(FORMATS), min_size=6, max_size=6))),
        lengths=tuple(draw(st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any))),
        density=draw(st.sampled_from((0.05, 0.3, 1.0))),
        activation=draw(st.sampled_from(tuple(ACTIVATIONS))),
        bias=draw(st.booleans()),
    )


@settings(max_examples=60)
@given(problems(), st.sampled_from(INSTRUCTION_SETS or ("none",)), st.integers(1, 3))
def test_random_problems(problem: Problem, name: str, threads: int) -> None:
    with using(name):
        check(problem, threads)


@pytest.fixture
def small() -> tuple[NativeEncoder, Tensor, Tensor]:
    problem = Problem(formats=("element", "element", "vector4", "vector4", "dense", "element"))
    return (NativeEncoder(problem.layers()[0]), *problem.batch())


Small = tuple[NativeEncoder, Tensor, Tensor]


class TestDistances:
    """Layers to which the distance between tokens matters."""

    @pytest.fixture
    def modern(self) -> Small:
        problem = replace(MODERN, window=3, reach=5, lengths=(45, 70, 20))
        torch.manual_seed(1)
        return (NativeEncoder(problem.layers()[0]), *problem.batch())

    def test_a_sequence_has_the_same_bits_in_every_batch(self, modern: Small, instruction_set: str) -> None:
        encoder, x, mask = modern
        together = encoder(x, mask)
        for row, kept, answer in zip(x, mask, together, strict=True):
            before = torch.randn(1, int(kept.sum()), x.shape[2])
            alone = encoder(torch.cat((before, row[kept][None])))[1]
            assert torch.equal(alone, answer[kept])

    def test_nan_stays_in_its_sequence(self, modern: Small, instruction_set: str) -> None:
        encoder, x, mask = modern
        clean = encoder(x, mask)
        x[1, 2, 3] = torch.nan
        answer = encoder(x, mask)
        assert torch.equal(answer[[0, 2]], clean[[0, 2]])
        assert answer[1].isnan().any()

    def test_padding_between_tokens_is_refused(self, modern: Small) -> None:
        encoder, x, mask = modern
        mask[0, 4] = False
        with pytest.raises(BadTokens, match="padding lies between the tokens of a row"):
            encoder(x, mask)

    def test_more_tokens_than_rotary_positions_are_refused(self, modern: Small) -> None:
        encoder, x, _ = modern
        with pytest.raises(OutOfRange):
            encoder(torch.cat((x, x), 1))


def test_a_long_batch_passes_in_groups_without_a_change_of_bits() -> None:
    """Each group has about 2,048 tokens; memory depends on no more than that."""
    problem = Problem(lengths=(1, 700, 0, 1024, 90, 2100, 1, 60) * 2)
    torch.manual_seed(2)
    encoder, (x, mask) = NativeEncoder(problem.layers()[0]), problem.batch()
    together = encoder(x, mask)
    for row, kept, answer in zip(x[:8], mask, together, strict=False):
        if kept.any():
            assert torch.equal(encoder(row[kept][None])[0], answer[kept])


class TestEnds:
    """Embeddings before the layers, LayerNorm and pooler after them."""

    def ends(self, width: int = 40, counted: bool = False, **changes: Any) -> EncoderEnds:
        torch.manual_seed(5)
        projection = torch.randn(40, width) / 5 if width != 40 else None
        tables = {
            "words": torch.randn(50, width),
            "positions": torch.randn(60, width),
            "types": torch.randn(2, width),
            "embedding_norm": (torch.rand(width) + 0.5, torch.randn(width)),
            "padding": 1 if counted else None,
            "projection": None if projection is None else DensePanel.from_dense(projection),
            "projection_bias": None if projection is None else torch.randn(40),
            "final_norm": (torch.rand(40) + 0.5, torch.randn(40)),
            "pooler": pack(torch.randn(13, 40) / 6, "element"),
            "pooler_bias": torch.randn(13),
            "epsilons": (1e-3, 1e-5),
        }
        return EncoderEnds(**tables | changes)  # type: ignore[arg-type]

    def expected(
        self, ends: EncoderEnds, ids: Tensor, types: Tensor | None, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        problem = Problem(lengths=(9, 33, 1))
        torch.manual_seed(3)
        layers, dense = problem.layers()
        assert ends.words is not None
        places = torch.arange(ids.shape[1]).expand(ids.shape)
        if ends.padding is not None:
            words = ids != ends.padding
            places = words.cumsum(1) * words + ends.padding
        x = ends.words[ids].double()
        if ends.types is not None:
            x = x + ends.types[torch.zeros_like(ids) if types is None else types]
        if ends.positions is not None:
            x = x + ends.positions[places]
        assert ends.embedding_norm is not None
        x = F.layer_norm(x, x.shape[-1:], *(each.double() for each in ends.embedding_norm), ends.epsilons[0])
        if ends.projection is not None:
            assert ends.projection_bias is not None
            x = F.linear(x, ends.projection.to_dense().double(), ends.projection_bias.double())
        x = reference(layers, dense, x, mask, torch.float64)
        if ends.final_norm is not None:
            norm = [each.double() for each in ends.final_norm]
            x = F.layer_norm(x, x.shape[-1:], *norm, ends.epsilons[1]) * mask[..., None]
        assert ends.pooler is not None
        assert ends.pooler_bias is not None
        return x, F.linear(x[:, 0], ends.pooler.to_dense().double(), ends.pooler_bias.double()).tanh()

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"counted": True},
            {"width": 23},
            {"types": None, "positions": None, "final_norm": None},
        ],
        ids=["all", "counted", "projected", "words"],
    )
    @pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
    def test_are_computed_in_the_same_call(
        self, changes: dict[str, Any], dtype: torch.dtype, instruction_set: str
    ) -> None:
        ends = self.ends(**changes)
        torch.manual_seed(3)
        encoder = NativeEncoder(Problem().layers()[0])
        mask = torch.arange(33) < torch.tensor((9, 33, 1))[:, None]
        ids = torch.randint(0, 50, mask.shape)
        ids[:, 5] = 1
        for types in (None, torch.randint(0, 2, mask.shape)):
            states, pooled = encoder.of_ids(ids, mask.to(dtype), types, NativeEnds(ends))
            exact, exact_pooled = self.expected(ends, ids, types, mask)
            assert pooled is not None
            assert (states - exact).abs().max() < 3e-5
            assert (pooled - exact_pooled).abs().max() < 1e-5

    @pytest.mark.parametrize("threads", [1, 3])
    def test_many_sequences_are_pooled(self, threads: int) -> None:
        ends = self.ends()
        torch.manual_seed(3)
        encoder = NativeEncoder(Problem().layers()[0])
        ids = torch.randint(0, 50, (150, 20))
        torch.set_num_threads(threads)
        _, pooled = encoder.of_ids(ids, None, None, NativeEnds(ends))
        torch.set_num_threads(1)
        assert pooled is not None
        for number in (0, 31, 32, 101, 149):
            _, alone = encoder.of_ids(ids[number : number + 1], None, None, NativeEnds(ends))
            assert alone is not None
            assert torch.equal(alone[0], pooled[number])

    @pytest.mark.parametrize("table", ["words", "types", "positions"])
    def test_numbers_outside_the_tables(self, table: str) -> None:
        encoder = NativeEncoder(Problem().layers()[0])
        ids, types = torch.zeros(2, 9).long(), torch.zeros(2, 9).long()
        if table == "words":
            ids[1, 8] = 50
        elif table == "types":
            types[0, 0] = -1
        ends = self.ends(positions=torch.randn(8 if table == "positions" else 9, 40))
        with pytest.raises(OutOfRange):
            encoder.of_ids(ids, None, types, NativeEnds(ends))

    def test_a_sequence_that_begins_with_padding(self) -> None:
        encoder = NativeEncoder(Problem().layers()[0])
        mask = torch.tensor([[True, True], [False, True]])
        with pytest.raises(BadTokens, match="begins with padding"):
            encoder.of_ids(torch.zeros(2, 2).long(), mask, None, NativeEnds(self.ends()))

    def test_that_do_not_fit(self) -> None:
        encoder = NativeEncoder(Problem().layers()[0])
        for changes in (
            {"words": torch.randn(50, 39)},
            {"pooler": pack(torch.randn(8, 41), "dense"), "pooler_bias": None},
        ):
            ends = NativeEnds(self.ends(**changes))
            with pytest.raises(ValueError, match="do not fit together"):
                encoder.of_ids(torch.zeros(1, 4).long(), None, None, ends)


class TestPadding:
    def test_a_sequence_has_the_same_bits_in_every_batch(self, small: Small, instruction_set: str) -> None:
        encoder, x, mask = small
        together = encoder(x, mask)
        for row, kept, answer in zip(x, mask, together, strict=True):
            # Tokens before it move it to other lanes and panels.
            before = torch.randn(1, int(kept.sum()), x.shape[2])
            alone = encoder(torch.cat((before, row[kept][None])))[1]
            assert torch.equal(alone, answer[kept])

    def test_is_zero_and_never_read(self, small: Small, instruction_set: str) -> None:
        encoder, x, mask = small
        answer = encoder(x, mask)
        assert not answer[~mask].any()
        assert torch.equal(encoder(torch.where(mask[..., None], x, torch.nan), mask), answer)

    def test_may_lie_anywhere(self, small: Small) -> None:
        encoder, x, _ = small
        mask = torch.rand(x.shape[:2]) < 0.5
        answer = encoder(x, mask)
        for row, kept, result in zip(x, mask, answer, strict=True):
            if kept.any():
                assert torch.equal(encoder(row[kept][None])[0], result[kept])

    def test_alone_gives_zeros(self, small: Small) -> None:
        encoder, x, mask = small
        assert not encoder(x, torch.zeros_like(mask)).any()

    @pytest.mark.parametrize("special", SPECIAL)
    def test_reads_tensors_without_plain_memory(
        self, small: Small, special: Callable[[Tensor], Tensor]
    ) -> None:
        encoder, x, mask = small
        inputs = special(x)  # `zero` also sets x to zero
        assert torch.equal(encoder(inputs, mask), encoder(x, mask))

    @pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
    def test_an_empty_batch(self, small: Small, shape: tuple[int, int]) -> None:
        encoder, x, _ = small
        assert encoder(x.new_zeros(*shape, x.shape[2])).shape == (*shape, x.shape[2])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_nan_and_inf_stay_in_their_sequence(small: Small, value: float, instruction_set: str) -> None:
    encoder, x, mask = small
    clean = encoder(x, mask)
    x[1, 2, 3] = value
    answer = encoder(x, mask)
    assert torch.equal(answer[[0, 2]], clean[[0, 2]])
    assert answer[1].isnan().any()


def test_large_scores_do_not_overflow(instruction_set: str) -> None:
    problem = Problem(formats=("dense",) * 6)
    layers, dense = problem.layers()
    layers = [replace(layer, scale=100.0) for layer in layers]
    x, mask = problem.batch()
    answer = NativeEncoder(layers)(x, mask)
    exact = reference(layers, dense, x, mask, torch.float64)
    close = (answer - exact).abs().amax(-1) < 1e-2
    # Where two keys have nearly the highest score, rounding decides between them.
    assert answer.isfinite().all()
    assert close.float().mean() > 0.9


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_change_no_bit(threads: int, end: str) -> None:
    problem = Problem(lengths=(40, 70, 0, 25))
    torch.manual_seed(0)
    encoder, (x, mask) = NativeEncoder(problem.layers()[0]), problem.batch()
    torch.set_num_threads(1)
    alone = encoder(x, mask)
    torch.set_num_threads(threads)
    assert torch.equal(encoder(x, mask), alone)


class TestRefusals:
    @pytest.mark.parametrize(
        "x",
        [torch.zeros(2, 40), torch.zeros(1, 2, 41), torch.zeros(1, 2, 40).double()],
        ids=["2d", "width", "dtype"],
    )
    def test_x(self, small: Small, x: Tensor) -> None:
        with pytest.raises(ValueError, match=r"it must be \[batch, tokens, 40\] of torch.float32 on cpu"):
            small[0](x)

    def test_mask(self, small: Small) -> None:
        encoder, x, mask = small
        for wrong in (mask[:, :-1], mask.float()):
            with pytest.raises(ValueError, match=r"it must be \[3, 33\] of torch.bool"):
                encoder(x, wrong)

    def test_layers_that_do_not_fit_together(self) -> None:
        layers, _ = Problem().layers()
        for wrong in (
            replace(layers[0], heads=(HeadGroup(2, 16, 17),)),
            replace(layers[0], heads=(HeadGroup(2, 15, 16),)),
            replace(layers[0], heads=()),
            replace(layers[0], weights=[*layers[0].weights[:5], layers[0].weights[4]]),
        ):
            encoder = NativeEncoder([replace(wrong, biases=[None] * 6)])
            with pytest.raises(ValueError, match="do not fit together"):
                encoder(torch.zeros(1, 4, 40))

    def test_bf16_weights(self) -> None:
        assert not supports(ElementSparse.from_dense(torch.ones(4, 4).bfloat16()))

    def test_weights_without_plain_memory(self) -> None:
        packed = ElementSparse.from_dense(torch.ones(4, 4))
        assert supports(packed)
        assert not supports(packed.replace(values=torch._neg_view(-packed.values)))


@pytest.mark.parametrize("rows", [1, 4, 7, 13])
def test_dense_panels_return_their_matrix(rows: int) -> None:
    weight = torch.randn(rows, 5)
    mask = torch.rand(rows, 5) < 0.5
    packed = DensePanel.from_dense(weight, mask)
    assert torch.equal(packed.to_dense(), weight * mask)
    assert torch.equal(packed.kept(), mask)
