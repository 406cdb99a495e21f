"""What cannot be compacted is refused in one line, and the model stays as it was."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from sparsebert import Ticket, compact_, compaction_description, prune, rebuild_, sparsify_
from sparsebert.bert import resolve, structure
from tests.compaction.models import TOKENS, Recipe, answers, model_of, ticket_of
from tests.sparsify.models import weights

transformers = pytest.importorskip("transformers")

RAGGED = Recipe(3, weights=0.5, rows=0.6, columns=0.6, empty=(), heads=(1,), mlp=False, biases=False)


def refused(model: nn.Module, ticket: Any, line: str, **options: Any) -> None:
    before = weights(model)
    modules = list(model.modules())
    with pytest.raises(ValueError, match=line) as caught:
        compact_(model, ticket, **options)
    assert "\n" not in str(caught.value)
    assert all(old is new for old, new in zip(modules, model.modules(), strict=True))
    after = weights(model)
    assert all(tensor.equal(after[name]) for name, tensor in before.items())
    assert compaction_description(model) == {}


class TestModels:
    def test_another_family(self) -> None:
        refused(nn.Sequential(nn.Linear(3, 3)), Ticket({"0": torch.zeros(3, 3, dtype=torch.bool)}), "BERT")

    def test_a_decoder(self) -> None:
        config = model_of().config
        config.is_decoder = True
        model = transformers.BertLMHeadModel(config).double()
        refused(model, ticket_of(model_of(), RAGGED), "is a decoder; only encoders")

    def test_another_attention_implementation(self) -> None:
        model = model_of()
        model.config._attn_implementation = "flex_attention"
        refused(model, ticket_of(model, RAGGED), "attention 'flex_attention' .*\"sdpa\"")

    @pytest.mark.parametrize("ticket", ["this", "another"])
    def test_twice(self, ticket: str) -> None:
        model = model_of()
        first = ticket_of(model, RAGGED)
        compact_(model, first)
        other = first if ticket == "this" else ticket_of(model_of(), RAGGED._replace(seed=4))
        with pytest.raises(ValueError, match=f"compacted already, with {ticket} ticket"):
            compact_(model, other)

    def test_a_sparse_model(self) -> None:
        model = model_of(dtype=torch.float32)
        ticket = ticket_of(model, RAGGED)
        sparsify_(model, ticket, format="element", compact=False)
        with pytest.raises(ValueError, match="densify_ the model first"):
            compact_(model, ticket)

    def test_tied_and_patched_layers(self) -> None:
        model = model_of()
        keys = structure(model).linears
        resolve(model, keys[0]).weight = resolve(model, keys[1]).weight
        ticket = Ticket({keys[5]: ticket_of(model, RAGGED).masks[keys[5]]})
        refused(model, ticket, "is tied to")
        model = model_of()
        attention = resolve(model, "encoder.layer.1.attention.self")
        attention.forward = attention.forward
        refused(model, ticket_of(model, RAGGED), "encoder.layer.1.attention.self is patched")

    def test_heads_that_do_not_divide(self) -> None:
        model = model_of()
        model.config.num_attention_heads = 5
        refused(model, ticket_of(model_of(), RAGGED), "5 heads of 4 do not divide the rows of")

    def test_without_values(self) -> None:
        model = model_of()
        ticket = ticket_of(model, RAGGED)
        with pytest.raises(ValueError, match="meta device"):
            compact_(model.to("meta"), ticket)


class TestArguments:
    def test_a_ticket_of_another_model(self) -> None:
        model = model_of()
        ticket = ticket_of(model_of("DistilBertForQuestionAnswering"), RAGGED)
        refused(model, ticket, "ticket of another model")
        refused(model, "ticket.safetensors", "ticket must be a sparsebert.Ticket, got a str")

    @pytest.mark.parametrize("option", ["min_row_weights", "round_to"])
    @pytest.mark.parametrize("value", [-1, 1.5, True, "8"])
    def test_numbers(self, option: str, value: Any) -> None:
        model = model_of()
        refused(
            model,
            ticket_of(model, RAGGED),
            f"{option} must be an integer of at least [01], got {value!r}",
            **{option: value},
        )

    def test_a_width_that_the_model_does_not_have(self) -> None:
        model = model_of()
        ticket, widest = ticket_of(model, RAGGED), model.config.intermediate_size
        line = f"round_to must be at most the model's largest width, {widest}, got {widest + 1}"
        refused(model, ticket, line, round_to=widest + 1)
        refused(model, ticket, "round_to must be at most .*, got 1000000000", round_to=10**9)
        compact_(model, ticket, round_to=widest)

    def test_more_weights_than_a_row_has(self) -> None:
        model = model_of()
        ticket, longest = ticket_of(model, RAGGED), model.config.intermediate_size
        line = f"min_row_weights must be at most the longest row, {longest} weights, got {longest + 1}"
        refused(model, ticket, line, min_row_weights=longest + 1)
        refused(model, ticket, "min_row_weights must be at most .*, got 1000000", min_row_weights=10**6)
        compact_(model, ticket, min_row_weights=longest)


class TestPruningFurther:
    def test_heads_are_chosen_before(self) -> None:
        model = model_of()
        compact_(model, ticket_of(model, RAGGED))
        with pytest.raises(ValueError, match="prune heads before compacting the model"):
            prune(model, "magnitude", sparsity=0.5, granularity="head")

    def test_neurons_can_go_afterwards(self) -> None:
        model = model_of()
        compact_(model, prune(model, "magnitude", sparsity=0.5, granularity="neuron", scope="matrix"))
        ticket = prune(model, "magnitude", sparsity=0.5, granularity="neuron", scope="matrix")
        assert [len(ticket.masks[up]) for up, _ in structure(model).neurons] == [20, 20]


class TestDescriptions:
    @pytest.fixture
    def description(self) -> dict[str, Any]:
        model = model_of()
        return compaction_description(compact_(model, ticket_of(model, RAGGED)))

    def rejected(self, description: dict[str, Any], line: str) -> None:
        model = model_of()
        modules = list(model.modules())
        with pytest.raises(ValueError, match=line) as caught:
            rebuild_(model, description)
        assert "\n" not in str(caught.value)
        assert all(old is new for old, new in zip(modules, model.modules(), strict=True))
        assert answers(model)[0].equal(answers(model_of())[0])

    def test_a_newer_version(self, description: dict[str, Any]) -> None:
        self.rejected(description | {"version": 2}, "version of the compaction description must be 1, got 2")

    @pytest.mark.parametrize(
        ("part", "value"),
        [
            ("linears", None),
            ("linears", {"encoder.layer.0.output.dense": {"shape": "24x9"}}),
            ("linears", {"encoder.layer.0.output.dense": {"shape": [24, 9.5]}}),
            ("attention", {"encoder.layer.0.attention.self": [{"heads": [0]}]}),
            (
                "attention",
                {"encoder.layer.0.attention.self": [{"heads": [0], "score": math.inf, "value": 1}]},
            ),
        ],
    )
    def test_damage(self, description: dict[str, Any], part: str, value: Any) -> None:
        self.rejected(description | {part: value}, "damaged")

    @pytest.mark.parametrize(
        ("part", "value"),
        [
            ("ticket", None),
            ("round_to", "8"),
            ("min_row_weights", float("nan")),
            ("weights", None),
            ("weights", {"configured": 8448, "exact": float("inf")}),
            ("output_change", {"max": float("nan"), "mean": 0.0, "changed": 0.0}),
            ("output_change", {"max": 1.0}),
        ],
    )
    def test_values_that_no_compaction_has(self, description: dict[str, Any], part: str, value: Any) -> None:
        assert description["weights"]["configured"] == 8448
        self.rejected(description | {part: value}, "damaged")

    def test_another_number_of_weights(self, description: dict[str, Any]) -> None:
        weights = {"configured": 0, "exact": 0}
        self.rejected(
            description | {"weights": weights}, "another model: it has 0 encoder weights, this model has 8448"
        )

    @pytest.mark.parametrize("shape", [[24, 10**9], [24, 0], [-1, 5]])
    def test_sizes_that_no_compaction_makes(self, description: dict[str, Any], shape: list[int]) -> None:
        """Checked before anything is allocated."""
        linears = description["linears"] | {"encoder.layer.0.output.dense": {"shape": shape}}
        self.rejected(description | {"linears": linears}, "the compaction description is of another model")

    def test_another_model(self, description: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"another model: DistilBert.* has no encoder"):
            rebuild_(model_of("DistilBertForQuestionAnswering"), description)

    def test_neighbours_that_do_not_fit(self, description: dict[str, Any]) -> None:
        for key in ("encoder.layer.0.output.dense", "encoder.layer.1.attention.self.key"):
            linears = {name: entry for name, entry in description["linears"].items() if name != key}
            self.rejected(description | {"linears": linears}, "neurons|do not fit its matrices")

    @pytest.mark.parametrize("heads", [[0, 0], [0, 3], []])
    def test_heads_that_the_model_does_not_have(self, description: dict[str, Any], heads: list[int]) -> None:
        path = "encoder.layer.0.attention.self"
        groups = [group | {"heads": heads} for group in description["attention"][path]]
        attention = description["attention"] | {path: groups}
        self.rejected(description | {"attention": attention}, f"the described heads of {path} do not fit")

    def test_a_group_without_heads(self, description: dict[str, Any]) -> None:
        path = "encoder.layer.0.attention.self"
        groups = [*description["attention"][path], {"heads": [], "score": 4, "value": 4}]
        attention = description["attention"] | {path: groups}
        self.rejected(description | {"attention": attention}, f"the described heads of {path} do not fit")

    def test_into_a_compacted_model(self, description: dict[str, Any]) -> None:
        model = model_of()
        compact_(model, ticket_of(model, RAGGED))
        with pytest.raises(ValueError, match="compacted already; create a new model from its config"):
            rebuild_(model, description)
        assert model(TOKENS).logits.isfinite().all()
