"""The rules that a lottery must get right, against literal transcriptions in numpy.

Masks of all nine rounds against ``torch.nn.utils.prune`` stand in ``test_run.py``, resuming at any step in
``test_resume.py``, the order of labels in ``tests/tasks/test_label_order.py``, SNIP in
``tests/pruning/methods/test_snip.py``.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert.lottery import round_training
from sparsebert.lottery.loop import run
from sparsebert.pruning import prune
from sparsebert.pruning.top_k import ranked, select_top
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.mask_enforcer import MaskEnforcer
from tests.lottery.tiny import experiment, model, request

State = dict[str, np.ndarray]
DEVICES = ["cpu", pytest.param("auto", marks=pytest.mark.gpu)]
MATRIX = "bert.encoder.layer.{}.{}.weight"
NAMES = [
    MATRIX.format(layer, path)
    for layer in range(2)
    for path in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
]


def state(module: nn.Module) -> State:
    return {name: value.detach().cpu().numpy().copy() for name, value in module.state_dict().items()}


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, State]]:
    """What each round found before its first step and left after its last, read by numpy."""
    seen: list[dict[str, State]] = []

    class Watched(round_training.TicketTrainer):
        def training_step(self, module: nn.Module, *arguments: Any, **options: Any) -> Any:
            if self.state.global_step == 0:
                seen.append({"before": state(self.model)})
            return super().training_step(module, *arguments, **options)

        def train(self, *arguments: Any, **options: Any) -> Any:
            result = super().train(*arguments, **options)
            seen[-1]["after"] = state(self.model)
            return result

    monkeypatch.setattr(round_training, "TicketTrainer", Watched)
    return seen


def smallest_pruned(weights: list[np.ndarray], alive: np.ndarray, kept: int) -> np.ndarray:
    """Of all live weights the ``kept`` largest, the first of equal ones: a stable sort of them all."""
    scores = np.concatenate([np.abs(weight).ravel() for weight in weights])
    order = np.argsort(-np.where(alive, scores, -1.0), kind="stable")
    mask = np.zeros(len(scores), bool)
    mask[order[:kept]] = True
    return mask


@pytest.mark.parametrize("device", DEVICES)
def test_imp_is_prune_rewind_and_nothing_else(
    device: str, tmp_path: Path, rounds: list[dict[str, State]]
) -> None:
    """Algorithm 1 of Chen et al. 2020, with exact tenths of the original and bit-exact rewinding."""
    start = state(experiment().model)
    run(experiment(), request(sparsity=0.9, steps=2, head="rewind", device=device), tmp_path)
    assert len(rounds) == 10
    total = sum(start[name].size for name in NAMES)
    alive = np.ones(total, bool)
    for number, each in enumerate(rounds):
        if number:
            trained = [rounds[number - 1]["after"][name] for name in NAMES]
            alive = smallest_pruned(trained, alive, total * (10 - number) // 10)
        parts = np.split(alive, np.cumsum([start[name].size for name in NAMES])[:-1])
        masks = {name: part.reshape(start[name].shape) for name, part in zip(NAMES, parts, strict=True)}
        ticket = Ticket.load(tmp_path / f"round-{number:02}" / "ticket.safetensors")
        for name, mask in masks.items():
            key = name.removeprefix("bert.").removesuffix(".weight")
            assert np.array_equal(ticket.masks[key].numpy(), mask)
            assert not each["after"][name][~mask].any()
        for name, value in start.items():
            expected = np.where(masks[name], value, np.zeros_like(value)) if name in masks else value
            assert each["before"][name].tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("device", DEVICES)
def test_a_hundred_steps_of_adamw_keep_dead_weights_at_zero_and_train_the_others(device: str) -> None:
    """AdamW of Loshchilov and Hutter 2019, algorithm 2, with the mask on weights and gradients."""
    where = "cuda" if device == "auto" else "cpu"
    random = np.random.default_rng(0)
    weight, target = random.normal(size=(5, 7)), random.normal(size=(16, 5))
    inputs = random.normal(size=(16, 7))
    mask = random.random((5, 7)) > 0.6
    rate, decay, first, second, epsilon = 1e-2, 0.01, 0.9, 0.999, 1e-8

    expected = np.where(mask, weight, 0)
    mean, square = np.zeros_like(weight), np.zeros_like(weight)
    for step in range(1, 101):
        gradient = np.where(mask, 2 / target.size * (inputs @ expected.T - target).T @ inputs, 0)
        expected = expected - rate * decay * expected
        mean = first * mean + (1 - first) * gradient
        square = second * square + (1 - second) * gradient**2
        moved = mean / (1 - first**step) / (np.sqrt(square / (1 - second**step)) + epsilon)
        expected = expected - rate * moved

    net = nn.Sequential(nn.Linear(7, 5, bias=False, dtype=torch.float64, device=where))
    with torch.no_grad():
        net[0].weight.copy_(torch.from_numpy(weight))
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay)
    x, y = (torch.from_numpy(array).to(where) for array in (inputs, target))
    with MaskEnforcer(net, Ticket({"0": torch.from_numpy(mask)})) as keeper:
        for _ in range(100):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()
            keeper.zero_()
    found = net[0].weight.detach().cpu().numpy()
    assert not found[~mask].any()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def block_scores(weight: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Mean magnitude of each block, smaller ones at the edges."""
    height, width = (-(-size // part) for size, part in zip(weight.shape, (rows, columns), strict=True))
    return np.array(
        [
            [
                np.abs(weight[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]).mean(
                    dtype=np.float64
                )
                for j in range(width)
            ]
            for i in range(height)
        ],
        np.float32,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("block", [(1, 1), (4, 1), (5, 10)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_magnitude_masks_are_the_same_on_every_device(
    device: str, block: tuple[int, int], dtype: torch.dtype
) -> None:
    """In bfloat16 magnitudes tie a lot: then the first in order stay."""
    network = model().to(dtype)
    weights = {name: network.state_dict()[name].float().numpy() for name in NAMES}
    scores = [
        np.abs(weight) if block == (1, 1) else block_scores(weight, *block) for weight in weights.values()
    ]
    flat = np.concatenate([each.ravel() for each in scores])
    kept = round(Fraction(3, 10) * len(flat))
    if block == (4, 1):  # 30 rows are seven blocks of four and one of two
        sizes = [np.full(each.shape, 4) for each in scores]
        for size, weight in zip(sizes, weights.values(), strict=True):
            size[-1] = 4 if len(weight) % 4 == 0 else len(weight) % 4
        order = np.argsort(-flat, kind="stable")
        ends = np.cumsum(np.concatenate([each.ravel() for each in sizes])[order])
        kept = 1 + int(np.argmin(np.abs(ends - 0.3 * ends[-1])))
    order = np.argsort(-flat, kind="stable")
    alive = np.zeros(len(flat), bool)
    alive[order[:kept]] = True
    options = {} if block == (1, 1) else {"granularity": "block", "block_size": block}
    if device == "auto":
        network = network.cuda()
    ticket = prune(network, sparsity=0.7, **options)
    parts = np.split(alive, np.cumsum([each.size for each in scores])[:-1])
    for name, score, part in zip(NAMES, scores, parts, strict=True):
        whole = part.reshape(score.shape).repeat(block[0], 0).repeat(block[1], 1)
        expected = whole[: weights[name].shape[0], : weights[name].shape[1]]
        key = name.removeprefix("bert.").removesuffix(".weight")
        assert np.array_equal(ticket.masks[key].numpy(), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_selection_over_a_million_scores_is_a_stable_sort(device: str) -> None:
    scores = np.random.default_rng(0).normal(size=1_000_000).astype(np.float32)
    for rounded in (scores, scores.round(2), scores.round(0)):
        expected = np.zeros(len(scores), bool)
        expected[np.argsort(-rounded, kind="stable")[:123_457]] = True
        tensor = torch.from_numpy(rounded).to("cuda" if device == "auto" else "cpu")
        [mask] = select_top([ranked(tensor)], [1], Fraction(123_457))
        assert np.array_equal(mask.cpu().numpy(), expected)
