"""Panels: each keeps a multiple of the quantum, a matrix keeps its total within one quantum, ties are cut."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from sparsebert.pruning import prune, random_like
from sparsebert.pruning.panel_rounding import round_panels
from sparsebert.pruning.pruning_units import PruningUnits
from sparsebert.pruning.top_k import ranked, select_top
from sparsebert.pruning.unit_groups import UnitGroup, unit_groups
from sparsebert.tickets.ticket import Ticket
from tests.pruning.test_prune import UP, bert, weights

Array = np.ndarray


def matrices(shapes: list[tuple[int, int]], block: tuple[int, int], round_to: int) -> tuple[UnitGroup, ...]:
    named = {f"m{number}": torch.Size(shape) for number, shape in enumerate(shapes)}
    return unit_groups("panel", block, named, None, round_to)


def transcribed(group: UnitGroup, scores: Array, kept: Array, owed: Fraction) -> tuple[Array, Fraction]:
    """The rounding of one matrix as the docstring of ``round_panels`` says it, in plain loops."""
    m = group.quantum
    sizes = np.broadcast_to(np.asarray(group.sizes), scores.shape)
    order = [sorted(range(len(row)), key=lambda j: (math.isnan(row[j]), -row[j], j)) for row in scores]
    units = scores.shape[1]
    counts, candidates = [], []
    for panel, row in enumerate(scores):
        count = int(kept[panel].sum())
        if count == units or count % m == 0:
            counts.append(count)
            continue
        low = count // m * m
        counts.append(low)
        following = order[panel][low : low + m]
        if any(math.isnan(row[j]) for j in following):
            continue
        total = 0.0
        for j in following:
            total += float(row[j])
        mean = np.float32(total / len(following))
        candidates.append((-mean, panel, len(following), sum(int(sizes[panel, j]) for j in following)))

    def weights_of(numbers: list[int]) -> int:
        return sum(int(sizes[p, j]) for p, number in enumerate(numbers) for j in order[p][:number])

    before = int((sizes * kept).sum())
    candidates.sort()
    totals = [weights_of(counts)]
    for *_, weights_ in candidates:
        totals.append(totals[-1] + weights_)
    target = before + owed
    best = min(range(len(totals)), key=lambda n: (abs(totals[n] - target), n % 2))
    for _, panel, length, _ in candidates[:best]:
        counts[panel] += length
    result = np.zeros_like(kept)
    for panel, count in enumerate(counts):
        result[panel, order[panel][:count]] = True
    return result, target - totals[best]


shapes = st.tuples(st.integers(1, 13), st.integers(1, 17))
blocks = st.tuples(st.integers(1, 5), st.integers(1, 3))
some_scores = st.sampled_from([0.0, 0.5, 1.0, -1.0, 3.0, 0.1, math.inf])


def draw_scores(data: st.DataObject, group: UnitGroup) -> Tensor:
    rows, columns = group.grid
    values = data.draw(st.lists(some_scores, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values).view(rows, columns)


@given(st.lists(shapes, min_size=1, max_size=4), blocks, st.integers(1, 4), st.fractions(0, 1), st.data())
def test_it_is_what_the_docstring_says(
    shape_list: list[tuple[int, int]],
    block: tuple[int, int],
    quantum: int,
    density: Fraction,
    data: st.DataObject,
) -> None:
    groups = matrices(shape_list, block, quantum * block[1])
    scores = [ranked(draw_scores(data, group)) for group in groups]
    total = sum(group.weights for group in groups)
    kept = select_top(scores, [group.sizes for group in groups], density * total)
    rounded = round_panels(groups, scores, kept)
    owed = Fraction(0)
    after = 0
    for group, ranking, before, mask in zip(groups, scores, kept, rounded, strict=True):
        expected, owed = transcribed(group, ranking.numpy(), before.numpy(), owed)
        np.testing.assert_array_equal(mask.numpy(), expected)
        counts = mask.sum(1)
        assert ((counts % quantum == 0) | (counts == mask.shape[1])).all()
        sizes = torch.as_tensor(group.sizes)
        one = int(sizes.max()) * quantum
        assert abs(int((mask * sizes).sum()) - int((before * sizes).sum())) <= one
        after += int((mask * sizes).sum())
    before_all = sum(
        int((mask * torch.as_tensor(group.sizes)).sum()) for group, mask in zip(groups, kept, strict=True)
    )
    largest = max(int(torch.as_tensor(group.sizes).max()) for group in groups) * quantum
    assert abs(after - before_all) <= Fraction(largest, 2)


@settings(max_examples=settings.default.max_examples // 2)
@given(shapes, blocks, st.integers(1, 4), st.lists(st.fractions(0, 1), min_size=2, max_size=3), st.data())
def test_round_after_round_the_panels_stay_panels(
    shape: tuple[int, int],
    block: tuple[int, int],
    quantum: int,
    densities: list[Fraction],
    data: st.DataObject,
) -> None:
    """What one round prunes stays pruned in the next, whose candidates need not be alive otherwise."""
    (group,) = matrices([shape], block, quantum * block[1])
    alive = torch.ones(group.grid, dtype=torch.bool)
    for density in sorted(densities, reverse=True):
        scores = ranked(draw_scores(data, group), alive)
        budget = density * int((alive * torch.as_tensor(group.sizes)).sum())
        (kept,) = select_top([scores], [group.sizes], budget)
        (mask,) = round_panels([group], [scores], [kept])
        assert not (mask & ~alive).any()
        expected, _ = transcribed(group, scores.numpy(), kept.numpy(), Fraction(0))
        np.testing.assert_array_equal(mask.numpy(), expected)
        alive = mask


class TestByHand:
    def test_a_ticket_of_other_panels_that_leaves_too_few_candidates_is_refused(self) -> None:
        (group,) = matrices([(4, 8)], (1, 1), 4)
        scores = torch.full((4, 8), math.nan)
        scores[:, :3] = 1.0
        with pytest.raises(ValueError, match="panels of m0 do not keep multiples of 4 units: use"):
            round_panels([group], [scores], [~scores.isnan()])

    def test_the_best_candidates_are_kept(self) -> None:
        """Three panels of one row keep 3, 1 and 2 units: 6 units are 3 quanta, of which 1 is a whole one."""
        (group,) = matrices([(3, 4)], (1, 1), 2)
        scores = torch.tensor([[9.0, 8.0, 7.0, 0.0], [6.0, 5.0, 0.0, 0.0], [10.0, 10.0, 0.0, 0.0]])
        kept = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
        (mask,) = round_panels([group], [scores], [kept])
        # Candidates: panel 0 with 7 and 0, mean 3.5; panel 1 with 6 and 5, mean 5.5. One of them fits.
        assert mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]

    def test_equal_candidates_are_taken_in_order(self) -> None:
        (group,) = matrices([(4, 4)], (1, 1), 2)
        kept = torch.tensor([[1, 0, 0, 0]] * 4, dtype=torch.bool)
        (mask,) = round_panels([group], [torch.ones(4, 4)], [kept])
        assert mask.sum(1).tolist() == [2, 2, 0, 0]

    def test_a_panel_may_keep_nothing_or_all_of_a_width_that_is_no_multiple(self) -> None:
        (group,) = matrices([(2, 5)], (1, 1), 2)
        scores = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0], [0.5, 0.4, 0.3, 0.2, 0.1]])
        kept = scores > 0.45
        (mask,) = round_panels([group], [scores], [kept])
        assert mask.sum(1).tolist() == [5, 0]  # 6 weights: 7 and 5 are equally near, no candidate is even

    def test_the_last_rows_and_columns_count_with_their_weights(self) -> None:
        """5 x 5 in units of 2 x 2: the units at the edges have 2, 2 and 1 weights."""
        (group,) = matrices([(5, 5)], (2, 2), 4)
        scores = torch.tensor([[1.0, 9.0, 9.0], [9.0, 1.0, 9.0], [1.0, 9.0, 1.0]])
        kept = scores > 2
        (mask,) = round_panels([group], [scores], [kept])
        assert kept.sum(1).tolist() == [2, 2, 1]
        assert mask.sum(1).tolist() == [2, 2, 0]  # 14 weights; a candidate of 4 would bring 16

    def test_a_matrix_owes_the_next_what_it_rounds_away(self) -> None:
        groups = matrices([(1, 4)] * 4, (1, 1), 4)
        scores = [torch.arange(4.0, 0.0, -1.0)[None]] * 4
        kept = [torch.tensor([[True, False, False, False]])] * 4
        counts = [int(mask.sum()) for mask in round_panels(groups, scores, kept)]
        assert counts == [0, 0, 4, 0]  # 1, 2 (even), 3 of 4: the third is nearer to all

    def test_a_live_score_of_minus_infinity_goes_before_dead_units(self) -> None:
        (group,) = matrices([(1, 6)], (1, 1), 2)
        scores = torch.tensor([[math.nan, -math.inf, 1.0, math.nan, -math.inf, -math.inf]])
        kept = torch.tensor([[0, 1, 1, 0, 1, 0]], dtype=torch.bool)
        (mask,) = round_panels([group], [scores], [kept])
        assert mask.int().tolist() == [[0, 1, 1, 0, 0, 0]]


WIDE: dict[str, Any] = {"hidden_size": 40, "intermediate_size": 72}


def counts_of(ticket: Ticket, rows: int, columns: int) -> dict[str, Tensor]:
    """The columns that each panel keeps. Raises unless rows of a panel share them."""
    counted = {}
    for key, mask in ticket.masks.items():
        panels = mask.split(rows)
        assert all((panel == panel[0]).all() for panel in panels)
        groups = [panel[0].split(columns) for panel in panels]
        assert all(group.all() or not group.any() for panel in groups for group in panel)
        counted[key] = torch.stack([panel[0].sum() for panel in panels])
    return counted


class TestPrune:
    @pytest.mark.parametrize("method", ["magnitude", "random"])
    @pytest.mark.parametrize("scope", ["global", "matrix", "type"])
    @pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.75, 0.95])
    def test_panels_keep_multiples_and_the_total_is_right(
        self, method: str, scope: str, sparsity: float
    ) -> None:
        model = bert(**WIDE)
        units: dict[str, Any] = {"granularity": "panel", "block_size": (16, 2), "round_to": 8}
        ticket = prune(model, method, sparsity=sparsity, scope=scope, **units)
        for key, counts in counts_of(ticket, 16, 2).items():
            width = ticket.masks[key].shape[1]
            assert ((counts % 8 == 0) | (counts == width)).all()
        total = sum(mask.numel() for mask in ticket.masks.values())
        groups = {"global": 1, "matrix": len(ticket.masks), "type": 6}[scope]
        assert abs(ticket.sparsity - sparsity) * total <= groups * 16 * (8 + 2) / 2
        assert ticket.metadata["sparsity_reached"] == ticket.sparsity
        assert ticket.metadata["sparsity"] == sparsity
        assert (ticket.metadata["granularity"], ticket.metadata["round_to"]) == ("panel", 8)
        assert ticket.metadata["block_size"] == [16, 2]

    def test_the_short_name_means_the_same(self) -> None:
        model = bert(**WIDE)
        ticket = prune(model, sparsity=0.5, granularity="panel", block_size=(32, 2))
        for name in ("panel(32,2)", "panel(32, 2)"):
            assert prune(model, sparsity=0.5, granularity=name) == ticket
        assert ticket.metadata["round_to"] == 32
        assert prune(model, sparsity=0.5, granularity="panel(32,4)").metadata["round_to"] == 64

    def test_without_rounding_they_are_blocks(self) -> None:
        model = bert(**WIDE)
        assert prune(model, sparsity=0.6, granularity="panel(8,2)", round_to=2) == prune(
            model, sparsity=0.6, granularity="8x2"
        )

    def test_of_a_dense_ticket_everything_is_kept(self) -> None:
        ticket = prune(bert(), sparsity=0, granularity="panel(32,2)")
        assert ticket.sparsity == 0

    def test_tickets_are_pruned_further(self) -> None:
        model = bert(**WIDE)
        units: dict[str, Any] = {"granularity": "panel(16,2)", "round_to": 8}
        ticket = None
        for sparsity in (0.2, 0.4, 0.6, 0.8):
            earlier, ticket = ticket, prune(model, sparsity=sparsity, ticket=ticket, **units)
            assert earlier is None or ticket & earlier == ticket
            assert ticket.sparsity == pytest.approx(sparsity, abs=0.005)
            for counts in counts_of(ticket, 16, 2).values():
                assert (counts % 8 == 0).all()

    def test_a_sparsity_that_keeps_no_quantum_is_refused(self) -> None:
        with pytest.raises(ValueError, match="keep none of the weights, rounded to 32 columns of a panel"):
            prune(bert(**WIDE), sparsity=0.999, granularity="panel(32,2)")

    def test_infinite_weights_are_the_last_to_go(self) -> None:
        model = bert(**WIDE)
        with torch.no_grad():
            weights(model)[UP][3, 4] = -math.inf
        ticket = prune(model, sparsity=0.95, granularity="panel(8,2)", round_to=8)
        assert ticket.masks[UP][3, 4]


def test_random_panels_keep_the_counts_of_each_matrix() -> None:
    ticket = prune(bert(**WIDE), sparsity=0.7, granularity="panel(16,2)", round_to=8)
    random = random_like(ticket, seed=3)
    assert random.layer_sparsity == ticket.layer_sparsity
    assert random == random_like(ticket, seed=3) != random_like(ticket, seed=4)
    found, expected = counts_of(random, 16, 2), counts_of(ticket, 16, 2)
    for key, counts in expected.items():
        whole = len(ticket.masks[key]) // 16
        assert found[key][:whole].sort().values.tolist() == counts[:whole].sort().values.tolist()
        assert found[key][whole:].tolist() == counts[whole:].tolist()  # 8 rows change places with none
    assert random_like(random, seed=1).layer_sparsity == ticket.layer_sparsity


def test_units_know_their_quantum() -> None:
    assert PruningUnits("panel(32,2)") == PruningUnits("panel", (32, 2), round_to=32)
    assert PruningUnits("panel(32,4)").round_to == 64
    assert PruningUnits("4x1").round_to is None
