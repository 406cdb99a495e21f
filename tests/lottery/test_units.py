"""Every method of the lottery with every granularity and scope, and what blocks are run by."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import BertConfig, BertModel

from sparsebert.bert import structure
from sparsebert.lottery import loop
from sparsebert.lottery.loop import run
from sparsebert.lottery.method import lottery_method, lottery_methods
from sparsebert.lottery.round_training import Trained
from sparsebert.planning.planner import plan
from sparsebert.pruning import prune
from sparsebert.pruning.unit_groups import unit_groups
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.checkpoint import Checkpoint
from tests.lottery import multi_task_tiny, tiny

UNITS: dict[str, dict[str, Any]] = {
    "element": {},
    "4x1": {"granularity": "block", "block_size": (4, 1)},
    "5x10": {"granularity": "block", "block_size": (5, 10)},
    "3x7": {"granularity": "block", "block_size": (3, 7)},
    "panel": {"granularity": "panel", "block_size": (4, 1), "round_to": 4},
    "row": {"granularity": "row"},
    "column": {"granularity": "column"},
    "neuron": {"granularity": "neuron"},
    "head": {"granularity": "head"},
    "1:2": {"granularity": "1:2"},
}
# Methods of heads, neurons and MLPs, or of single weights, which refuse other units: tested in their files.
CHOOSY = {
    "magnitude-search",
    "bad-weights",
    "random-weights",
    "importance",
    "importance-search",
    "early-bird",
    "super-tickets",
    "cap-structured",
    "bad-units",
    "random-units",
}
# Methods that prune nothing, that decide the sparsity, or whose options decide the scope.
OTHERWISE = {"dense", "soft-movement", "l0", "smp", "cap-soft"}


@pytest.fixture(autouse=True)
def _weights_drift_instead_of_being_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training itself has tests of its own; here rounds, tickets and rewinding are what matters."""

    def drift(experiment: Any, config: Any, ticket: Any, start: Any, *, folder: Path, **_: Any) -> Trained:
        with torch.no_grad():
            for parameter in experiment.model.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
        if lottery_method("standard").rewind is config.method.rewind:
            checkpoint = Checkpoint(folder / f"checkpoint-{start.stop}", start.stop, 0.0)
            experiment.model.save_pretrained(checkpoint.path)
            checkpoint.mark()
        return Trained(0.0, 1.0, start.stop)

    monkeypatch.setattr(loop, "train_round", drift)


SCOPES = ("global", "matrix", "type")
METHODS = [name for name in lottery_methods() if name not in OTHERWISE | CHOOSY]


def pairs() -> list[tuple[str, str, str]]:
    """Cases in which any two of method, units and scope meet: a third of all combinations."""
    return [
        (method, units, SCOPES[(row + column) % len(SCOPES)])
        for row, method in enumerate(METHODS)
        for column, units in enumerate(UNITS)
    ]


@pytest.mark.filterwarnings("ignore:layer collapse")
@pytest.mark.parametrize(("method", "units", "scope"), pairs())
def test_any_method_finds_tickets_of_any_units_in_any_scope(
    method: str, units: str, scope: str, tmp_path: Path
) -> None:
    chosen = UNITS[units] | {"scope": scope}
    at_once = units == "1:2"  # a pattern has no steps on the way
    options = {
        "imp": {"step": 0.5 if at_once else 0.25},
        "standard": {"step": 0.5 if at_once else 0.25},
        "multi-task": {"step": 0.5 if at_once else 0.25},
        "snip-imp": {"first": 0.5 if at_once else 0.25, "step": 0.25},
        "cap": {"banks": "pretrained"},
    }.get(method, {})
    if at_once and method in ("gradual", "movement", "cap"):
        with pytest.raises(ValueError, match="cannot learn patterns"):
            tiny.request(method, 0.5, **chosen, **options)
        return
    given = lottery_method(method).needs_ticket
    ticket = prune(tiny.model(), sparsity=0.5, **chosen) if given else None
    request = tiny.request(method, None if given else 0.5, ticket=ticket, **chosen, **options, batch_size=4)
    rows = run(
        multi_task_tiny.experiment() if method == "multi-task" else tiny.experiment(), request, tmp_path
    )
    found = Ticket.load(tmp_path / "ticket.safetensors")
    assert rows[-1]["sparsity"] == found.sparsity
    assert_right(found, **chosen)
    if given and method != "random-layerwise":
        assert found == ticket


def assert_right(
    found: Ticket, scope: str, granularity: str = "element", block_size: Any = None, round_to: Any = None
) -> None:
    """Units are kept whole, and as many as come nearest to a half of the weights in each scope.

    Panels keep multiples of their quantum, and come within half of a quantum.
    """
    shapes = {key: mask.shape for key, mask in found.masks.items()}
    if granularity == "1:2":
        assert all((mask.view(-1, 2).sum(1) == 1).all() for mask in found.masks.values())
        return
    model = structure(tiny.model())
    groups = unit_groups(granularity, block_size, shapes, model, round_to)
    rivals: dict[str, list[Any]] = {}
    for group in groups:
        rivals.setdefault(
            {"global": "", "matrix": group.name, "type": model.types[group.name]}[scope], []
        ).append(group)
    for together in rivals.values():
        kept = sum(int((group.whole(found.masks) * group.sizes).sum()) for group in together)
        largest = max(int(torch.as_tensor(group.sizes).max()) for group in together)
        nearest = Fraction(largest, 2)
        if granularity == "panel":
            nearest += Fraction(largest * together[0].quantum, 2)
            for group in together:
                counts = group.whole(found.masks).sum(1)
                assert ((counts % group.quantum == 0) | (counts == group.grid[1])).all()
        assert abs(kept - Fraction(sum(group.weights for group in together), 2)) <= nearest


@pytest.mark.parametrize(
    ("granularity", "device", "format"), [((4, 1), None, "vector"), ((64, 64), "h100", "panel")]
)
def test_a_ticket_in_blocks_runs_on_the_block_kernels(
    granularity: tuple[int, int], device: str | None, format: str
) -> None:
    model = BertModel(BertConfig(num_hidden_layers=1, vocab_size=30))
    ticket = prune(model, sparsity=0.9, granularity="block", block_size=granularity, scope="matrix")
    layers = plan(model, ticket, tokens=128 if device is None else 4096, measure=False, device=device).layers
    assert {layer.format for layer in layers} == {format}
