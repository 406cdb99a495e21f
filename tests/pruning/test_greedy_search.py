"""Heads and MLPs to keep: the published search step by step, and the subnetworks it is judged by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sparsebert.bert import resolve, structure
from sparsebert.pruning.greedy_search import Scored, Search
from sparsebert.pruning.head_mlp_masks import UnitMasks
from sparsebert.tickets.ticket import Ticket
from tests.pruning.gated_models import FAMILIES, HEADS, LAYERS, build

Evaluate = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, float]]


def published(evaluate: Evaluate, layers: int, heads: int, threshold: float, amount: float) -> Any:
    """mask_heads_mlps() of Prasanna et al. 2020, transcribed to numpy; ``evaluate`` is its scoring."""

    def mask_lowest(mask: np.ndarray, importance: np.ndarray, count: int) -> list[int]:
        importance[mask == 0] = np.inf
        lowest: list[int] = []
        for unit in np.argsort(importance.ravel(), kind="stable"):
            if len(lowest) == count or importance.ravel()[unit] == np.inf:
                break
            lowest.append(unit)
        return lowest

    new_heads, new_mlps = np.ones((layers, heads)), np.ones(layers)
    head_scores, mlp_scores, original = evaluate(new_heads, new_mlps)
    count, best, current = max(1, int(layers * heads * amount)), original, original
    while current >= original * threshold:
        best, head_mask, mlp_mask = current, new_heads.copy(), new_mlps.copy()
        lowest = mask_lowest(head_mask, head_scores, count)
        if not lowest:
            break
        new_heads.ravel()[lowest] = 0
        lowest = mask_lowest(mlp_mask, mlp_scores, 1)
        if not lowest:
            break
        new_mlps[lowest] = 0
        head_scores, mlp_scores, current = evaluate(new_heads, new_mlps)
    current, new_heads = best, head_mask
    while current >= original * threshold:
        best, head_mask = current, new_heads.copy()
        lowest = mask_lowest(head_mask, head_scores, count // 2)
        if not lowest:
            break
        new_heads.ravel()[lowest] = 0
        head_scores, mlp_scores, current = evaluate(new_heads, mlp_mask)
    current, new_mlps = best, mlp_mask
    while current >= original * threshold:
        best, mlp_mask = current, new_mlps.copy()
        lowest = mask_lowest(mlp_mask, mlp_scores, 1)
        if not lowest:
            break
        new_mlps[lowest] = 0
        head_scores, mlp_scores, current = evaluate(head_mask, new_mlps)
    return head_mask, mlp_mask


def invented(seed: int, layers: int, heads: int) -> Evaluate:
    """A model of which every unit is worth something, and scores that say so roughly and change."""
    worth = np.random.default_rng(seed)
    of_heads, of_mlps = worth.uniform(0, 1, (layers, heads)) ** 3, worth.uniform(0, 2, layers)

    def evaluate(head_mask: np.ndarray, mlp_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        noise = np.random.default_rng(int(head_mask.sum() * 100 + mlp_mask.sum()))
        metric = float((of_heads * head_mask).sum() + (of_mlps * mlp_mask).sum())
        return (
            of_heads + noise.uniform(0, 0.1, (layers, heads)),
            of_mlps + noise.uniform(0, 0.1, layers),
            metric,
        )

    return evaluate


def searched(evaluate: Evaluate, search: Search, layers: int, heads: int) -> tuple[UnitMasks, list[float]]:
    metrics: list[float] = []

    def score(masks: UnitMasks) -> Scored:
        of_heads, of_mlps, metric = evaluate(masks.heads.double().numpy(), masks.mlps.double().numpy())
        return Scored(metric, torch.from_numpy(of_heads), torch.from_numpy(of_mlps))

    whole = UnitMasks(torch.ones(layers, heads, dtype=torch.bool), torch.ones(layers, dtype=torch.bool))
    return search(whole, score, lambda masks, metric: metrics.append(metric)), metrics


class TestSearch:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("threshold", [0.9, 0.6])
    def test_it_is_the_published_one(self, seed: int, threshold: float) -> None:
        evaluate = invented(seed, 6, 12)
        heads, mlps = published(evaluate, 6, 12, threshold, 0.1)
        masks, _ = searched(evaluate, Search(threshold, rescore=False), 6, 12)
        assert np.array_equal(masks.heads.numpy(), heads == 1)
        assert np.array_equal(masks.mlps.numpy(), mlps == 1)
        assert 0 < masks.heads.sum() < 72

    @pytest.mark.parametrize("seed", range(4))
    def test_what_is_left_holds_the_metric_and_one_unit_less_does_not(self, seed: int) -> None:
        evaluate = invented(seed, 6, 12)
        masks, metrics = searched(evaluate, Search(0.8), 6, 12)
        kept = evaluate(masks.heads.double().numpy(), masks.mlps.double().numpy())[2]
        assert kept >= 0.8 * metrics[0]
        assert metrics[-1] < 0.8 * metrics[0]

    def test_scores_of_rejected_masks_are_dropped_by_default(self) -> None:
        differ = [
            not torch.equal(
                *(
                    searched(invented(seed, 6, 12), Search(0.8, rescore=each), 6, 12)[0].heads
                    for each in (True, False)
                )
            )
            for seed in range(8)
        ]
        assert any(differ)

    def test_it_ends_where_nothing_would_be_left(self) -> None:
        masks, _ = searched(lambda heads, mlps: (heads + 0.0, mlps + 0.0, 1.0), Search(), 2, 4)
        assert masks.heads.any() or masks.mlps.any()

    def test_a_metric_of_zero_has_no_share(self) -> None:
        with pytest.raises(ValueError, match="the whole model's metric is 0"):
            searched(lambda heads, mlps: (heads, mlps, 0.0), Search(), 2, 4)

    @pytest.mark.parametrize("options", [{"threshold": 1.0}, {"share": 0.0}])
    def test_shares_are_between_zero_and_one(self, options: dict[str, float]) -> None:
        with pytest.raises(ValueError, match="must be between 0 and 1"):
            Search(**options)


def masks(seed: int = 0, share: float = 0.6) -> UnitMasks:
    generator = torch.Generator().manual_seed(seed)
    return UnitMasks(
        torch.rand(LAYERS, HEADS, generator=generator) < share, torch.tensor([True, False, True])
    )


class TestUnitMasks:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_as_a_ticket_and_back(self, family: str) -> None:
        model = build(family)
        ticket = masks().ticket(model, {"method": "test"})
        again = UnitMasks.of(ticket, model)
        assert torch.equal(again.heads, masks().heads)
        assert torch.equal(again.mlps, masks().mlps)
        assert ticket.removed == structure(model).neurons[1]
        ticket.apply_(model)
        assert not resolve(model, ticket.removed[1]).bias.any()
        assert resolve(model, structure(model).neurons[0][1]).bias.any()

    def test_bad_ones_are_those_that_the_good_ones_prune(self) -> None:
        good = masks(share=0.4)
        bad = good.bad(seed=3)
        assert (bad.heads.sum(), bad.mlps.sum()) == (good.heads.sum(), good.mlps.sum())
        assert not (bad.heads & good.heads).any()

    def test_bad_ones_are_topped_up_from_good_ones(self) -> None:
        good = masks(share=0.8)
        bad = good.bad()
        assert bad.heads.sum() == good.heads.sum()
        assert bad.heads[~good.heads].all()

    def test_random_ones_are_as_many_unless_as_published(self) -> None:
        good = masks()
        drawn = [good.random(seed) for seed in range(20)]
        assert {int(each.heads.sum()) for each in drawn} == {int(good.heads.sum())}
        assert len({tuple(each.heads.flatten().tolist()) for each in drawn}) > 10
        published_way = {int(good.random(seed, bernoulli=True).heads.sum()) for seed in range(20)}
        assert len(published_way) > 3

    def test_what_several_seeds_keep(self) -> None:
        """The intersection removes what any of them removes."""
        model = build()
        one, other = masks(0), UnitMasks(masks(1).heads, torch.tensor([True, True, False]))
        tickets = [each.ticket(model, {"method": "test"}) for each in (one, other)]
        both = UnitMasks.of(tickets[0] & tickets[1], model)
        assert torch.equal(both.heads, one.heads & other.heads)
        assert both.mlps.tolist() == [True, False, False]
        assert set((tickets[0] & tickets[1]).removed) == {
            key for layer in (1, 2) for key in structure(model).neurons[layer]
        }

    def test_refusals(self) -> None:
        model = build()
        with pytest.raises(ValueError, match=r"masks must be \[layers, heads\] and \[layers\]"):
            UnitMasks(torch.ones(2, 3, dtype=torch.bool), torch.ones(3, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"masks must be torch\.bool"):
            UnitMasks(torch.ones(2, 3), torch.ones(2, dtype=torch.bool))
        small = UnitMasks(torch.ones(2, 3, dtype=torch.bool), torch.ones(2, dtype=torch.bool))
        with pytest.raises(ValueError, match=r"has \[layers, heads\] \(3, 4\), the masks have \(2, 3\)"):
            small.ticket(model, {})
        nothing = UnitMasks(torch.zeros(3, 4, dtype=torch.bool), torch.zeros(3, dtype=torch.bool))
        with pytest.raises(ValueError, match="keep no head and no MLP"):
            nothing.ticket(model, {})
        key = structure(model).linears[0]
        with pytest.raises(ValueError, match="prunes parts of units"):
            UnitMasks.of(Ticket({key: torch.eye(24, dtype=torch.bool)}), model)
