"""Rows with few weights dropped as well: only when asked for, to a fixed point, and said to be lossy."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from sparsebert import Ticket, compact_, compaction_description, rebuild_
from sparsebert.bert import resolve, structure
from sparsebert.compaction.thin_rows import without_thin_rows
from tests.compaction.models import (
    ATTEND,
    FAMILIES,
    RECIPES,
    TOKENS,
    Recipe,
    answers,
    error,
    masked,
    model_of,
    ticket_of,
)

SPARSE = Recipe(3, weights=0.15, rows=1.0, columns=1.0, empty=(), heads=(), mlp=False, biases=False)


def thinner(model: Any, ticket: Ticket, least: int) -> Ticket:
    found = structure(model)
    masks = without_thin_rows(ticket.masks, least, found.neurons, found.heads)
    return Ticket(masks, bias_masks=ticket.bias_masks, removed=ticket.removed)


@given(recipe=RECIPES)
@settings(max_examples=20)
def test_it_is_exact_compaction_of_a_smaller_ticket(recipe: Recipe) -> None:
    model = model_of()
    ticket = ticket_of(model, recipe)
    expected = answers(masked(model, thinner(model, ticket, 4)), "padded")
    assert error(answers(compact_(model, ticket, min_row_weights=4), "padded"), expected) < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
def test_no_row_that_is_left_is_thin(family: str) -> None:
    model = model_of(family)
    ticket = ticket_of(model, SPARSE)
    sizes = {}
    for least in (0, 4):
        small = model_of(family)
        sizes[least] = compaction_description(compact_(small, ticket, min_row_weights=least))["weights"]
        for key in structure(small).linears:
            counts = (resolve(small, key).weight != 0).sum(1)
            assert least == 0 or not ((counts > 1) & (counts < least)).any(), key
    assert sizes[4]["exact"] < sizes[0]["exact"]


def test_the_change_of_answers_is_reported_on_given_batches() -> None:
    model = model_of()
    ticket = ticket_of(model, SPARSE)
    batches = [{"input_ids": TOKENS, "attention_mask": ATTEND[which]} for which in ("all", "padded")]
    with torch.no_grad():
        before = [masked(model, ticket)(**batch).logits for batch in batches]
    compact_(model, ticket, min_row_weights=5, batches=batches)
    with torch.no_grad():
        after = [model(**batch).logits for batch in batches]
    differences = [a - b for a, b in zip(after, before, strict=True)]
    change = compaction_description(model)["output_change"]
    assert change["max"] == pytest.approx(float(torch.cat(differences).abs().max()))
    assert change["mean"] == pytest.approx(float(torch.cat(differences).abs().mean()))
    assert change["max"] > 1e-3
    assert compaction_description(model)["min_row_weights"] == 5
    fresh = rebuild_(model_of(), compaction_description(model))
    assert compaction_description(fresh) == compaction_description(model)


def test_exact_compaction_changes_no_answer_beyond_rounding() -> None:
    model = model_of().train()
    ticket = ticket_of(model, SPARSE._replace(rows=0.5))
    compact_(model, ticket, batches=[{"input_ids": TOKENS}])
    change = compaction_description(model)["output_change"]
    assert change["max"] < 1e-12
    assert change["changed"] == 0
    assert all(module.training for module in model.modules())


def test_a_batch_that_the_model_cannot_take_leaves_it_as_it_was() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="input_ids"):
        compact_(model, ticket_of(model, SPARSE), min_row_weights=5, batches=[{"pixels": TOKENS}])
    assert compaction_description(model) == {}


@pytest.mark.parametrize(
    ("batches", "why"),
    [
        (
            {"input_ids": TOKENS},
            "batches must be a list of batches, got a single batch; pass batches=[batch]",
        ),
        (["a film"], "each batch must be a mapping of the model's arguments, got a str"),
    ],
)
def test_what_is_no_list_of_batches_is_refused(batches: Any, why: str) -> None:
    model = model_of()
    with pytest.raises(ValueError, match=f"^{re.escape(why)}$"):
        compact_(model, ticket_of(model, SPARSE), min_row_weights=5, batches=batches)
    assert compaction_description(model) == {}
