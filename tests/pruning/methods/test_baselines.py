"""Baselines: random places with the ticket's counts, and its places with other weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsebert.bert import resolve, structure
from sparsebert.pruning import Within, prune, random_like, reinitialise_, shuffle_weights_
from sparsebert.tickets.ticket import Ticket

transformers = pytest.importorskip("transformers")
QUERY = "encoder.layer.0.attention.self.query"


def bert(layers: int = 3) -> Any:
    torch.manual_seed(0)
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=30,
            hidden_size=20,
            num_attention_heads=2,
            intermediate_size=28,
            num_hidden_layers=layers,
        )
    )


def weights(model: Any) -> dict[str, Tensor]:
    return {key: resolve(model, key).weight.detach().clone() for key in structure(model).linears}


class TestRandomLike:
    @pytest.mark.parametrize(
        "units",
        [
            {"granularity": "element"},
            {"granularity": "block", "block_size": (3, 8)},
            {"granularity": "row"},
            {"granularity": "column"},
        ],
        ids=lambda units: units["granularity"],
    )
    def test_every_matrix_keeps_as_many_weights_elsewhere(self, units: dict[str, Any]) -> None:
        ticket = prune(bert(), sparsity=0.7, **units)
        random = random_like(ticket, seed=3)
        assert random.layer_sparsity == ticket.layer_sparsity
        assert random != ticket
        assert random_like(random, seed=3).layer_sparsity == ticket.layer_sparsity
        assert random_like(ticket, seed=3) == random != random_like(ticket, seed=4)

    def test_patterns_stay_patterns(self) -> None:
        random = random_like(prune(bert(), granularity="2:4"), seed=1)
        for mask in random.masks.values():
            assert (mask.view(-1, 4).sum(1) == 2).all()

    def test_places_are_uniform(self) -> None:
        ticket = Ticket({QUERY: torch.eye(4, dtype=torch.bool)})
        hits = sum(random_like(ticket, seed=seed).masks[QUERY].float() for seed in range(400))
        assert hits.min() > 60
        assert hits.max() < 140

    def test_tickets_it_cannot_follow_are_refused(self) -> None:
        masks = {QUERY: torch.ones(4, 4, dtype=torch.bool)}
        with pytest.raises(ValueError, match="biases or whole modules"):
            random_like(Ticket(masks, bias_masks={QUERY: torch.ones(4, dtype=torch.bool)}))
        masks[QUERY][0, 0] = False
        with pytest.raises(ValueError, match="parts of units"):
            random_like(Ticket(masks, metadata={"granularity": "row"}))


class TestReinitialise:
    def test_everything_is_drawn_anew_from_the_seed(self) -> None:
        models = [reinitialise_(bert(), seed) for seed in (5, 5, 6)]
        first, same, other = (model.state_dict() for model in models)
        before = bert().state_dict()
        assert all(torch.equal(first[name], same[name]) for name in first)
        for name in ("embeddings.word_embeddings.weight", f"{QUERY}.weight"):
            assert not torch.equal(first[name], before[name])
            assert not torch.equal(first[name], other[name])

    def test_the_random_state_outside_stays(self) -> None:
        state = torch.get_rng_state()
        model = bert()
        torch.set_rng_state(state)
        reinitialise_(model)
        assert torch.equal(torch.get_rng_state(), state)


class TestShuffle:
    def test_each_matrix_keeps_its_values_at_other_places(self) -> None:
        before = weights(bert())
        after = weights(shuffle_weights_(bert(), seed=1))
        for key, weight in before.items():
            assert torch.equal(weight.flatten().sort().values, after[key].flatten().sort().values)
            assert not torch.equal(weight, after[key])

    def test_layers_are_exchanged_whole(self) -> None:
        before = weights(bert(layers=5))
        after = weights(shuffle_weights_(bert(layers=5), seed=1, within=Within.LAYERS))
        sources = []
        for layer in range(5):
            here = {key: weight for key, weight in after.items() if f"layer.{layer}." in key}
            (source,) = (
                other
                for other in range(5)
                if all(
                    torch.equal(weight, before[key.replace(f"layer.{layer}.", f"layer.{other}.")])
                    for key, weight in here.items()
                )
            )
            sources.append(source)
        assert sorted(sources) == list(range(5)) != sources

    def test_biases_and_embeddings_stay(self) -> None:
        model = bert()
        before = copy.deepcopy(model.state_dict())
        shuffle_weights_(model)
        matrices = {f"{key}.weight" for key in structure(model).linears}
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == matrices
