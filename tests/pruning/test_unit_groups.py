"""Neurons and heads: one unit across several matrices, counted exactly, in every family."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsebert.bert import resolve, structure
from sparsebert.lottery.experiment import RunConfig
from sparsebert.lottery.methods import OneShot
from sparsebert.lottery.speed_estimate import estimate_speedup
from sparsebert.planning.planner import plan
from sparsebert.pruning import methods, prune, random_like
from sparsebert.pruning.pruning_units import PruningUnits
from sparsebert.pruning.unit_groups import unit_groups
from sparsebert.sparsify import sparsify_
from sparsebert.tickets.ticket import Ticket

transformers = pytest.importorskip("transformers")

LAYERS, WIDTH, HEADS, NEURONS = 3, 24, 4, 40
HEAD = WIDTH // HEADS
KINDS = {"neuron": (LAYERS * NEURONS, 2 * WIDTH), "head": (LAYERS * HEADS, 4 * WIDTH * HEAD)}
# Both kinds in both layouts of module names; RoBERTa and ELECTRA have BERT's.
FAMILY_AND_KIND = [
    ("Bert", "neuron"),
    ("Bert", "head"),
    ("Roberta", "neuron"),
    ("Electra", "head"),
    ("DistilBert", "neuron"),
    ("DistilBert", "head"),
]


def build(family: str = "Bert", head: str = "ForSequenceClassification") -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": NEURONS}
    shape |= {"num_hidden_layers": LAYERS, "initializer_range": 0.2}
    if family == "DistilBert":
        shape = {"dim": WIDTH, "n_heads": HEADS, "hidden_dim": NEURONS, "n_layers": LAYERS}
    config = getattr(transformers, f"{family}Config")(vocab_size=30, **shape)
    model = getattr(transformers, family + head)(config).eval()
    with torch.no_grad():
        for name, bias in model.named_parameters():
            if name.endswith("bias"):
                bias.normal_(std=0.3)
    return model


def batches(count: int = 2) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 30, (count, 4, 7), generator=generator)
    return [{"input_ids": each, "labels": torch.tensor([0, 1, 1, 0])} for each in ids]


def weight(model: Any, key: str) -> np.ndarray:
    return resolve(model, key).weight.detach().numpy()


def parts(model: Any, kind: str) -> list[list[tuple[str, Any]]]:
    """Of every unit, in model order, the key and the place of its weights in each matrix: written out."""
    units = []
    for layer in range(LAYERS):
        keys = [key for key in structure(model).linears if f"layer.{layer}." in key]
        of = {structure(model).types[key]: key for key in keys}
        if kind == "neuron":
            units += [[(of["ffn_up"], np.s_[i, :]), (of["ffn_down"], np.s_[:, i])] for i in range(NEURONS)]
        else:
            for i in range(HEADS):
                lines = slice(i * HEAD, (i + 1) * HEAD)
                rows = [(of[kind], np.s_[lines, :]) for kind in ("query", "key", "value")]
                units.append([*rows, (of["attention_output"], np.s_[:, lines])])
    return units


def kept(ticket: Ticket, kind: str, model: Any) -> list[bool]:
    """Which units a ticket keeps; every one of them whole or not at all."""
    result = []
    for unit in parts(model, kind):
        bits = np.concatenate([ticket.masks[key].numpy()[place].ravel() for key, place in unit])
        assert bits.all() or not bits.any()
        result.append(bool(bits.all()))
    return result


@pytest.mark.parametrize(("family", "kind"), FAMILY_AND_KIND)
def test_the_units_with_the_largest_mean_magnitude_stay(family: str, kind: str) -> None:
    model = build(family)
    count, size = KINDS[kind]
    scores = [
        np.mean(
            np.concatenate([np.abs(weight(model, key)[place]).ravel() for key, place in unit]), dtype=float
        )
        for unit in parts(model, kind)
    ]
    for percent in (0, 10, 50, 70, 90):
        ticket = prune(model, sparsity=percent / 100, granularity=kind)
        number = round(Fraction(100 - percent, 100) * count)
        best = np.argsort(scores)[::-1][:number]
        assert kept(ticket, kind, model) == [i in best for i in range(count)]
        assert sum(int(mask.sum()) for mask in ticket.masks.values()) == number * size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["mean", "rms", "max"])
def test_scores_are_pooled_over_all_matrices_by_the_named_rule(rule: str, kind: str) -> None:
    model = build()
    rules = {"mean": np.mean, "rms": lambda x: np.sqrt(np.mean(x**2)), "max": np.max}
    scores = [
        float(
            rules[rule](
                np.concatenate([np.abs(weight(model, key)[at]).ravel() for key, at in unit], dtype=float)
            )
        )
        for unit in parts(model, kind)
    ]
    ticket = prune(model, sparsity=0.5, granularity=kind, pooling=rule)
    best = np.argsort(scores)[::-1][: len(scores) // 2]
    assert kept(ticket, kind, model) == [i in best for i in range(len(scores))]


@pytest.mark.parametrize("kind", KINDS)
def test_ties_are_cut_by_position(kind: str) -> None:
    model = build()
    with torch.no_grad():
        for key in structure(model).linears:
            resolve(model, key).weight.fill_(0.5)
    count, _ = KINDS[kind]
    units = kept(prune(model, sparsity=0.7, granularity=kind), kind, model)
    number = round(Fraction(3, 10) * count)
    assert units == [True] * number + [False] * (count - number)


@pytest.mark.filterwarnings("ignore:layer collapse")
@pytest.mark.parametrize("method", methods())
@pytest.mark.parametrize(("scope", "kind"), [("global", "neuron"), ("matrix", "head"), ("type", "neuron")])
def test_every_method_in_every_scope(method: str, scope: str, kind: str) -> None:
    model = build()
    units = kept(
        prune(model, method, sparsity=0.5, granularity=kind, scope=scope, data=batches()), kind, model
    )
    assert sum(units) == len(units) // 2
    if scope == "matrix":
        per_layer = np.array(units).reshape(LAYERS, -1).sum(1)
        assert set(per_layer.tolist()) == {len(units) // LAYERS // 2}


@pytest.mark.parametrize("kind", KINDS)
def test_other_matrices_are_no_part_of_the_ticket_and_both_shares_are_said(kind: str) -> None:
    model = build()
    ticket = prune(model, sparsity=0.5, granularity=kind)
    types = {structure(model).types[key] for key in ticket.masks}
    expected = {"neuron": {"ffn_up", "ffn_down"}, "head": {"query", "key", "value", "attention_output"}}
    assert types == expected[kind]
    assert list(ticket.masks) == [key for key in structure(model).linears if key in ticket.masks]
    whole = sum(weight(model, key).size for key in structure(model).linears)
    pruned = sum(int((~mask).sum()) for mask in ticket.masks.values())
    assert ticket.sparsity == ticket.metadata["sparsity"] == 0.5
    assert ticket.metadata["encoder_sparsity"] == pruned / whole
    with pytest.raises(ValueError, match=f"the pooler has no unit of granularity '{kind}'"):
        prune(model, sparsity=0.5, granularity=kind, include_pooler=True)


@pytest.mark.parametrize("kind", KINDS)
def test_pruning_further_keeps_to_what_is_left(kind: str) -> None:
    model = build()
    first = prune(model, "random", sparsity=0.25, granularity=kind)
    second = prune(model, sparsity=0.75, granularity=kind, ticket=first)
    assert second & first == second
    assert sum(kept(second, kind, model)) == KINDS[kind][0] // 4
    element = Ticket({key: torch.rand(mask.shape) > 0.5 for key, mask in first.masks.items()})
    with pytest.raises(ValueError, match="parts of units"):
        prune(model, sparsity=0.9, granularity=kind, ticket=element)
    other = prune(model, sparsity=0.5, granularity={"neuron": "head", "head": "neuron"}[kind])
    with pytest.raises(ValueError, match="which is not among the matrices to prune"):
        prune(model, sparsity=0.9, granularity=kind, ticket=other)


@pytest.mark.parametrize("kind", KINDS)
def test_random_units_with_the_counts_of_each_layer(kind: str) -> None:
    model = build()
    ticket = prune(model, sparsity=0.5, granularity=kind)
    random = random_like(ticket, 3, model)
    assert random != ticket
    assert random.layer_sparsity == ticket.layer_sparsity
    kept(random, kind, model)
    with pytest.raises(ValueError, match="pass the model"):
        random_like(ticket)


@pytest.mark.parametrize(("family", "kind"), FAMILY_AND_KIND)
def test_the_sparse_model_answers_as_the_pruned_one(family: str, kind: str) -> None:
    model = build(family)
    scope = "matrix" if family == "Bert" else "global"
    ticket = prune(model, sparsity=0.75, granularity=kind, scope=scope)
    pruned = ticket.apply_(copy.deepcopy(model))
    fast = sparsify_(copy.deepcopy(model), ticket)
    with torch.no_grad():
        for batch in batches():
            expected, got = (each(input_ids=batch["input_ids"]).logits for each in (pruned, fast))
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_layers_that_are_emptied_whole_answer_by_their_biases() -> None:
    model = build()
    for kind in KINDS:
        ticket = prune(model, sparsity=0.9, granularity=kind)
        for key in ticket.masks:
            if "layer.1." in key:
                ticket.masks[key].zero_()
        pruned, fast = ticket.apply_(copy.deepcopy(model)), sparsify_(copy.deepcopy(model), ticket)
        with torch.no_grad():
            logits = [each(input_ids=batches()[0]["input_ids"]).logits for each in (pruned, fast)]
        torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_dead_rows_and_columns_are_taken_out_of_what_is_stored(kind: str) -> None:
    """Large enough to pay: the plan stores what is kept, and says what that gains."""
    config = transformers.BertConfig(num_hidden_layers=1, vocab_size=30)
    model = transformers.BertModel(config)
    ticket = prune(model, sparsity=0.75, granularity=kind)
    layers = plan(model, ticket, measure=False).layers
    assert len(layers) == len(ticket.masks)
    assert all(layer.nbytes < 0.3 * layer.dense_nbytes for layer in layers)
    lines = estimate_speedup(model, RunConfig(OneShot(), 0.75, PruningUnits(kind)))
    assert f"granularity '{kind}'" in lines[0]
    assert "of all encoder matrices" in lines[0]


def test_a_model_whose_matrices_do_not_fit_together_is_refused() -> None:
    encoder = structure(build())
    shapes = {key: torch.Size((WIDTH, WIDTH)) for key in encoder.linears}
    shapes[encoder.neurons[0][0]] = torch.Size((NEURONS, WIDTH))
    with pytest.raises(ValueError, match="do not fit the other matrices of its layer"):
        unit_groups("neuron", None, shapes, encoder)
    with pytest.raises(ValueError, match="takes no block_size"):
        unit_groups("head", (4, 4), shapes, encoder)
    shapes[encoder.heads[0][0]] = torch.Size((WIDTH - HEAD, WIDTH))
    with pytest.raises(ValueError, match="prune heads before compacting the model"):
        unit_groups("head", None, shapes, encoder)
