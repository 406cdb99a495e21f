"""The predicted time of a matrix by its mask is what a plan of the whole model predicts for it."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from sparsebert import Ticket, plan
from sparsebert.cost import candidates, cpu_cost
from sparsebert.cost.precision import PRECISIONS
from sparsebert.planning import engine_choice, mask_costs
from sparsebert.planning.encoder_plan import LAYERS
from tests.one_shot.test_prune_in_place import bert

TOKENS = 64
KEYS = [
    f"encoder.layer.0.{name}"
    for name in ("attention.self.query", "attention.self.key", "intermediate.dense", "output.dense")
]


@pytest.fixture
def model(monkeypatch):
    """A model whose costs are built in."""
    built_in = partial(cpu_cost.cost_model, measure=False)
    for module in (candidates, engine_choice, mask_costs):
        monkeypatch.setattr(module, "cost_model", lambda dtype, tokens, measure=True: built_in(dtype, tokens))
    return bert(hidden_size=128, num_attention_heads=2, intermediate_size=256)


@pytest.fixture
def masks(model):
    """One matrix of single weights, one of vectors, one that stays dense and one of panels."""
    torch.manual_seed(0)
    shapes = {key: model.get_submodule(key).weight.shape for key in KEYS}
    element, vectors, dense, panels = KEYS
    return {
        element: torch.rand(shapes[element]) < 0.1,
        vectors: (torch.rand(shapes[vectors][0] // 4, shapes[vectors][1]) < 0.1).repeat_interleave(4, 0),
        dense: torch.ones(shapes[dense], dtype=torch.bool),
        panels: (torch.rand(shapes[panels][0] // 32, 4) < 0.5)
        .repeat_interleave(32, 0)
        .repeat_interleave(64, 1),
    }


@pytest.mark.parametrize("tolerance", PRECISIONS)
def test_the_matrices_and_the_rest_are_the_whole_encoder(model, masks, tolerance):
    costs = mask_costs.mask_costs(model, KEYS, TOKENS, tolerance)
    planned = plan(model, Ticket(masks), tokens=TOKENS, measure=False, compact=False, tolerance=tolerance)
    each = {key: costs.of_mask(mask) for key, mask in masks.items()}
    assert set(planned.encoder.predicted_us) == set(costs.rest)
    for way, microseconds in planned.encoder.predicted_us.items():
        total = costs.rest[way] + sum(times[way] for times in each.values())
        assert total == pytest.approx(microseconds / 1e3, rel=1e-3), way


def test_the_planner_picks_the_format_of_each_granularity_by_itself(model, masks):
    planned = plan(model, Ticket(masks), tokens=TOKENS, measure=False, compact=False)
    labels = [layer.label for layer in planned.layers]
    assert labels[0] == "element"
    assert labels[1].startswith("vector 4x1")
    assert labels[2] == "dense"


def test_a_matrix_that_is_not_faster_costs_its_dense_time(model):
    (key,) = KEYS[:1]
    costs = mask_costs.mask_costs(model, [key], TOKENS)
    shape = model.get_submodule(key).weight.shape
    dense = costs.of_mask(torch.ones(shape, dtype=torch.bool))
    crowded = costs.of_mask(torch.rand(shape) < 0.95)
    assert crowded[LAYERS] == pytest.approx(dense[LAYERS])


def test_a_gpu_is_predicted_by_its_roofline(model, masks):
    costs = mask_costs.mask_costs(model, KEYS, 4096, device="h100")
    planned = plan(model, Ticket(masks), tokens=4096, device="h100", compact=False)
    for layer in planned.layers:
        activation = costs.activations.get(layer.key, "none")
        times = costs.of_mask(masks[layer.key], activation)
        assert times[LAYERS] == pytest.approx(layer.predicted_us / 1e3)
    assert costs.dense > 0
    assert mask_costs.mask_costs(model, KEYS, 4096, "bf16", "h100").dense < costs.dense
