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

from sparsebert_kernels.cpu.encoder import DensePanel, EncoderLayer, HeadGroup, NativeEncoder, supports
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

    def layers(self) -> tuple[list[EncoderLayer], list[list[Tensor]]]:
        """The layers, and their dense weights."""
        score = sum(group.heads * group.score for group in self.heads)
        value = sum(group.heads * group.value for group in self.heads)
        shapes = [(score, self.hidden)] * 2 + [(value, self.hidden), (self.hidden, value)]
        shapes += [(self.inner, self.hidden), (self.hidden, self.inner)]
        layers, dense = [], []
        for _ in range(2):
            weights = [
                masked(shape, format, self.density)
                for shape, format in zip(shapes, self.formats, strict=True)
            ]
            layers.append(
                EncoderLayer(
                    weights=[pack(*each) for each in zip(weights, self.formats, strict=True)],
                    biases=[torch.randn(rows) if self.bias else None for rows, _ in shapes],
                    attention_norm=(torch.rand(self.hidden) + 0.5, torch.randn(self.hidden)),
                    output_norm=(torch.rand(self.hidden) + 0.5, torch.randn(self.hidden)),
                    epsilons=(1e-5, 1e-3),
                    heads=self.heads,
                    scale=0.3,
                    activation=self.activation,
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

    for layer, weights in zip(layers, dense, strict=True):
        q, k, v = (F.linear(x, weights[i].to(dtype), of(layer.biases[i])) for i in range(3))
        context, score, value = [], 0, 0
        for group in layer.heads:
            for _ in range(group.heads):
                head = slice(score, score + group.score)
                scores = q[..., head] @ k[..., head].transpose(1, 2) * layer.scale
                attended = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1).nan_to_num()
                context.append(attended @ v[..., value : value + group.value])
                score, value = score + group.score, value + group.value
        attended = F.linear(torch.cat(context, -1), weights[3].to(dtype), of(layer.biases[3]))
        norms = [[of(tensor) for tensor in norm] for norm in (layer.attention_norm, layer.output_norm)]
        x = F.layer_norm(attended + x, x.shape[-1:], *norms[0], layer.epsilons[0])
        neurons = ACTIVATIONS[layer.activation](F.linear(x, weights[4].to(dtype), of(layer.biases[4])))
        down = F.linear(neurons, weights[5].to(dtype), of(layer.biases[5]))
        x = F.layer_norm(down + x, x.shape[-1:], *norms[1], layer.epsilons[1])
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


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    sizes = st.integers(4, 90)
    groups = st.builds(HeadGroup, st.integers(1, 3), st.integers(1, 20), st.integers(1, 20))
    return Problem(
        hidden=draw(sizes),
        inner=draw(sizes),
        heads=tuple(draw(st.lists(groups, min_size=1, max_size=3))),
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
