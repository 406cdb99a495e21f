"""Runs with a teacher: every method has one in each round, and what is killed ends as if it were not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert import results
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.loop import run
from sparsebert.lottery.method import lottery_method, lottery_methods
from sparsebert.lottery.multi_task import multi_task_experiment
from sparsebert.pruning import prune
from sparsebert.pruning.head_mlp_masks import UnitMasks
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.distillation import Answers, Distillation
from tests.lottery import multi_task_tiny, tiny
from tests.lottery.killing import Killed, dying

HEADS_AND_MLPS: dict[str, Any] = {"granularity": "head+mlp", "batches": 2}
SETTINGS = Distillation(weight=0.9, teachers={"made-up": "sha256:0"})


def any_ticket() -> Ticket:
    return prune(tiny.model(), "random", sparsity=0.3)


def units_ticket() -> Ticket:
    model = tiny.model()
    return UnitMasks.whole(model).random(0).ticket(model, {})


# What a method needs besides a sparsity of 0.3.
NEEDS: dict[str, Callable[[], dict[str, Any]]] = {
    "dense": lambda: {"sparsity": 0.0},
    "standard": lambda: {"rewind": "none", "head": "keep"},
    "importance": lambda: {"granularity": "head+neuron", "batches": 2},
    "early-bird": lambda: {"granularity": "head+neuron", "every": 1, "window": 1},
    "cap": lambda: {"banks": "pretrained,snapshots"},
    "cap-soft": lambda: {"sparsity": None, "threshold": 0.5, "banks": "pretrained,snapshots"},
    "cap-structured": lambda: {
        "granularity": "head+neuron",
        "step": 0.15,
        "batches": 2,
        "banks": "pretrained,snapshots",
    },
    "magnitude-search": lambda: {"sparsity": None, "batches": 2},
    "importance-search": lambda: {"sparsity": None, **HEADS_AND_MLPS},
    "super-tickets": lambda: {"step": 0.15, **HEADS_AND_MLPS},
    "soft-movement": lambda: {"sparsity": None, "threshold": 0.5},
    "l0": lambda: {"sparsity": None},
    **dict.fromkeys(("bad-units", "random-units"), lambda: {"sparsity": None, "ticket": units_ticket()}),
    **dict.fromkeys(
        ("ticket", "random-layerwise", "random-reinit", "shuffled", "bad-weights", "random-weights"),
        lambda: {"sparsity": None, "ticket": any_ticket()},
    ),
}


class Counted:
    """A teacher that counts the batches it has seen."""

    def __init__(self) -> None:
        self.batches, self._answer = 0, tiny.teacher()

    def __call__(self, **batch: Any) -> Any:
        self.batches += 1
        return self._answer(**batch)


def config_of(method: str, **changes: Any) -> RunConfig:
    needs = NEEDS.get(method, dict)()
    scope = {} if "ticket" in needs else {"scope": lottery_method(method).scope}
    return tiny.request(method, **{"distillation": SETTINGS, "steps": 3, **scope, **needs, **changes})


def taught(teacher: Answers, **changes: Any) -> Experiment:
    def judge(model: Any, examples: int | None, seed: int) -> float:
        return tiny.evaluate(model)["accuracy"]

    return replace(tiny.experiment(), teacher=teacher, judge=judge, metric="accuracy", **changes)


@pytest.mark.parametrize("method", [name for name in lottery_methods() if name != "multi-task"])
def test_every_method_asks_its_teacher_about_every_batch(tmp_path: Path, method: str) -> None:
    teacher = Counted()
    rows = run(taught(teacher), config_of(method), tmp_path)
    # Without rewinding steps are counted on from round to round.
    counts = [rows[-1]["steps"]] if method == "standard" else [row["steps"] for row in rows]
    assert teacher.batches == sum(counts)
    for row in rows:
        assert row["distillation"] == {
            "weight": 0.9,
            "temperature": 2.0,
            "teachers": {"made-up": "sha256:0"},
        }


def test_of_several_tasks_each_has_its_own_or_none(tmp_path: Path) -> None:
    teacher, parts = Counted(), multi_task_tiny.experiments()
    both = multi_task_experiment(
        {"words": replace(parts["words"], teacher=teacher), "language": parts["language"]}
    )
    (row, *_) = run(both, tiny.request("multi-task", step=0.3, distillation=SETTINGS), tmp_path)
    assert 0 < teacher.batches < 2 * row["steps"]


def test_what_is_learned_is_the_teacher_s(tmp_path: Path) -> None:
    """By its answers alone a dense model comes to agree with a teacher who knows nothing of the labels."""
    teacher = tiny.teacher()
    batch = tiny.collate(tiny.examples())
    theirs = teacher(**batch).logits.argmax(-1)
    agreed = {}
    for weight in (None, 1.0):
        experiment = tiny.experiment(dropout=0.0)
        settings = None if weight is None else Distillation(weight)
        request = config_of("dense", distillation=settings, steps=60)
        run(replace(experiment, teacher=teacher if weight else None), request, tmp_path / str(weight))
        logits = experiment.model.eval()(input_ids=batch["input_ids"]).logits
        agreed[weight] = float((logits.argmax(-1) == theirs).float().mean())
    assert agreed[1.0] > 0.95 > agreed[None]


@pytest.mark.parametrize("method", ["imp", "smp", "early-bird"])
def test_interrupted_at_any_batch(tmp_path: Path, method: str) -> None:
    request = config_of(method, steps=5, save_steps=2)
    run(taught(tiny.teacher()), request, tmp_path / "whole")
    for batch in (4, 5, 7, 6, 5, None):
        with contextlib.suppress(Killed):
            run(taught(tiny.teacher(), collate=dying(tiny.collate, batch)), request, tmp_path / "parts")
    whole, parts = (tmp_path / name / "ticket.safetensors" for name in ("whole", "parts"))
    assert Ticket.load(whole) == Ticket.load(parts)
    ours, theirs = (results.read(tmp_path / name / "log.jsonl", "round") for name in ("whole", "parts"))
    assert [(row["loss"], row["metrics"]) for row in ours] == [
        (row["loss"], row["metrics"]) for row in theirs
    ]
    assert any(row["sessions"] > 1 for row in theirs)


def test_a_run_goes_on_with_the_same_teacher_only(tmp_path: Path) -> None:
    run(taught(tiny.teacher()), config_of("random"), tmp_path)
    for other, difference in (
        (replace(SETTINGS, weight=0.5), r"distillation\.weight 0\.9, not 0\.5"),
        (replace(SETTINGS, teachers={"made-up": "sha256:1"}), r"'sha256:0', not 'sha256:1'"),
    ):
        with pytest.raises(ValueError, match=difference):
            run(taught(tiny.teacher()), config_of("random", distillation=other), tmp_path)
    with pytest.raises(ValueError, match="holds a run with distillation"):
        run(tiny.experiment(), config_of("random", distillation=None), tmp_path)


def test_a_teacher_without_settings_and_settings_without_a_teacher_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="go together: a teacher is missing"):
        run(tiny.experiment(), config_of("random"), tmp_path / "run")
    with pytest.raises(ValueError, match="go together: a distillation is missing"):
        run(taught(tiny.teacher()), config_of("random", distillation=None), tmp_path / "run")
    assert not (tmp_path / "run").exists()
