"""Gates: nothing at 1, the unit's absence at 0, in every family; the model stays what it was."""

from __future__ import annotations

import copy

import pytest
import torch

from sparsebert.bert import resolve, structure
from sparsebert.pruning.gates import gate_sites, gated
from tests.pruning.gated_models import FAMILY_AND_KIND, HEAD, HEADS, LAYERS, NEURONS, build, logits

COUNTS = {"head": HEADS, "neuron": NEURONS, "mlp": 1}


@pytest.mark.parametrize(("family", "kind"), FAMILY_AND_KIND)
class TestInEveryFamily:
    def test_a_gate_of_one_changes_no_bit(self, family: str, kind: str) -> None:
        model = build(family)
        before, sites = logits(model), gate_sites(structure(model), kind)
        assert [site.count(model) for site in sites.values()] == [COUNTS[kind]] * LAYERS
        with gated(model, sites, {name: torch.ones(COUNTS[kind]) for name in sites}):
            assert torch.equal(logits(model), before)
        for apart in ((4,), (4, 7)):  # examples, and their tokens
            with gated(model, sites, {name: torch.ones(*apart, COUNTS[kind]) for name in sites}):
                assert torch.equal(logits(model), before)

    def test_a_gate_of_zero_is_the_unit_gone(self, family: str, kind: str) -> None:
        model = build(family)
        encoder = structure(model)
        other = copy.deepcopy(model)
        with torch.no_grad():
            if kind == "head":
                resolve(other, encoder.heads[1][3]).weight[:, HEAD : 2 * HEAD] = 0
            elif kind == "neuron":
                resolve(other, encoder.neurons[1][1]).weight[:, 1] = 0
            else:
                resolve(other, encoder.neurons[1][1]).weight.zero_()
                resolve(other, encoder.neurons[1][1]).bias.zero_()
        sites = gate_sites(encoder, kind)
        gates = {name: torch.ones(COUNTS[kind]) for name in sites}
        gates[list(sites)[1]][min(1, COUNTS[kind] - 1)] = 0
        before = logits(model)
        with gated(model, sites, gates):
            closed = logits(model)
        assert not torch.allclose(closed, before, atol=1e-3)
        torch.testing.assert_close(closed, logits(other))
        assert torch.equal(logits(model), before)


def test_the_hooks_are_gone_afterwards_also_after_an_error() -> None:
    model = build()
    sites = gate_sites(structure(model), "head")
    with pytest.raises(KeyError), gated(model, sites, {name: torch.ones(HEADS) for name in sites}):
        raise KeyError
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert "gates" not in dict(model.named_parameters())


def test_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'head'"):
        gate_sites(structure(build()), "heads")
