"""The native encoder in bfloat16 against float64: shapes, blocks, lengths, instruction sets and threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsebert_kernels.cpu.encoder import NativeEncoder, NativeEnds, Reduction, has_engine, supports
from sparsebert_kernels.cpu.encoder_parts import EncoderEnds, HeadGroup
from sparsebert_kernels.cpu.row_panels import (
    cheapest_block,
    pack_row_panels,
    pad_rows,
    padded_heads,
)
from sparsebert_kernels.formats import ElementSparse, RowPanelSparse
from tests.ops import encoder_problem
from tests.ops.backends import INSTRUCTION_SETS, using
from tests.ops.encoder_contract import Sequences, Small
from tests.ops.encoder_problem import ACTIVATIONS, LENGTHS, reference

BF16 = torch.bfloat16


def _with_engine() -> list[str]:
    sets = []
    for name in (*INSTRUCTION_SETS, "amx_emulated"):
        with suppress(ValueError), using(name):
            if has_engine(BF16):
                sets.append(name)
    return sets


SETS = _with_engine()
pytestmark = pytest.mark.skipif(not SETS, reason="no instruction set here has the bfloat16 engine")
BLOCKS = tuple((rows, columns) for rows in (16, 32, 64) for columns in (1, 2, 4, 32))


@pytest.fixture(autouse=True, scope="module")
def _with_the_engine() -> Iterator[None]:
    with using(SETS[0]):
        yield


@pytest.fixture(params=SETS or ["none"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set with the engine in turn, and the emulated one."""
    with using(request.param):
        yield request.param


@dataclass(frozen=True)
class Problem(encoder_problem.Problem):
    """Two layers of row panels, whose weights bfloat16 holds exactly, and a batch."""

    hidden: int = 64
    inner: int = 96
    heads: tuple[HeadGroup, ...] = (HeadGroup(2, 32, 32),)
    blocks: tuple[tuple[int, int], ...] = ((32, 2),) * 6

    def matrix(self, place: int, shape: tuple[int, int]) -> Tensor:
        return masked(shape, self.blocks[place], self.density)

    def pack(self, place: int, weight: Tensor) -> RowPanelSparse:
        return RowPanelSparse.from_dense(weight, block=self.blocks[place])


def masked(shape: tuple[int, int], block: tuple[int, int], density: float) -> Tensor:
    blocks = torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1])) < density
    mask = blocks.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[: shape[0], : shape[1]]
    return (torch.randn(shape) / (shape[1] * max(density, 0.02)) ** 0.5 * mask).bfloat16().float()


def check(problem: Problem, threads: int = 1, dtype: torch.dtype = torch.float32) -> None:
    """Compare with float64; the error may be 1.3 times that of torch in bfloat16."""
    torch.manual_seed(3)
    layers, dense = problem.layers()
    x, mask = problem.batch()
    x = x.to(dtype)
    exact = reference(layers, dense, x, mask, torch.float64)
    error_of_torch = (reference(layers, dense, x, mask, BF16) - exact).norm()
    torch.set_num_threads(threads)
    answer = NativeEncoder(layers, BF16)(x, mask)
    assert answer.dtype == dtype
    assert (answer - exact).norm() <= 1.3 * error_of_torch


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_and_activation(block: tuple[int, int], activation: str, instruction_set: str) -> None:
    check(Problem(blocks=(block,) * 6, activation=activation))


@pytest.mark.parametrize(
    "problem",
    [
        *(Problem(lengths=lengths) for lengths in (*LENGTHS, (600,), (200, 150, 4))),
        Problem(hidden=5, inner=3, heads=(HeadGroup(1, 32, 32),)),
        Problem(heads=(HeadGroup(1, 96, 32), HeadGroup(3, 32, 64), HeadGroup(1, 64, 96))),
        Problem(hidden=300, inner=800, heads=(HeadGroup(4, 64, 64),), lengths=(40,)),
        Problem(bias=False),
        Problem(density=1.0),
        Problem(blocks=((16, 1), (64, 2), (32, 32), (16, 8), (32, 1), (64, 16))),
    ],
    ids=str,
)
def test_sizes(problem: Problem, instruction_set: str) -> None:
    check(problem)


MODERN = {"joint": True, "pre_norm": True, "gated": True, "rotary": True, "heads": (HeadGroup(2, 64, 64),)}


@pytest.mark.parametrize(
    "problem",
    [
        Problem(joint=True),
        Problem(joint=True, heads=(HeadGroup(1, 96, 32),), hidden=40),
        Problem(pre_norm=True),
        Problem(gated=True),
        Problem(gated=True, inner=34, activation="gelu_tanh"),
        Problem(gated=True, inner=40, activation="relu", hidden=33),
        Problem(rotary=True, heads=(HeadGroup(3, 64, 32),)),
        Problem(reach=5),
        Problem(reach=128, lengths=(200, 40)),
        Problem(reach=2, heads=(HeadGroup(1, 96, 32), HeadGroup(2, 32, 64))),
        Problem(window=0),
        Problem(window=3, lengths=(70, 1, 33)),
        Problem(window=20, lengths=(300,)),
        Problem(window=1000, lengths=(40, 9)),
        Problem(window=4, reach=6),
        Problem(**MODERN),
        Problem(**MODERN, window=6, lengths=(5, 190, 17)),
        Problem(**MODERN, window=64, lengths=(600, 3)),
    ],
    ids=str,
)
def test_relative_rotary_windowed_and_gated_layers(problem: Problem, instruction_set: str) -> None:
    check(problem)


@pytest.mark.parametrize("changes", [{"reach": 3}, {**MODERN, "window": 6}], ids=["relative", "modern"])
def test_their_sequences_have_the_same_bits_in_every_batch(
    changes: dict[str, Any], instruction_set: str
) -> None:
    problem = Problem(lengths=(40, 7, 33), **changes)
    encoder, (x, mask) = NativeEncoder(problem.layers()[0], BF16), problem.batch()
    together = encoder(x, mask)
    for row, kept, answer in zip(x, mask, together, strict=True):
        alone = encoder(row[kept][None])[0]
        assert torch.equal(alone, answer[kept])
        moved = encoder(x[[1, 0, 2]], mask[[1, 0, 2]])[[1, 0, 2]]
    assert torch.equal(moved[mask], together[mask])
    torch.set_num_threads(3)
    assert torch.equal(encoder(x, mask), together)
    x[1, 2, 3] = torch.nan
    answer = encoder(x, mask)
    assert torch.equal(answer[[0, 2]], together[[0, 2]])


def test_bfloat16_in_and_out(instruction_set: str) -> None:
    check(Problem(), dtype=BF16)


def test_int8_weights(instruction_set: str) -> None:
    torch.manual_seed(3)
    problem = Problem()
    layers, dense = problem.layers()
    x, mask = problem.batch()
    exact = reference(layers, dense, x, mask, torch.float64)
    layers = [
        replace(
            layer,
            weights=[RowPanelSparse.from_dense(each, block=(32, 4), dtype=torch.int8) for each in weights],
        )
        for layer, weights in zip(layers, dense, strict=True)
    ]
    answers = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        answers.append(NativeEncoder(layers, BF16)(x, mask))
    assert torch.equal(*answers)
    assert (answers[0] - exact).norm() < 0.03 * exact.norm()


class TestEnds:
    """Embeddings and pooler in the same call."""

    @pytest.mark.parametrize("padding", [None, 1], ids=["from_0", "counted"])
    @pytest.mark.parametrize("width", [64, 40], ids=["unprojected", "projected"])
    def test_from_ids_to_the_pooler(self, padding: int | None, width: int, instruction_set: str) -> None:
        torch.manual_seed(5)
        problem = Problem(lengths=(20, 5, 1, 17, 3) * 4)
        layers, dense = problem.layers()
        _, mask = problem.batch()
        words, positions, types = (torch.randn(rows, width) for rows in (50, 30, 2))
        norm = (torch.rand(width) + 0.5, torch.randn(width))
        projection = masked((64, width), (32, 2), 1.0) if width != 64 else None
        pooler, bias = masked((64, 64), (32, 2), 0.5), torch.randn(64)
        ids, kinds = torch.randint(2, 50, mask.shape), torch.randint(0, 2, mask.shape)
        ids[~mask] = 1
        numbers = torch.arange(mask.shape[1]).expand_as(ids)
        if padding is not None:
            numbers = numbers + padding + 1
        numbers = torch.where(mask, numbers, 0)
        x = torch.nn.functional.layer_norm(
            words[ids].double() + positions[numbers] + types[kinds], (width,), *(t.double() for t in norm)
        )
        x = x if projection is None else x @ projection.double().T
        exact = reference(layers, dense, x, mask, torch.float64)
        pooled_exact = (exact[:, 0] @ pooler.double().T + bias).tanh()
        ends = EncoderEnds(
            words=words,
            positions=positions,
            types=types,
            embedding_norm=norm,
            padding=padding,
            projection=None if projection is None else pack_row_panels(projection),
            pooler=pack_row_panels(pooler),
            pooler_bias=bias,
            epsilons=(1e-5, 0.0),
        )
        torch.set_num_threads(2)
        encoder = NativeEncoder(layers, BF16)
        states, pooled, _ = encoder.of_ids(ids, mask, kinds, NativeEnds(ends, BF16))
        assert pooled is not None
        assert (states - exact).norm() < 0.01 * exact.norm()
        assert (pooled - pooled_exact).norm() < 0.01 * pooled_exact.norm()
        narrow = NativeEnds(
            replace(
                ends, **{name: getattr(ends, name).bfloat16() for name in ("words", "positions", "types")}
            ),
            BF16,
        )
        narrow_states, narrow_pooled, _ = encoder.of_ids(ids, mask, kinds, narrow, dtype=BF16)
        assert narrow_pooled is not None
        assert narrow_states.dtype == narrow_pooled.dtype == BF16
        assert (narrow_states - exact).norm() < 0.015 * exact.norm()
        assert (narrow_pooled - pooled_exact).norm() < 0.015 * pooled_exact.norm()

    def test_the_last_norm_and_vectors(self, instruction_set: str) -> None:
        torch.manual_seed(5)
        problem = Problem(lengths=(20, 5, 33), **MODERN)
        layers, dense = problem.layers()
        x, mask = problem.batch()
        norm = (torch.rand(64) + 0.5, torch.randn(64))
        exact = reference(layers, dense, x, mask, torch.float64)
        exact = torch.nn.functional.layer_norm(exact, (64,), *(each.double() for each in norm), 1e-5)
        encoder = NativeEncoder(layers, BF16)
        answer = encoder(x, mask, NativeEnds(EncoderEnds(final_norm=norm, epsilons=(0.0, 1e-5)), BF16))
        assert (answer - exact * mask[..., None]).norm() < 0.02 * exact.norm()
        ends = NativeEnds(EncoderEnds(words=x.flatten(0, 1), final_norm=norm, epsilons=(0.0, 1e-5)), BF16)
        ids = torch.arange(mask.numel()).view(mask.shape)
        for dtype in (torch.float32, BF16):
            states, _, vectors = encoder.of_ids(
                ids, mask, None, ends, dtype=dtype, reduction=Reduction(mean=True, normalize=False)
            )
            assert vectors is not None
            assert vectors.dtype == dtype
            assert torch.allclose(states.float(), answer, atol=1e-6)
            mean = states.double().sum(1) / mask.sum(1, keepdim=True)
            assert torch.allclose(vectors.double(), mean, rtol=2**-8 if dtype == BF16 else 1e-5, atol=1e-6)


def test_weights_without_kept_blocks(instruction_set: str) -> None:
    problem = Problem(density=0.0)
    layers, dense = problem.layers()
    x, mask = problem.batch()
    exact = reference(layers, dense, x, mask, torch.float64)
    assert (NativeEncoder(layers, BF16)(x, mask) - exact).norm() < 0.01 * exact.norm()


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    sizes = st.integers(4, 150)
    widths = st.sampled_from((32, 64, 96))
    groups = st.builds(HeadGroup, st.integers(1, 3), widths, widths)
    return Problem(
        hidden=draw(sizes),
        inner=draw(sizes),
        heads=tuple(draw(st.lists(groups, min_size=1, max_size=3))),
        blocks=tuple(draw(st.lists(st.sampled_from(BLOCKS), min_size=6, max_size=6))),
        lengths=tuple(draw(st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any))),
        density=draw(st.sampled_from((0.1, 0.3, 1.0))),
        activation=draw(st.sampled_from(tuple(ACTIVATIONS))),
        bias=draw(st.booleans()),
        joint=draw(st.booleans()),
        pre_norm=draw(st.booleans()),
        window=draw(st.one_of(st.none(), st.integers(0, 40))),
        reach=draw(st.one_of(st.none(), st.integers(0, 30))),
    )


@settings(max_examples=40)
@given(problems(), st.sampled_from(SETS or ["none"]), st.integers(1, 3))
def test_random_problems(problem: Problem, name: str, threads: int) -> None:
    with using(name):
        check(problem, threads)


@pytest.fixture
def small() -> Small:
    problem = Problem()
    return (NativeEncoder(problem.layers()[0], BF16), *problem.batch())


class TestSequences(Sequences):
    def test_a_sequence_has_the_same_bits_in_every_batch(self, small: Small, instruction_set: str) -> None:
        encoder, x, mask = small
        together = encoder(x, mask)
        for row, kept, answer in zip(x, mask, together, strict=True):
            for others in (1, 7, 16):
                # Tokens before it move it to other lanes and panels.
                tokens = torch.cat((torch.randn(others, x.shape[2]), row[kept]))
                batch = torch.zeros(2, len(tokens), x.shape[2])
                places = torch.zeros(2, len(tokens), dtype=torch.bool)
                batch[0, :others], batch[1, others:] = tokens[:others], tokens[others:]
                places[0, :others], places[1, others:] = True, True
                assert torch.equal(encoder(batch, places)[1, others:], answer[kept])


def test_large_scores_do_not_overflow(instruction_set: str) -> None:
    problem = Problem()
    layers, _ = problem.layers()
    x, mask = problem.batch()
    assert NativeEncoder([replace(layer, scale=1000.0) for layer in layers], BF16)(x, mask).isfinite().all()


@pytest.mark.parametrize("lengths", [(40, 70, 0, 25), (5,), (128,), (300,), (20,) * 40], ids=str)
@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_change_no_bit(threads: int, lengths: tuple[int, ...]) -> None:
    problem = Problem(lengths=lengths)
    encoder, (x, mask) = NativeEncoder(problem.layers()[0], BF16), problem.batch()
    torch.set_num_threads(1)
    alone = encoder(x, mask)
    torch.set_num_threads(threads)
    assert torch.equal(encoder(x, mask), alone)


class TestRefusals:
    def test_x(self, small: Small) -> None:
        with pytest.raises(ValueError, match=r"it must be .* of torch.float32 or torch.bfloat16 on cpu"):
            small[0](torch.zeros(1, 2, 64).double())

    def test_layers_that_do_not_fit_together(self) -> None:
        layers, _ = Problem().layers()
        for wrong in (
            replace(layers[0], heads=(HeadGroup(2, 32, 64),)),
            replace(layers[0], heads=(HeadGroup(4, 16, 16),)),
            replace(layers[0], weights=[*layers[0].weights[:5], layers[0].weights[4]]),
            replace(layers[0], weights=[ElementSparse.from_dense(torch.ones(64, 64))] * 6),
        ):
            encoder = NativeEncoder([replace(wrong, biases=[None] * 6)], BF16)
            with pytest.raises(ValueError, match="do not fit together"):
                encoder(torch.zeros(1, 4, 64))

    def test_row_panels_in_float32(self) -> None:
        layers, _ = Problem().layers()
        with pytest.raises(ValueError, match="do not fit together"):
            NativeEncoder(layers)(torch.zeros(1, 4, 64))

    def test_other_instruction_sets(self) -> None:
        layers, _ = Problem().layers()
        for name in sorted(set(INSTRUCTION_SETS) - set(SETS)):
            with using(name), pytest.raises(ValueError, match="the library lacks"):
                NativeEncoder(layers, BF16)(torch.zeros(1, 4, 64))


class TestRowPanels:
    """How a matrix is stored."""

    @pytest.mark.parametrize("block", [(16, 1), (32, 2), (32, 32), (64, 8)], ids=str)
    def test_masks_of_blocks_stay_sparse(self, block: tuple[int, int]) -> None:
        weight = masked((128, 256), block, 0.1)
        packed = pack_row_panels(weight)
        assert torch.equal(packed.to_dense().float(), weight)
        assert packed.values.numel() <= RowPanelSparse.from_dense(weight, block=block).values.numel()
        assert packed.values.numel() < weight.numel()

    def test_scattered_weights_end_dense(self) -> None:
        mask = torch.rand(128, 256) < 0.3
        packed = pack_row_panels(torch.randn(128, 256), mask)
        assert packed.values.numel() == mask.numel()
        assert cheapest_block(mask)[1] > 1

    def test_few_scattered_weights_stay_sparse(self) -> None:
        packed = pack_row_panels(torch.randn(128, 256), torch.rand(128, 256) < 0.01)
        assert packed.block_rows == 16
        assert packed.block_columns == 1
        assert packed.values.numel() < 128 * 256

    def test_removed_rows_and_columns_are_not_stored(self) -> None:
        mask = torch.zeros(128, 256, dtype=torch.bool)
        mask[:64, :32] = True
        assert pack_row_panels(torch.randn(128, 256), mask).values.numel() == 64 * 32

    def test_heads_are_padded_to_whole_panels(self) -> None:
        heads = [HeadGroup(2, 12, 32), HeadGroup(1, 40, 5)]
        assert padded_heads(heads) == [HeadGroup(2, 32, 32), HeadGroup(1, 64, 32)]
        rows = torch.arange(1.0, 65)
        padded = pad_rows(rows, [(2, 12), (1, 40)])
        assert padded.shape == (128,)
        assert torch.equal(padded[:12], rows[:12])
        assert torch.equal(padded[32:44], rows[12:24])
        assert torch.equal(padded[64:104], rows[24:])
        assert padded.count_nonzero() == 64
        assert pad_rows(rows, [(2, 32)]) is rows

    def test_only_row_panels_are_supported(self) -> None:
        weight = masked((64, 64), (32, 2), 0.5)
        assert supports(RowPanelSparse.from_dense(weight), BF16)
        assert not supports(RowPanelSparse.from_dense(weight))
        assert not supports(ElementSparse.from_dense(weight.bfloat16()), BF16)
