"""Magnitude tickets with biases: as torch's global pruning over weights and biases makes them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.utils import prune as torch_prune

from sparsebert.bert import resolve, structure
from sparsebert.pruning import Magnitude, prune
from sparsebert.tickets.ticket import Ticket
from tests.pruning.gated_models import FAMILIES, batches, build


def published(model: Any, steps: int, method: Any = torch_prune.L1Unstructured) -> Ticket:
    """find_global_weight_mask.py: a tenth of what remains in each step, biases too but for FFN-down's."""
    model = copy.deepcopy(model)
    encoder = structure(model)
    pruned = [(resolve(model, key), "weight") for key in encoder.linears]
    pruned += [(resolve(model, key), "bias") for key in encoder.linears if encoder.types[key] != "ffn_down"]
    for _ in range(steps):
        torch_prune.global_unstructured(pruned, pruning_method=method, amount=0.1)
    return Ticket.from_torch_prune(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_without_training_are_one_step(family: str) -> None:
    model = build(family)
    theirs = published(model, 5)
    every = [*theirs.masks.values(), *theirs.bias_masks.values()]
    pruned, total = sum(int((~mask).sum()) for mask in every), sum(mask.numel() for mask in every)
    ours = prune(model, sparsity=pruned / total, include_biases=True)
    assert ours == theirs
    assert any(not mask.all() for mask in ours.bias_masks.values())
    assert not any("output.dense" in key and "attention" not in key for key in ours.bias_masks)


def test_the_bad_ones_keep_the_smallest() -> None:
    model = build()
    bad = prune(model, Magnitude(keep_smallest=True), sparsity=0.4, include_biases=True)
    sizes = {True: [], False: []}
    for key, mask in bad.masks.items():
        weight = resolve(model, key).weight.detach().abs()
        sizes[True].append(weight[mask])
        sizes[False].append(weight[~mask])
    for key, mask in bad.bias_masks.items():
        bias = resolve(model, key).bias.detach().abs()
        sizes[True].append(bias[mask])
        sizes[False].append(bias[~mask])
    assert torch.cat(sizes[True]).max() <= torch.cat(sizes[False]).min()


def test_weights_and_biases_count_together_and_what_is_pruned_stays_pruned() -> None:
    model = build()
    first = prune(model, "random", sparsity=0.5, include_biases=True)
    second = prune(model, sparsity=0.8, include_biases=True, ticket=first)
    for ticket, share in ((first, 0.5), (second, 0.8)):
        every = [*ticket.masks.values(), *ticket.bias_masks.values()]
        total = sum(mask.numel() for mask in every)
        assert sum(int(mask.sum()) for mask in every) == round((1 - share) * total)
    assert second & first == second
    other = second.apply_(copy.deepcopy(model))
    assert not any(resolve(other, key).bias[~mask].any() for key, mask in second.bias_masks.items())


@pytest.mark.parametrize(
    "options",
    [
        {"scope": "matrix"},
        {"granularity": "row"},
        {"method": "snip", "data": batches()},
    ],
)
def test_elsewhere_biases_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="include_biases needs method magnitude or random"):
        prune(build(), sparsity=0.5, include_biases=True, **options)
