"""oBERT against a plain transcription of the authors' code on a small model in float64."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from sparsebert.bert import resolve, structure
from sparsebert.one_shot import prune_
from sparsebert.one_shot.methods.obert import OptimalBertSurgeon
from sparsebert.one_shot.prune_model import Competition
from sparsebert.pruning.granularity import spelled_out
from sparsebert.pruning.unit_groups import competition_groups, unit_groups
from tests.pruning.gated_models import HEADS, NEURONS, batches, build

Array = np.ndarray


def competitions(model: Any, granularity: str, density: str, scope: str = "global") -> list[Competition]:
    encoder = structure(model)
    shapes = {key: resolve(model, key).weight.shape for key in encoder.linears}
    name, size = spelled_out(granularity)
    if granularity == "panel":
        size = (8, 2)
    groups = unit_groups(name, size, shapes, encoder, 4 if granularity == "panel" else None)
    return [
        Competition(group, Fraction(density)) for group in competition_groups(groups, scope, encoder.types)
    ]


def published(
    model: Any, data: list[dict[str, Any]], sparsity: float, block: int, damping: float, recomputations: int
) -> dict[str, Array]:
    """`OBSPruningModifier` of sparseml for single weights, global: scores, masks and updates."""
    model.eval()
    modules = {key: resolve(model, key) for key in structure(model).linears}
    masks = {key: np.ones(module.weight.shape, dtype=bool) for key, module in modules.items()}
    for step in range(1, recomputations + 1):
        inverses = {
            key: np.tile(np.eye(block) / damping, (-(-module.weight.numel() // block), 1, 1))
            for key, module in modules.items()
        }
        for batch in data:
            model.zero_grad()
            model(**batch).loss.backward()
            for key, module in modules.items():
                inverse = inverses[key]
                gradient = np.zeros(len(inverse) * block)
                gradient[: module.weight.numel()] = (module.weight.grad.numpy() * masks[key]).ravel()
                for number, g in enumerate(gradient.reshape(-1, block)):
                    change = inverse[number] @ g
                    inverse[number] -= np.outer(change, change) / (len(data) + g @ change)
        scores, diagonals = {}, {}
        for key, module in modules.items():
            diagonal = np.diagonal(inverses[key], axis1=1, axis2=2).ravel()[: module.weight.numel()]
            diagonals[key] = diagonal.reshape(module.weight.shape)
            score = module.weight.detach().numpy() ** 2 / (2 * diagonals[key])
            scores[key] = np.where(masks[key], score, -np.inf)
        everything = np.concatenate([score.ravel() for score in scores.values()])
        kept = round(everything.size * (1 - sparsity * step / recomputations))
        threshold = np.sort(everything)[-kept]
        for key, module in modules.items():
            weight = module.weight.detach().numpy().copy()
            lost = masks[key] & (scores[key] < threshold)
            vector = np.zeros(len(inverses[key]) * block)
            vector[: weight.size] = np.where(lost, weight / diagonals[key], 0).ravel()
            update = np.einsum("bij,bj->bi", inverses[key], vector.reshape(-1, block)).ravel()
            masks[key] &= ~lost
            weight -= update[: weight.size].reshape(weight.shape)
            module.weight.data = torch.from_numpy(np.where(masks[key], weight, 0))
    return {key: module.weight.detach().numpy() for key, module in modules.items()}


@pytest.mark.parametrize(("block", "recomputations"), [(50, 1), (50, 3), (7, 2)])
def test_the_published_algorithm(block: int, recomputations: int) -> None:
    data = batches(12)
    model = build(dtype=torch.float64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    method = OptimalBertSurgeon(block=block, damping=1e-4, recomputations=recomputations)
    pruned = method.prune_model(model, competitions(model, "element", "1/4"), data)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    expected = published(model, data, 0.75, block, 1e-4, recomputations)
    assert pruned.keys() == expected.keys()
    for key, weight in expected.items():
        assert np.abs(pruned[key].weight.numpy() - weight).max() < 1e-8
        assert np.array_equal(pruned[key].mask, weight != 0)


@pytest.mark.parametrize("update", ["independent", "joint"])
@pytest.mark.parametrize("granularity", ["element", "4x2", "panel", "row", "2:4", "neuron", "head"])
def test_every_granularity(granularity: str, update: str) -> None:
    model = build()
    method = OptimalBertSurgeon(damping=1e-4, recomputations=2, update=update)
    pruned = method.prune_model(model, competitions(model, granularity, "1/2"), batches(6))
    kept = sum(int(each.mask.sum()) for each in pruned.values())
    total = sum(each.mask.numel() for each in pruned.values())
    assert kept / total == pytest.approx(0.5, abs=0.02)
    for key, (weight, mask) in pruned.items():
        assert weight.isfinite().all()
        assert not weight[~mask].any()
        if granularity == "2:4":
            assert (mask.view(-1, 4).sum(1) == 2).all()
        if granularity == "panel":
            assert (mask.view(-1, 8, mask.shape[1])[:, 0].sum(1) % 4 == 0).all(), key
    if granularity == "neuron":
        up, down = (pruned[key].mask for key in structure(model).neurons[0])
        assert up.shape[0] == NEURONS
        assert torch.equal(up[:, 0], down[0])
    if granularity == "head":
        assert {int(mask.sum(0)[0]) for _, mask in list(pruned.values())[:1]} <= {
            6 * heads for heads in range(HEADS + 1)
        }


@pytest.mark.parametrize("scope", ["matrix", "type"])
def test_scopes_keep_their_share(scope: str) -> None:
    model = build()
    pruned = OptimalBertSurgeon().prune_model(
        model, competitions(model, "element", "3/10", scope), batches(4)
    )
    for each in pruned.values():
        if scope == "matrix":
            assert int(each.mask.sum()) == round(Fraction(3, 10) * each.mask.numel())


def test_less_memory_gives_the_same() -> None:
    model = build()
    wanted = competitions(model, "element", "1/4")
    whole = OptimalBertSurgeon(damping=1e-4).prune_model(model, wanted, batches(3))
    parts = OptimalBertSurgeon(damping=1e-4, memory=5e-4).prune_model(model, wanted, batches(3))
    for key in whole:
        assert bool((whole[key].weight == parts[key].weight).all())


def test_prune_writes_weights_and_returns_the_ticket() -> None:
    model = build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ticket = prune_(model, "obert", data=batches(4), sparsity=0.7, granularity="4x1")
    pruned = OptimalBertSurgeon().prune_model(
        _with_values(model, before), competitions(model, "4x1", "3/10"), batches(4)
    )
    assert ticket.sparsity == pytest.approx(0.7, abs=0.001)
    assert ticket.metadata["scope"] == "global"
    assert ticket.metadata["model"]["weights"] != ticket.metadata["model"]["dense_weights"]
    for key, mask in ticket.masks.items():
        assert torch.equal(mask, pruned[key].mask)


def _with_values(model: Any, values: dict[str, torch.Tensor]) -> Any:
    model.load_state_dict(values)
    return model


def test_bad_options_and_data() -> None:
    model = build()
    wanted = competitions(model, "element", "1/2")
    with pytest.raises(ValueError, match="no batch"):
        prune_(model, "obert", data=[], sparsity=0.5)
    with pytest.raises(ValueError, match="reproduce does not apply to method obert"):
        prune_(model, "obert", data=batches(1), sparsity=0.5, reproduce="layer")
    with pytest.raises(ValueError, match="unknown scope of obert 'layer'"):
        OptimalBertSurgeon(scope="layer")
    unlabelled = [{name: x for name, x in batch.items() if name != "labels"} for batch in batches(2)]
    with pytest.raises(ValueError, match="the batches need labels"):
        OptimalBertSurgeon().prune_model(model, wanted, unlabelled)
    with pytest.raises(ValueError, match="unknown update of obert 'both'"):
        OptimalBertSurgeon(update="both")
    with pytest.raises(ValueError, match="damping of obert must be positive, got 0"):
        OptimalBertSurgeon(damping=0)
    with torch.no_grad():
        resolve(model, structure(model).linears[0]).weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"a gradient of .* is NaN or infinite"):
        OptimalBertSurgeon().prune_model(model, wanted, batches(2))
