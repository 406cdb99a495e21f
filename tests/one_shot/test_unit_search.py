"""Search and rearrangement of Kwon et al. 2022 against literal numpy transcriptions of their code."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsebert.one_shot.unit_search import rearrange, search_units

LAYERS, HEADS, NEURONS = 3, 4, 20
HEAD_COST, NEURON_COST = 4 * 24 * 6, 2 * 24


def importances(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(units: int) -> Tensor:
        return torch.rand(units, generator=generator, dtype=torch.float64) ** 3

    heads = {f"attention {i}": 12 * random(HEADS) for i in range(LAYERS)}
    return heads | {f"mlp {i}": random(NEURONS) for i in range(LAYERS)}


def kinds(importance: dict[str, Tensor]) -> dict[str, str]:
    return {name: "head" if name.startswith("attention") else "neuron" for name in importance}


def costs(importance: dict[str, Tensor]) -> dict[str, float]:
    return {name: HEAD_COST if name.startswith("attention") else NEURON_COST for name in importance}


def published_search(heads: np.ndarray, neurons: np.ndarray, budget: float) -> tuple[np.ndarray, np.ndarray]:
    """``search_mac`` of the published code, for numbers of heads within the budget."""
    head_order = np.argsort(-heads.reshape(-1), kind="stable")
    neuron_order = np.argsort(-neurons.reshape(-1), kind="stable")
    best = 0.0
    for num_heads in range(1, heads.size + 1):
        heads_mac = HEAD_COST * num_heads
        neurons_mac = budget - heads_mac
        if neurons_mac < 0:
            break
        num_neurons = max(int(neurons_mac / NEURON_COST), 0)
        total = heads.reshape(-1)[head_order[:num_heads]].sum()
        total += neurons.reshape(-1)[neuron_order[:num_neurons]].sum()
        if total > best:
            best = total
            head_indices, neuron_indices = head_order[:num_heads], neuron_order[:num_neurons]
    head_mask, neuron_mask = np.zeros(heads.size, bool), np.zeros(neurons.size, bool)
    head_mask[head_indices], neuron_mask[neuron_indices] = True, True
    return head_mask.reshape(heads.shape), neuron_mask.reshape(neurons.shape)


def published_rearrange(mask: np.ndarray, grads: np.ndarray) -> np.ndarray:
    """``greedy_rearrange`` of the published code, with grads [batches, units]."""
    num_unpruned = int(mask.sum())
    num_pruned = mask.shape[0] - num_unpruned
    if num_unpruned == 0 or num_pruned == 0:
        return mask
    grads = grads.T
    indices = np.argsort((grads**2).sum(1), kind="stable").tolist()
    masked = indices[:num_pruned]
    for index in indices[num_pruned:]:
        masked.append(index)
        vectors = grads[masked]
        complement = vectors.sum(0) - vectors
        del masked[int((complement**2).sum(1).argmin())]
    new = np.ones_like(mask)
    new[masked] = False
    return new


@pytest.mark.parametrize("share", [0.08, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_search_parity_with_the_published_code(share: float, seed: int) -> None:
    importance = importances(seed)
    budget = share * LAYERS * (HEADS * HEAD_COST + NEURONS * NEURON_COST)
    kept = search_units(importance, costs(importance), kinds(importance), budget)
    heads, neurons = (
        np.stack([each.numpy() for name, each in importance.items() if name.startswith(start)])
        for start in ("attention", "mlp")
    )
    expected = np.concatenate([each.ravel() for each in published_search(heads, neurons, budget)])
    assert np.array_equal(torch.cat([kept[name] for name in importance]).numpy(), expected)


def test_no_other_set_of_as_little_cost_has_more_importance() -> None:
    generator = torch.Generator().manual_seed(3)
    importance = {
        "attention 0": torch.rand(3, generator=generator),
        "mlp 0": torch.rand(6, generator=generator) / 3,
    }
    price = {"attention 0": 4.0, "mlp 0": 1.0}
    values, prices = torch.cat(list(importance.values())), torch.tensor([4.0] * 3 + [1.0] * 6)
    for budget in (3.0, 7.0, 11.5):
        kept = search_units(importance, price, kinds(importance), budget)
        every = torch.tensor(list(itertools.product([False, True], repeat=9)))
        allowed = every[(every * prices).sum(1) <= budget]
        best = (allowed * values).sum(1).max()
        chosen = torch.cat([kept[name] for name in importance])
        assert float((chosen * prices).sum()) <= budget
        torch.testing.assert_close((chosen * values).sum(), best)


@pytest.mark.parametrize("only", ["attention", "mlp"])
def test_one_kind_keeps_the_most_important(only: str) -> None:
    importance = {name: each for name, each in importances(0).items() if name.startswith(only)}
    price = dict.fromkeys(importance, 5.0)
    kept = torch.cat(list(search_units(importance, price, kinds(importance), 37.0).values()))
    expected = torch.cat(list(importance.values())).argsort(descending=True)[:7]
    assert set(kept.nonzero().flatten().tolist()) == set(expected.tolist())


@pytest.mark.parametrize(("units", "pruned"), [(12, 5), (40, 31), (40, 1), (9, 8)])
@pytest.mark.parametrize("seed", range(3))
def test_rearrangement_parity_with_the_published_code(units: int, pruned: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(30, units, generator=generator, dtype=torch.float64)
    gradients += torch.randn(30, 1, generator=generator)
    kept = torch.ones(units, dtype=torch.bool)
    kept[:pruned] = False
    result = rearrange(kept, gradients)
    assert np.array_equal(result.numpy(), published_rearrange(kept.numpy(), gradients.numpy()))
    assert int(result.sum()) == units - pruned


def test_units_that_cancel_are_pruned_together() -> None:
    gradients = torch.tensor([[2.0, -2.1, 1.5, 1.9]])
    kept = torch.tensor([True, True, False, False])
    assert rearrange(kept, gradients).tolist() == [True, False, True, False]


@pytest.mark.parametrize("kept", [torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)])
def test_nothing_to_rearrange(kept: Tensor) -> None:
    assert torch.equal(rearrange(kept, torch.randn(5, 4)), kept)
