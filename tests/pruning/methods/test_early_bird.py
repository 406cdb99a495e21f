"""Early-Bird: a step of the coefficients against numpy, distances of masks, and when they have settled."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsebert.bert import structure
from sparsebert.pruning import prune
from sparsebert.pruning.gates import GateSite, gate_sites
from sparsebert.pruning.methods.early_bird import Coefficients, Settled, mask_distance
from sparsebert.pruning.prune import kept_units
from sparsebert.training.unit_coefficients import TrainedCoefficients
from tests.pruning.gated_models import HEADS, LAYERS, NEURONS, build, logits

FEATURES, HIDDEN = 5, 6
SAME_OF_NEURONS = ("heads-by-layer", "global")


class TwoMatrices(nn.Module):
    """y = down(relu(up(x))), squared error; a loss in a table, as transformers give it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(FEATURES, HIDDEN, dtype=torch.float64)
        self.down = nn.Linear(HIDDEN, 3, dtype=torch.float64)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        class Output(SimpleNamespace):
            def __setitem__(self, name: str, value: Any) -> None:
                setattr(self, name, value)

            __getitem__ = SimpleNamespace.__getattribute__

        return Output(loss=(self.down(self.up(x).relu()) - y).square().mean())


def numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy().copy()


@pytest.mark.parametrize(("width", "penalty"), [(1, 0.05), (2, 0.0), (2, 0.05)])
def test_one_step_is_that_of_the_equations(width: int, penalty: float) -> None:
    """Loss, gradients of coefficients and weights, and the coefficients after a step of AdamW."""
    model = TwoMatrices().train()
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(4, n, generator=generator, dtype=torch.float64) for n in (FEATURES, 3))
    coefficients = TrainedCoefficients(model, {"up": GateSite("down", "neuron", width)}, penalty)
    (c,) = coefficients.values.values()
    with torch.no_grad():
        c.copy_(torch.linspace(-0.5, 1.5, len(c)))

    w1, b1, w2, b2 = (numpy(p) for p in (model.up.weight, model.up.bias, model.down.weight, model.down.bias))
    c0, x0, y0 = numpy(c), x.numpy(), y.numpy()
    hidden = np.maximum(x0 @ w1.T + b1, 0)
    gate = np.repeat(c0, width)
    out = (hidden * gate) @ w2.T + b2
    loss = ((out - y0) ** 2).mean() + penalty * np.abs(c0).sum()
    d_out = 2 * (out - y0) / out.size
    d_gated = d_out @ w2
    d_c = (d_gated * hidden).sum(0).reshape(-1, width).sum(1) + penalty * np.sign(c0)
    d_w1 = ((d_gated * gate) * (hidden > 0)).T @ x0
    lr, betas, eps = 1e-2, (0.9, 0.999), 1e-8
    m, v = (1 - betas[0]) * d_c / (1 - betas[0]), (1 - betas[1]) * d_c**2 / (1 - betas[1])
    after = c0 - lr * m / (np.sqrt(v) + eps)

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    objective = model(x, y).loss + coefficients.penalty()
    objective.backward()
    np.testing.assert_allclose(numpy(objective), loss, rtol=1e-10)
    np.testing.assert_allclose(numpy(c.grad), d_c, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(numpy(model.up.weight.grad), d_w1, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        numpy(model.down.weight.grad), d_out.T @ (hidden * gate), rtol=1e-10, atol=1e-12
    )
    optimizer.step()
    np.testing.assert_allclose(numpy(c), after, rtol=1e-10, atol=1e-12)


def test_folding_changes_nothing() -> None:
    model = TwoMatrices()
    x, y = torch.ones(2, FEATURES, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    before, names = model.eval()(x, y).loss, list(model.state_dict())
    coefficients = TrainedCoefficients(model, {"up": GateSite("down", "neuron", 2)}, 0.5)
    assert torch.equal(model(x, y).loss, before)
    assert coefficients.names == ["down.unit_coefficients"]
    with torch.no_grad():
        coefficients.values["up"].copy_(torch.tensor([0.5, 1.0, 2.0]))
    changed = model(x, y).loss
    coefficients.fold_()
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x, y).loss, changed)
    assert not torch.isclose(changed, before)


def test_folding_into_a_bert_keeps_its_answers() -> None:
    model = build().eval()
    sites = gate_sites(structure(model), "head") | gate_sites(structure(model), "neuron")
    coefficients = TrainedCoefficients(model, sites, 1e-4)
    with torch.no_grad():
        for value in coefficients.values.values():
            value.uniform_(0.5, 1.5)
    before = logits(model)
    coefficients.fold_()
    torch.testing.assert_close(logits(model), before)


def test_the_distance_is_the_share_of_units_that_differ() -> None:
    one = {"a": torch.tensor([True, False, True]), "b": torch.tensor([True] * 5)}
    other = {"a": torch.tensor([False, True, True]), "b": torch.tensor([True] * 5)}
    assert mask_distance(one, other) == np.mean([1, 1, 0, 0, 0, 0, 0, 0])
    assert mask_distance(one, one) == 0


def test_it_settles_when_the_last_five_distances_are_small() -> None:
    """A queue of five, first in first out; the ticket is drawn when its largest is below epsilon."""
    settled = Settled(epsilon=0.1, window=5)
    course = [0.5, 0.05, 0.05, 0.09, 0.0, 0.02, 0.3]
    assert [settled(course[:n]) for n in range(8)] == [False] * 6 + [True, False]
    assert not settled([0.1] * 5)
    for options, message in (({"epsilon": 0.0}, "epsilon must be in"), ({"window": 0}, "window must be at")):
        with pytest.raises(ValueError, match=message):
            Settled(**options)


@pytest.mark.parametrize(
    ("granularity", "scope"),
    [("head", "matrix"), ("neuron", "type"), ("head+neuron", "global"), ("head+neuron", "type")],
)
def test_the_mask_on_the_way_is_the_one_of_the_ticket(granularity: str, scope: str) -> None:
    model = build()
    encoder = structure(model)
    generator = torch.Generator().manual_seed(2)
    scores = {keys[0]: torch.rand(HEADS, generator=generator) for keys in encoder.heads}
    scores |= {keys[0]: torch.rand(NEURONS, generator=generator) for keys in encoder.neurons}
    if granularity != "head+neuron":
        keys = encoder.heads if granularity == "head" else encoder.neurons
        scores = {each[0]: scores[each[0]] for each in keys}
    masks = kept_units(model, scores, Fraction(1, 2), granularity, scope)
    ticket = prune(model, Coefficients(scores), sparsity=0.5, granularity=granularity, scope=scope)
    assert len(masks) == len(scores) >= LAYERS
    for name, mask in masks.items():
        whole = ticket.masks[name].view(len(mask), -1)
        assert torch.equal(whole.all(1), mask)
        assert torch.equal(whole.any(1), mask)
    assert "of_units" not in ticket.metadata["options"]


def test_coefficients_rank_by_value_or_by_size() -> None:
    model = build()
    scores = {keys[0]: torch.tensor([-3.0, 1.0, 2.0, -0.5]) for keys in structure(model).heads}
    for absolute, expected in ((False, [False, True, True, False]), (True, [True, False, True, False])):
        ticket = prune(
            model, Coefficients(scores, absolute), sparsity=0.5, granularity="head", scope="matrix"
        )
        mask = ticket.masks[next(iter(scores))].view(HEADS, -1).all(1)
        assert mask.tolist() == expected


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.25, 0.4)])
def test_heads_rank_within_their_layer_and_neurons_everywhere_as_published(
    shares: tuple[float, float],
) -> None:
    """The thresholds of the code of Chen et al. 2021 in plain numpy: a quantile of each layer's heads, and
    one of all neurons, each of its own share."""
    model = build()
    encoder = structure(model)
    random = np.random.default_rng(0)
    # By layer so different that a global ranking would take heads from one layer alone.
    heads = random.random((LAYERS, HEADS)) + 10 * np.arange(LAYERS)[:, None]
    neurons = random.random((LAYERS, NEURONS)) + 0.5 * np.arange(LAYERS)[:, None]
    scores = {keys[0]: torch.tensor(row) for keys, row in zip(encoder.heads, heads, strict=True)}
    scores |= {keys[0]: torch.tensor(row) for keys, row in zip(encoder.neurons, neurons, strict=True)}
    scores = {name: each.float() for name, each in scores.items()}
    units = {"granularity": "head+neuron", "scope": "heads-by-layer"}
    sparsity = shares[0] if shares[0] == shares[1] else dict(zip(("head", "neuron"), shares, strict=True))
    ticket = prune(model, Coefficients(scores), sparsity=sparsity, **units)
    assert ticket.metadata["sparsity"] == sparsity
    masks = kept_units(model, scores, sparsity, **units)
    for layer in range(LAYERS):
        for keys, expected in (
            (encoder.heads[layer], heads[layer] > np.quantile(heads[layer], shares[0])),
            (encoder.neurons[layer], neurons[layer] > np.quantile(neurons, shares[1])),
        ):
            kept = ticket.masks[keys[0]].view(len(expected), -1)
            assert np.array_equal(kept.all(1).numpy(), expected)
            assert np.array_equal(kept.any(1).numpy(), expected)
            assert np.array_equal(masks[keys[0]].numpy(), expected)


def test_what_is_neither_head_nor_neuron_has_no_layer_of_its_own() -> None:
    with pytest.raises(ValueError, match="'heads-by-layer' is for heads, neurons and MLPs, not 'element'"):
        prune(build(), sparsity=0.5, scope="heads-by-layer")
    alone = [prune(build(), sparsity=0.5, granularity="neuron", scope=each) for each in SAME_OF_NEURONS]
    assert alone[0] == alone[1]


@pytest.mark.parametrize(
    ("sparsity", "units", "message"),
    [
        ({"head": 0.5, "neuron": 0.5}, {"granularity": "head+neuron"}, "head and neuron compete"),
        ({"head": 0.5}, {"granularity": "head+neuron", "scope": "type"}, "shares of head do not fit"),
        (
            {"head": 0.5, "mlp": 0.5},
            {"granularity": "head+neuron", "scope": "type"},
            "head and mlp do not fit",
        ),
        ({"element": 0.5}, {}, "shares of element do not fit granularity 'element'"),
        ({"head": 1.0, "neuron": 0.5}, {"granularity": "head+neuron", "scope": "type"}, r"in \[0, 1\)"),
    ],
)
def test_shares_that_do_not_fit_are_refused(
    sparsity: dict[str, float], units: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prune(build(), sparsity=sparsity, **units)
