"""Layers of the native encoder against float64: shapes, formats, lengths, instruction sets and threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsebert_kernels.cpu.encoder import BadTokens, NativeEncoder, OutOfRange, supports
from sparsebert_kernels.cpu.encoder_parts import DensePanel, HeadGroup
from sparsebert_kernels.formats import ElementSparse
from tests.ops.backends import INSTRUCTION_SETS, using
from tests.ops.encoder_contract import Sequences, Small
from tests.ops.encoder_problem import ACTIVATIONS, LENGTHS, Problem, reference
from tests.ops.special_tensors import SPECIAL

pytestmark = pytest.mark.skipif(not INSTRUCTION_SETS, reason="no native library")

FORMATS = ("element", "vector2", "vector4", "vector8", "dense")


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
        *(Problem(lengths=lengths) for lengths in (*LENGTHS, (8,), (200,))),
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
def small() -> Small:
    problem = Problem(formats=("element", "element", "vector4", "vector4", "dense", "element"))
    return (NativeEncoder(problem.layers()[0]), *problem.batch())


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


class TestSequences(Sequences):
    def test_a_sequence_has_the_same_bits_in_every_batch(self, small: Small, instruction_set: str) -> None:
        encoder, x, mask = small
        together = encoder(x, mask)
        for row, kept, answer in zip(x, mask, together, strict=True):
            # Tokens before it move it to other lanes and panels.
            before = torch.randn(1, int(kept.sum()), x.shape[2])
            alone = encoder(torch.cat((before, row[kept][None])))[1]
            assert torch.equal(alone, answer[kept])

    def test_padding_may_lie_anywhere(self, small: Small) -> None:
        encoder, x, _ = small
        mask = torch.rand(x.shape[:2]) < 0.5
        answer = encoder(x, mask)
        for row, kept, result in zip(x, mask, answer, strict=True):
            if kept.any():
                assert torch.equal(encoder(row[kept][None])[0], result[kept])

    @pytest.mark.parametrize("special", SPECIAL)
    def test_reads_tensors_without_plain_memory(
        self, small: Small, special: Callable[[Tensor], Tensor]
    ) -> None:
        encoder, x, mask = small
        inputs = special(x)  # `zero` also sets x to zero
        assert torch.equal(encoder(inputs, mask), encoder(x, mask))


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
