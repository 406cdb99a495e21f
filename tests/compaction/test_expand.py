"""Compacted models in their configured shapes again: plain models that answer alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebert import compact_, compaction_description, densify_, expand_, sparsify_
from sparsebert.bert import resolve, structure
from tests.compaction.models import (
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
from tests.sparsify.models import build, weights

RAGGED = Recipe(3, weights=0.5, rows=0.6, columns=0.6, empty=(), heads=(1,), mlp=False, biases=False)


@pytest.mark.parametrize("family", FAMILIES)
@given(recipe=RECIPES, round_to=st.sampled_from((1, 4)))
@settings(max_examples=12)
def test_a_fresh_model_of_its_class_takes_its_weights(family: str, recipe: Recipe, round_to: int) -> None:
    model = model_of(family)
    ticket = ticket_of(model, recipe)
    expected = answers(masked(model, ticket), "nothing")
    compact_(model, ticket, round_to=round_to)
    fresh: Any = build(family).double()
    fresh.load_state_dict(expand_(model).state_dict())
    assert repr(model) == repr(fresh)
    assert compaction_description(model) == {}
    for each in (model, fresh):
        assert error(answers(each, "nothing"), expected) < 1e-12


def test_attention_weights_of_the_heads_that_were_left_are_at_their_places() -> None:
    model = model_of()
    model.set_attn_implementation("eager")
    ticket = ticket_of(model, RAGGED)
    expected = masked(model, ticket)(TOKENS, output_attentions=True).attentions
    found = expand_(compact_(model, ticket))(TOKENS, output_attentions=True).attentions
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine[:, [0, 2]], theirs[:, [0, 2]])


def test_hooks_and_flags_stay() -> None:
    model = model_of().train()
    key = structure(model).linears[0]
    fired: list[str] = []
    resolve(model, key).register_forward_hook(lambda *_: fired.append(key))
    resolve(model, key).weight.requires_grad_(False)
    expand_(compact_(model, ticket_of(model, RAGGED)))
    model(TOKENS)
    assert fired == [key]
    assert not resolve(model, key).weight.requires_grad
    assert all(module.training for module in model.modules())


def test_a_sparse_model_is_densified_first() -> None:
    model = model_of(dtype=torch.float32)
    ticket = ticket_of(model, RAGGED)
    expected = answers(masked(model, ticket))
    sparsify_(model, ticket, format="element")
    before = weights(model)
    with pytest.raises(ValueError, match="got a SparseLinear; densify_ the model first"):
        expand_(model)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    expand_(densify_(model))
    assert error(answers(model), expected) < 1e-5
    assert repr(model) == repr(build())


def test_a_model_as_configured_is_left_alone() -> None:
    model = model_of()
    modules = list(model.modules())
    expand_(model)
    assert all(old is new for old, new in zip(modules, model.modules(), strict=True))


def test_a_compacted_model_can_be_compacted_again_once_it_is_expanded() -> None:
    model = model_of()
    ticket = ticket_of(model, RAGGED)
    expected = answers(masked(model, ticket))
    stored = compaction_description(compact_(model, ticket))["weights"]["stored"]
    compact_(expand_(model))
    assert error(answers(model), expected) < 1e-12
    assert compaction_description(model)["weights"]["stored"] <= stored
