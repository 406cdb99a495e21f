"""Compacted models answer as the masked ones do, whatever a ticket empties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebert import Ticket, compact_, compaction_description, prune
from sparsebert.bert import resolve, structure
from tests.compaction.models import (
    ATTEND,
    FAMILIES,
    RECIPES,
    Recipe,
    answers,
    error,
    masked,
    model_of,
    ticket_of,
)

EVERYTHING = Recipe(3, weights=0.5, rows=0.6, columns=0.6, empty=(), heads=(), mlp=False, biases=False)


# RoBERTa and ELECTRA lay out their encoders as BERT does.
SAME_LAYOUT = tuple(family for family in FAMILIES if family.startswith(("Roberta", "Electra")))
LAYOUTS = tuple(family for family in FAMILIES if family not in SAME_LAYOUT)


class TestAnyTicket:
    @pytest.mark.parametrize("family", LAYOUTS)
    @given(recipe=RECIPES, attend=st.sampled_from(sorted(ATTEND)), round_to=st.sampled_from((1, 4)))
    @settings(max_examples=30)
    def test_float64(self, family: str, recipe: Recipe, attend: str, round_to: int) -> None:
        self.compacts_exactly(family, recipe, attend, round_to)

    @pytest.mark.parametrize("family", SAME_LAYOUT)
    @given(recipe=RECIPES, attend=st.sampled_from(sorted(ATTEND)), round_to=st.sampled_from((1, 4)))
    @settings(max_examples=8)
    def test_float64_of_families_that_share_the_layout_of_bert(
        self, family: str, recipe: Recipe, attend: str, round_to: int
    ) -> None:
        self.compacts_exactly(family, recipe, attend, round_to)

    def compacts_exactly(self, family: str, recipe: Recipe, attend: str, round_to: int) -> None:
        model = model_of(family)
        ticket = ticket_of(model, recipe)
        expected = answers(masked(model, ticket), attend)
        assert error(answers(compact_(model, ticket, round_to=round_to), attend), expected) < 1e-12

    @pytest.mark.parametrize("family", FAMILIES)
    @given(recipe=RECIPES)
    @settings(max_examples=8)
    def test_float32(self, family: str, recipe: Recipe) -> None:
        model = model_of(family, torch.float32)
        ticket = ticket_of(model, recipe)
        expected = answers(masked(model, ticket), "padded")
        assert error(answers(compact_(model, ticket), "padded"), expected) < 1e-5

    @given(recipe=RECIPES)
    @settings(max_examples=8)
    def test_bfloat16_is_as_far_from_float64_as_the_masked_model(self, recipe: Recipe) -> None:
        model = model_of().bfloat16()
        ticket = ticket_of(model, recipe)
        exact = answers(masked(model, ticket).double())
        theirs = error([each.double() for each in answers(masked(model, ticket))], exact)
        ours = error([each.double() for each in answers(compact_(model, ticket))], exact)
        assert ours <= 2 * theirs + 0.01


class TestWhatIsEmptied:
    @pytest.mark.parametrize("number", range(6))
    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_weight_of_a_matrix(self, family: str, number: int) -> None:
        model = model_of(family)
        ticket = ticket_of(model, EVERYTHING._replace(rows=1.0, columns=1.0, empty=(number,)))
        expected = answers(masked(model, ticket), "nothing")
        assert error(answers(compact_(model, ticket), "nothing"), expected) < 1e-12

    @pytest.mark.parametrize("family", FAMILIES)
    def test_one_layer(self, family: str) -> None:
        model = model_of(family)
        ticket = ticket_of(model, EVERYTHING._replace(empty=tuple(range(6))))
        expected = answers(masked(model, ticket), "nothing")
        assert error(answers(compact_(model, ticket), "nothing"), expected) < 1e-12
        first = structure(model).linears[:6]
        assert sum(resolve(model, key).weight.numel() for key in first) < 6 * 24

    def test_everything(self) -> None:
        model = model_of()
        ticket = ticket_of(model, EVERYTHING._replace(weights=0.0))
        expected = answers(masked(model, ticket), "padded")
        assert error(answers(compact_(model, ticket), "padded"), expected) < 1e-12

    def test_without_a_ticket_the_zeros_in_the_weights(self) -> None:
        model = model_of()
        ticket = ticket_of(model, EVERYTHING)
        expected = answers(masked(model, ticket))
        with_ticket, with_zeros = compact_(model_of(), ticket), compact_(masked(model, ticket))
        assert error(answers(with_zeros), expected) < 1e-12
        assert repr(with_zeros) == repr(with_ticket)

    def test_nothing(self) -> None:
        """A ticket that empties no line masks the model and leaves every module in its place."""
        model = model_of()
        ticket = prune(model, "magnitude", sparsity=0.3, scope="matrix")
        expected, modules = answers(masked(model, ticket)), list(model.modules())
        compact_(model, ticket)
        assert answers(model)[0].equal(expected[0])
        assert all(old is new for old, new in zip(modules, model.modules(), strict=True))

    def test_masked_weights_are_never_read(self) -> None:
        """What is pruned may be NaN or infinite."""
        model = model_of()
        ticket = ticket_of(model, EVERYTHING)
        expected = answers(masked(model, ticket))
        with torch.no_grad():
            for key, mask in ticket.masks.items():
                resolve(model, key).weight[~mask] = float("nan")
        assert error(answers(compact_(model, ticket)), expected) < 1e-12

    def test_biases_of_matrices_alone(self) -> None:
        """A ticket may name few matrices: their neighbours get smaller with them."""
        model = model_of()
        up, down = structure(model).neurons[1]
        mask = torch.ones(40, 24, dtype=torch.bool)
        mask[:25] = False
        ticket = Ticket({up: mask})
        expected = answers(masked(model, ticket))
        assert error(answers(compact_(model, ticket)), expected) < 1e-12
        assert (resolve(model, up).out_features, resolve(model, down).in_features) == (15, 15)


class TestStructuredTickets:
    """Every granularity that takes whole lines ends in smaller matrices."""

    @pytest.mark.parametrize("granularity", ["row", "column", "neuron", "head", "mlp"])
    @pytest.mark.parametrize("method", ["magnitude", "random"])
    def test_real_removal(self, method: str, granularity: str) -> None:
        model = model_of(dtype=torch.float32)
        ticket = prune(model, method, sparsity=0.5, granularity=granularity)
        expected = answers(masked(model, ticket), "padded")
        assert error(answers(compact_(model, ticket), "padded"), expected) < 1e-5
        weights = compaction_description(model)["weights"]
        kept = sum(int(mask.sum()) for mask in ticket.masks.values())
        uncovered = weights["configured"] - sum(mask.numel() for mask in ticket.masks.values())
        assert weights["exact"] <= kept + uncovered
        assert weights["stored"] <= weights["exact"] + weights["configured"] / 16 + 2 * 24

    def test_heads_that_go_whole_leave_the_models_own_attention(self) -> None:
        model = model_of()
        ticket = prune(model, "random", sparsity=0.34, granularity="head", scope="matrix")
        kinds = [type(resolve(model, f"encoder.layer.{i}.attention.self")) for i in range(2)]
        compact_(model, ticket)
        for layer, kind in enumerate(kinds):
            attention = resolve(model, f"encoder.layer.{layer}.attention.self")
            assert type(attention) is kind
            assert attention.query.out_features == 16

    def test_a_removed_mlp_leaves_its_input(self) -> None:
        model = model_of()
        ticket = ticket_of(model, EVERYTHING._replace(rows=1.0, columns=1.0, weights=1.0, mlp=True))
        expected = answers(masked(model, ticket))
        assert error(answers(compact_(model, ticket)), expected) < 1e-12
        assert compaction_description(model)["linears"].keys() == set(structure(model).neurons[0])


class TestPadding:
    def test_widths_are_multiples_and_both_sizes_are_told(self) -> None:
        model = model_of()
        ticket = ticket_of(model, EVERYTHING)
        exact = compaction_description(compact_(model_of(), ticket))["weights"]
        padded = compaction_description(compact_(model, ticket, round_to=4))
        assert padded["weights"]["exact"] == exact["exact"] <= exact["stored"] < padded["weights"]["stored"]
        for layer in padded["linears"].values():
            assert all(size % 4 == 0 for size in layer["shape"])
            assert all(size % 4 == 0 for size in layer.get("live", []))

    def test_nothing_gets_wider_than_it_was(self) -> None:
        model = model_of()
        ticket = ticket_of(model, EVERYTHING)
        expected = answers(masked(model, ticket))
        assert error(answers(compact_(model, ticket, round_to=40)), expected) < 1e-12
        assert compaction_description(model)["linears"] == {}
