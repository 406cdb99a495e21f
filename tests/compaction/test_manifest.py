"""A compacted model in plain values and back, and what it says of itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from sparsebert import compact_, compaction_description, rebuild_, sparsify_
from sparsebert.bert import resolve
from sparsebert.compaction.manifest import is_ticket_of
from sparsebert.tickets.ticket import Ticket
from tests.compaction.models import FAMILIES, Recipe, answers, masked, model_of, ticket_of
from tests.sparsify.models import MODELS, TOKENS, build

RAGGED = Recipe(3, weights=0.5, rows=0.6, columns=0.6, empty=(), heads=(1,), mlp=False, biases=False)


def rebuilt(name: str, description: dict[str, Any], device: str = "cpu") -> Any:
    with torch.device(device):
        return rebuild_(MODELS[name]().eval(), json.loads(json.dumps(description)))


@pytest.mark.parametrize("round_to", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_rebuilt_model_takes_the_values_of_the_compacted_one(family: str, round_to: int) -> None:
    model = model_of(family, torch.float32)
    compact_(model, ticket_of(model, RAGGED), round_to=round_to)
    description = compaction_description(model)
    fresh = rebuilt(family, description)
    fresh.load_state_dict(model.state_dict())
    assert answers(fresh, "nothing")[0].equal(answers(model, "nothing")[0])
    assert repr(fresh) == repr(model)
    assert compaction_description(fresh) == description


def test_on_the_meta_device() -> None:
    model = model_of(dtype=torch.bfloat16)
    compact_(model, ticket_of(model, RAGGED))
    fresh = rebuilt(FAMILIES[0], compaction_description(model), "meta")
    assert {tensor.device.type for tensor in fresh.state_dict().values()} == {"meta"}
    fresh.load_state_dict(model.state_dict(), assign=True)
    assert {tensor.device.type for tensor in fresh.state_dict().values()} == {"cpu"}
    twin = dict(model.named_buffers())
    for name, buffer in fresh.named_buffers():
        if buffer.is_meta:  # position ids and the like, which no checkpoint holds
            fresh.get_submodule(name.rpartition(".")[0])._buffers[name.rpartition(".")[2]] = twin[name]
    assert answers(fresh)[0].equal(answers(model)[0])


def test_a_rebuilt_model_keeps_dtype_and_flags() -> None:
    model = model_of(dtype=torch.float32)
    description = compaction_description(compact_(model, ticket_of(model, RAGGED)))
    fresh = build().half().train().requires_grad_(False)
    rebuild_(fresh, description)
    assert {parameter.dtype for parameter in fresh.parameters()} == {torch.float16}
    assert not any(parameter.requires_grad for parameter in fresh.parameters())
    assert all(module.training for module in fresh.modules())


def test_a_model_as_configured_has_none() -> None:
    assert compaction_description(model_of()) == {}
    assert compaction_description(torch.nn.Linear(2, 2)) == {}
    assert rebuild_(model_of(), {})(TOKENS).logits.isfinite().all()


def test_what_it_says() -> None:
    model = model_of()
    ticket = ticket_of(model, RAGGED)
    shapes = {key: tuple(mask.shape) for key, mask in ticket.masks.items()}
    description = compaction_description(compact_(model, ticket))
    assert description["ticket"] == ticket.digest
    assert (description["version"], description["round_to"], description["min_row_weights"]) == (1, 1, 0)
    assert "output_change" not in description
    assert description["weights"]["configured"] == sum(rows * columns for rows, columns in shapes.values())
    for path, groups in description["attention"].items():
        assert [group["heads"] for group in groups] == [[0, 2]]
        query, value = (description["linears"][f"{path}.{name}"] for name in ("query", "value"))
        assert query["shape"][0] == 2 * groups[0]["score"]
        assert value["shape"][0] == 2 * groups[0]["value"]
    for key, entry in description["linears"].items():
        layer = resolve(model, key)
        assert [layer.out_features, layer.in_features] == entry["shape"]
        assert list(layer.weight.shape) == entry.get("live", entry["shape"])


def test_after_sparsify_it_describes_whole_layers() -> None:
    model = model_of(dtype=torch.float32)
    ticket = ticket_of(model, RAGGED)
    expected = answers(masked(model, ticket))
    before = compaction_description(compact_(model, ticket))
    sparsify_(model, ticket, format="element")
    after = compaction_description(model)
    assert any("live" in entry for entry in before["linears"].values())
    assert not any("live" in entry for entry in after["linears"].values())
    fresh = rebuilt(FAMILIES[0], after)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(answers(fresh), expected)


class TestTicketOfARecord:
    def test_is_known_by_its_digest(self) -> None:
        record = {"ticket": ticket_of(model_of(), RAGGED).digest}
        assert is_ticket_of(record, ticket_of(model_of(), RAGGED))
        for other in (RAGGED._replace(seed=4), RAGGED._replace(biases=True)):
            assert not is_ticket_of(record, ticket_of(model_of(), other))

    def test_is_known_by_the_digest_that_earlier_versions_recorded(self) -> None:
        mask = torch.tensor([[True, False], [False, True]])
        ticket = Ticket({"b": mask, "a": ~mask, "c": mask & ~mask}, bias_masks={"a": mask[0]}, removed=["c"])
        recorded = "sha256:8903fe4c93dcb388256f143ad0b6eac2e61939aa46b6adc41e46b7561990e2b8"
        assert is_ticket_of({"ticket": recorded}, ticket)
        assert not is_ticket_of({"ticket": recorded}, ~Ticket(ticket.masks))
