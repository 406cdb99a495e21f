"""A model of two matrices, y = W2' tanh(W1' x + b1) + b2, as the project trains it and in plain numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sparsebert.mask_learning.masked_layers import GatedLinear, MaskedLinear
from sparsebert.mask_learning.rule import Gated, Goal, PrunableUnits, Rule, Scored
from sparsebert.pruning.unit_groups import unit_groups

Array = np.ndarray
FIRST, SECOND = "encoder.layer.0.attention.self.query", "encoder.layer.1.attention.self.query"
SHAPES = {FIRST: torch.Size((6, 4)), SECOND: torch.Size((4, 6))}
TYPES = {FIRST: "query", SECOND: "query"}
WEIGHTS_RATE, SCORES_RATE, EPSILON = 1e-3, 1e-2, 1e-8


@dataclass(frozen=True)
class Numbers:
    """Inputs, weights and scores by key, all float64; ``block``: rows and columns of a unit."""

    x: Array
    target: Array
    weights: dict[str, Array]
    biases: dict[str, Array]
    scores: dict[str, Array]
    block: tuple[int, int]


def numbers(block: tuple[int, int] = (1, 1), seed: int = 0, spread: float = 1.0) -> Numbers:
    random = np.random.default_rng(seed)
    grid = {key: (shape[0] // block[0], shape[1] // block[1]) for key, shape in SHAPES.items()}
    return Numbers(
        x=random.normal(size=(5, 4)),
        target=random.normal(size=(5, 4)),
        weights={key: random.normal(size=tuple(shape)) for key, shape in SHAPES.items()},
        biases={key: random.normal(size=shape[0]) for key, shape in SHAPES.items()},
        scores={key: spread * random.normal(size=size) for key, size in grid.items()},
        block=block,
    )


@dataclass(frozen=True)
class Step:
    """What one optimizer step sees and leaves behind."""

    masks: dict[str, Array]
    loss: float
    penalty: float
    weight_gradients: dict[str, Array]
    score_gradients: dict[str, Array]
    weights: dict[str, Array]
    scores: dict[str, Array]


def prunable_units(block: tuple[int, int] = (1, 1), scope: str = "matrix") -> PrunableUnits:
    units = ("element", None) if block == (1, 1) else ("block", block)
    return PrunableUnits(unit_groups(*units, SHAPES, None), TYPES, scope)


def taken(
    rule: Rule,
    goal: Goal,
    step: int,
    given: Numbers,
    scope: str = "matrix",
    uniform: dict[str, Array] | None = None,
    extra: Callable[[Tensor], Tensor] = lambda y: y.new_zeros(()),
) -> Step:
    """The step as the rule, the layers and AdamW take it.

    ``uniform``: what gates are drawn of. ``extra``: what the loss gains by y.
    """
    found = prunable_units(given.block, scope)
    parameters: dict[str, nn.Parameter] = {}
    layers: dict[str, MaskedLinear] = {}
    for group in found.groups:
        key = group.name
        linear = nn.Linear(SHAPES[key][1], SHAPES[key][0], dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(given.weights[key]))
            linear.bias.copy_(torch.tensor(given.biases[key]))
        if isinstance(rule, Scored):
            parameters[key] = nn.Parameter(torch.tensor(given.scores[key]))
        linear.weight.requires_grad_(rule.trains_weights)
        if isinstance(rule, Gated):
            assert uniform is not None
            gated = GatedLinear(linear, parameters[key], group.parts[key], True, rule)
            gated.set_uniform(torch.tensor(uniform[key]))
            layers[key] = gated
        else:
            layers[key] = MaskedLinear(linear, parameters.get(key), group.parts[key], owns_scores=True)
    scores: Mapping[str, Tensor] = parameters
    if not isinstance(rule, Scored):
        scores = {
            group.name: group.pool({group.name: layers[group.name].weight.detach().abs()}, "mean")
            for group in found.groups
        }
    units = rule.masks(scores, found, goal, step)
    masks = {key: mask for group in found.groups for key, mask in group.expand(units[group.name]).items()}
    for key, layer in layers.items():
        if not isinstance(rule, Gated):
            layer.set_mask(masks[key])
    weights = [layer.weight for layer in layers.values() if rule.trains_weights]
    optimizer = torch.optim.AdamW(
        [
            {"params": weights, "lr": WEIGHTS_RATE},
            {"params": list(parameters.values()), "lr": SCORES_RATE},
        ],
        eps=EPSILON,
        weight_decay=0.0,
    )
    y = layers[SECOND](torch.tanh(layers[FIRST](torch.tensor(given.x))))
    loss = (y - torch.tensor(given.target)).square().mean() + extra(y)
    penalty = rule.penalty(scores, goal, step)
    (loss if penalty is None else loss + penalty).backward()
    optimizer.step()

    def gradients(of: Mapping[str, Tensor]) -> dict[str, Array]:
        return {key: each.grad.numpy() for key, each in of.items() if each.grad is not None}

    weights_by_key = {key: layer.weight for key, layer in layers.items()}
    return Step(
        masks={key: mask.numpy() for key, mask in masks.items()},
        loss=loss.item(),
        penalty=0.0 if penalty is None else penalty.item(),
        weight_gradients=gradients(weights_by_key),
        score_gradients=gradients(parameters),
        weights={key: each.detach().numpy() for key, each in weights_by_key.items()},
        scores={key: each.detach().numpy() for key, each in parameters.items()},
    )


def transcribed(
    given: Numbers,
    kept: dict[str, Array],
    penalty: float = 0.0,
    penalty_gradients: dict[str, Array] | None = None,
    *,
    scored: bool = True,
    trains_weights: bool = True,
    slopes: dict[str, Array] | None = None,
    extra: Callable[[Array], tuple[float, Array]] = lambda y: (0.0, np.zeros_like(y)),
) -> Step:
    """The same step with masks or gates of units that are given: chain rule and Adam's first step by hand.

    ``slopes``: how fast gates rise with their scores; 1 for masks, which the gradient goes straight through.
    ``extra``: what the loss gains, and the gradient of that by y.
    """
    rows, columns = given.block
    masks = {key: np.kron(kept[key], np.ones((rows, columns))) for key in kept}
    first, second = given.weights[FIRST] * masks[FIRST], given.weights[SECOND] * masks[SECOND]
    a = np.tanh(given.x @ first.T + given.biases[FIRST])
    y = a @ second.T + given.biases[SECOND]
    gained, dy = extra(y)
    dy = dy + 2 * (y - given.target) / y.size
    full = {SECOND: dy.T @ a, FIRST: (dy @ second * (1 - a**2)).T @ given.x}
    weight_gradients = {key: full[key] * masks[key] for key in SHAPES} if trains_weights else {}
    score_gradients = {}
    for key in SHAPES if scored else ():
        height, width = kept[key].shape
        moved = (full[key] * given.weights[key]).reshape(height, rows, width, columns).sum((1, 3))
        if slopes:
            moved = moved * slopes[key]
        score_gradients[key] = moved + (penalty_gradients[key] if penalty_gradients else 0)

    def after(values: dict[str, Array], gradients: dict[str, Array], rate: float) -> dict[str, Array]:
        # The first moments of Adam, corrected, are the gradient and its square.
        return {
            key: values[key] - rate * gradients[key] / (np.abs(gradients[key]) + EPSILON)
            if key in gradients
            else values[key]
            for key in SHAPES
        }

    return Step(
        masks={key: mask.astype(bool) for key, mask in masks.items()},
        loss=float(np.mean((y - given.target) ** 2)) + gained,
        penalty=penalty,
        weight_gradients=weight_gradients,
        score_gradients=score_gradients,
        weights=after(given.weights, weight_gradients, WEIGHTS_RATE),
        scores=after(given.scores, score_gradients, SCORES_RATE) if scored else {},
    )


def assert_equal(found: Step, expected: Step) -> None:
    """All numbers to 1e-10, the masks exactly."""
    for key in SHAPES:
        np.testing.assert_array_equal(found.masks[key], expected.masks[key])
    np.testing.assert_allclose([found.loss, found.penalty], [expected.loss, expected.penalty], atol=1e-10)
    for name in ("weight_gradients", "score_gradients", "weights", "scores"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.keys() == theirs.keys(), name
        for key in ours:
            np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=1e-10, err_msg=f"{name} {key}")


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))
