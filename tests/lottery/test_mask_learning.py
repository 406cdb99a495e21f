"""Runs in which training decides on the ticket: exact, resumable, and as the sources train."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert import results
from sparsebert.lottery import loop
from sparsebert.lottery.experiment import RunConfig
from sparsebert.lottery.loop import run
from sparsebert.lottery.method import lottery_method
from sparsebert.mask_learning.learner import Learner
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.trainer import TicketTrainer
from tests.lottery import tiny
from tests.lottery.killing import Killed, dying

METHODS: dict[str, dict[str, Any]] = {
    "gradual": {"sparsity": 0.7},
    "movement": {"sparsity": 0.7},
    "soft-movement": {"sparsity": None, **tiny.PENALISED["soft-movement"]},
    "smp": {"sparsity": 0.7},
    "l0": {"sparsity": None, **tiny.PENALISED["l0"]},
}
BLOCKS = {"granularity": "block", "block_size": (5, 5)}
PANELS = {"granularity": "panel", "block_size": (5, 5), "round_to": 10}
# 16 blocks in some matrices and 24 in others: a tenth of them is no whole number. Panels keep 2 units or 4.
TOLERANCES = {"element": 1e-9, "block": 0.03, "panel": 0.07}


def config_of(method: str, **changes: Any) -> RunConfig:
    scope = lottery_method(method).scope
    return tiny.request(method, **{"scope": scope, **METHODS[method], **changes})


def assert_same(one: Path, other: Path) -> None:
    """Masks, weights and metrics, to the bit."""
    ticket = "ticket.safetensors"
    assert Ticket.load(one / ticket) == Ticket.load(other / ticket)
    weights, theirs = (load_file(each / "model" / "model.safetensors") for each in (one, other))
    assert weights.keys() == theirs.keys()
    assert all(torch.equal(weights[name], theirs[name]) for name in weights)
    ours, others = (results.read(each / "log.jsonl", "round") for each in (one, other))
    assert [row["metrics"] for row in ours] == [row["metrics"] for row in others]


@pytest.mark.parametrize("units", [{}, BLOCKS, PANELS], ids=TOLERANCES)
@pytest.mark.parametrize("method", METHODS)
def test_a_run(tmp_path: Path, method: str, units: dict[str, Any]) -> None:
    (row,) = run(tiny.experiment(), config_of(method, **units), tmp_path)
    assert row["source"] == "learned"
    ticket = Ticket.load(tmp_path / "ticket.safetensors")
    assert (row["sparsity"], row["kept"]) == (ticket.sparsity, round(ticket.density * tiny.PRUNABLE))
    if (sparsity := METHODS[method]["sparsity"]) is not None:
        assert ticket.sparsity == pytest.approx(sparsity, abs=TOLERANCES[units.get("granularity", "element")])
    assert 0 < ticket.sparsity < 1
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert not any("mask_scores" in name for name in weights)
    for key, mask in ticket.masks.items():
        assert not weights[f"bert.{key}.weight"][~mask].any()
        if units is PANELS:
            kept = mask[::5, ::5].sum(1)
            assert ((kept % 2 == 0) | (kept == mask.shape[1] // 5)).all()
            assert ticket.metadata["round_to"] == row["round_to"] == 10
        if units is not PANELS or method != "l0":  # it keeps closed gates, which are zeros, in panels
            assert weights[f"bert.{key}.weight"][mask].all()
    assert ticket.metadata["method"] == method
    assert "rewind" not in ticket.metadata["history"][0]["options"]


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_at_any_batch(tmp_path: Path, method: str) -> None:
    """Seven batches, a checkpoint after the third and the sixth, and one batch made ahead."""
    run(tiny.experiment(), config_of(method), tmp_path / "whole")
    for session, batch in enumerate((2, 5, 1, 3, 2, None)):
        torch.manual_seed(session)
        experiment = replace(tiny.experiment(), collate=dying(tiny.collate, batch))
        with contextlib.suppress(Killed):
            run(experiment, config_of(method), tmp_path / "parts")
            break
    (row,) = results.read(tmp_path / "parts" / "log.jsonl", "round")
    assert row["sessions"] > 3
    assert_same(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize(
    ("method", "where"),
    [
        *((method, "_Run._close_round") for method in METHODS),
        # The learner has left the model by then: one method stands for all.
        ("movement", "ticket_fields"),
        ("movement", "_Run._clean_up"),
    ],
)
def test_interrupted_after_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, where: str
) -> None:
    run(tiny.experiment(), config_of(method), tmp_path / "whole")
    with monkeypatch.context() as patch:
        owner, _, name = where.rpartition(".")

        def killed(*arguments: Any, **options: Any) -> Any:
            raise Killed

        patch.setattr(getattr(loop, owner) if owner else loop, name, killed)
        with pytest.raises(Killed):
            run(tiny.experiment(), config_of(method), tmp_path / "parts")
    run(tiny.experiment(), config_of(method), tmp_path / "parts")
    assert_same(tmp_path / "parts", tmp_path / "whole")


def test_whole_mlps_close_by_their_scores(tmp_path: Path) -> None:
    """Nothing competes there; where scores do, the one MLP of a layer wants another scope than its layer."""
    (row,) = run(tiny.experiment(), config_of("l0", granularity="mlp"), tmp_path / "run")
    assert row["granularity"] == "mlp"
    with pytest.raises(ValueError, match="leaves each MLP without a competitor"):
        run(tiny.experiment(), config_of("movement", granularity="head+mlp"), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_masks_are_derived_once_a_step_and_last_over_accumulated_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    derive_ = Learner.derive_
    monkeypatch.setattr(Learner, "derive_", lambda self, step: steps.append(step) or derive_(self, step))
    run(tiny.experiment(), config_of("movement", batch_size=4, gradient_accumulation=2, steps=4), tmp_path)
    assert steps == [0, 1, 2, 3, 4]


def test_the_penalty_on_scores_is_taken_before_the_forward_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backward pass comes to it last: its gradients, one a weight, find the activations gone."""
    calls: list[str] = []
    experiment, penalty = tiny.experiment(), Learner.penalty
    experiment.model.register_forward_pre_hook(lambda *_: calls.append("forward"))
    monkeypatch.setattr(Learner, "penalty", lambda self: calls.append("penalty") or penalty(self))
    run(replace(experiment, evaluate=lambda model: {}), config_of("smp"), tmp_path)
    assert calls == ["penalty", "forward"] * 7


def test_accumulated_batches_are_as_good_as_one(tmp_path: Path) -> None:
    for name, split in (("one", {"batch_size": 8}), ("two", {"batch_size": 4, "gradient_accumulation": 2})):
        run(tiny.experiment(dropout=0.0), config_of("soft-movement", **split), tmp_path / name)
    one, two = (results.read(tmp_path / name / "log.jsonl", "round")[0] for name in ("one", "two"))
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)


def test_the_scores_have_a_rate_of_their_own_and_what_is_frozen_no_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}
    create = TicketTrainer.create_optimizer

    def spy(self: Any, model: Any = None) -> Any:
        found["optimizer"], found["model"] = create(self, model), self.model
        found["names"] = {id(each): name for name, each in self.model.named_parameters()}
        return found["optimizer"]

    monkeypatch.setattr(TicketTrainer, "create_optimizer", spy)
    run(tiny.experiment(), config_of("movement", scores_learning_rate=0.05, weight_decay=0.1), tmp_path)
    groups = found["optimizer"].param_groups
    names = [[found["names"][id(each)] for each in group["params"]] for group in groups]
    assert [group["initial_lr"] for group in groups] == [1e-3, 1e-3, 0.05]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.0]
    assert len(names[2]) == 12
    assert all(name.endswith("mask_scores") for name in names[2])
    assert not any("mask_scores" in name or "embeddings" in name for name in names[0] + names[1])
    start = dict(tiny.model().named_parameters())
    trained = load_file(tmp_path / "model" / "model.safetensors")
    for name, weight in start.items():
        if "embeddings" in name:
            assert torch.equal(weight, trained[name])


@pytest.mark.parametrize(("mask", "scope"), [("L", "matrix"), ("S", "type"), ("G", "global")])
def test_of_a_task_static_model_pruning_leaves_its_masks_and_its_head(
    tmp_path: Path, mask: str, scope: str
) -> None:
    """The trained model is the pre-trained one with the ticket applied, but for the classifier."""
    (row,) = run(tiny.experiment(), config_of("smp", mask=mask, scope=scope, sparsity=0.3), tmp_path)
    assert row["sparsity"] == 0.3
    model = tiny.model()
    Ticket.load(tmp_path / "ticket.safetensors").apply_(model)
    trained = load_file(tmp_path / "model" / "model.safetensors")
    for name, weight in model.named_parameters():
        assert torch.equal(weight, trained[name]) == (not name.startswith("classifier.")), name


def test_real_gates_are_in_the_weights_and_not_in_the_ticket(tmp_path: Path) -> None:
    """With weights that hardly learn, what is exported is W * z with 0 < z <= 1."""
    run(tiny.experiment(), config_of("l0", learning_rate=1e-12), tmp_path)
    ticket = Ticket.load(tmp_path / "ticket.safetensors")
    trained = load_file(tmp_path / "model" / "model.safetensors")
    start = dict(tiny.model().named_parameters())
    names = {key: f"bert.{key}.weight" for key in ticket.masks}
    gates = torch.cat([(trained[names[key]] / start[names[key]])[mask] for key, mask in ticket.masks.items()])
    assert 0 < gates.min() < 0.5 < gates.max() <= 1.0001
    assert len(gates.unique()) > 100


def test_a_threshold_that_diverges_stops_the_run(tmp_path: Path) -> None:
    """All scores are far above it: nothing is ever pruned."""
    request = config_of("smp", mask="T", scope="matrix", sparsity=None)
    with pytest.raises(ValueError, match=r"mask T diverged: at step 4 it keeps 100\.0000%"):
        run(tiny.experiment(), request, tmp_path)


def test_scores_move_and_not_only_by_chance(tmp_path: Path) -> None:
    """Another seed's order of examples gives another ticket; no training at all would keep the first."""
    run(tiny.experiment(), config_of("movement", steps=20), tmp_path)
    ticket = Ticket.load(tmp_path / "ticket.safetensors")
    for mask in ticket.masks.values():
        first = torch.zeros(mask.numel(), dtype=torch.bool)
        first[: int(mask.sum())] = True
        assert not torch.equal(mask.flatten(), first)


@pytest.mark.parametrize("precision", ["bf16"])
def test_mixed_precision(tmp_path: Path, precision: str) -> None:
    (row,) = run(tiny.experiment(), config_of("movement", precision=precision), tmp_path)
    assert row["sparsity"] == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("movement", {"sparsity": None}, "sparsity is missing"),
        ("soft-movement", {"sparsity": 0.5}, "method soft-movement decides the sparsity"),
        ("soft-movement", {"scope": "global"}, "does not compare scores: omit scope, got 'global'"),
        ("movement", {"granularity": "2:4", "sparsity": 0.5}, "cannot learn patterns such as '2:4'"),
        ("smp", {"scope": "global"}, "mask S of smp needs scope 'type', got 'global'"),
        ("smp", {"mask": "G", "scope": "matrix"}, "mask G of smp needs scope 'global'"),
        ("smp", {"mask": "X"}, "unknown mask 'X'"),
        ("smp", {"mask": "T", "scope": "matrix"}, "method smp decides the sparsity"),
        ("movement", {"rewind": "learning-rate"}, "has one round"),
        ("gradual", {"scores_learning_rate": 0.1}, "unknown option of method gradual"),
        ("movement", {"scores_learning_rate": -1.0}, "scores_learning_rate must be positive"),
    ],
)
def test_requests_that_make_no_sense_are_refused(method: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(method, **changes)


def test_a_schedule_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a run of 7 steps has no room for the ramp"):
        run(tiny.experiment(), config_of("movement", warmup_steps=3), tmp_path / "run")
    assert not (tmp_path / "run").exists()
