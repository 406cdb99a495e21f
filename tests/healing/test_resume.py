"""A healing that was killed goes on from its last checkpoint, and ends with the same masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsebert import Ticket
from sparsebert.healing import training
from sparsebert.healing.heal import heal_
from tests.healing.conftest import QUICK, pruned_copy


class Killed(BaseException):
    """Stands for a signal: no code of the run catches it."""


@pytest.fixture(autouse=True)
def _a_checkpoint_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", float("inf"))


def killed_at(step: int, model: Any, texts: list[str], **options: Any) -> None:
    def die(line: str) -> None:
        if line.startswith(f"healing: step {step} "):
            raise Killed

    with pytest.raises(Killed):
        heal_(model, texts, progress=die, **options)


@pytest.mark.parametrize("step", [2, 9])
def test_it_goes_on_and_ends_as_if_never_killed(
    step: int, dense: Any, texts: list[str], tokenizer: Any, tmp_path: Path
) -> None:
    options = {"teacher": dense, "tokenizer": tokenizer, "checkpoint": tmp_path / "state", **QUICK}
    killed_at(step, pruned_copy(dense), texts, **options)
    lines: list[str] = []
    resumed, whole = pruned_copy(dense), pruned_copy(dense)
    healing = heal_(resumed, texts, progress=lines.append, **options)
    # The step at whose end it was killed had no checkpoint yet.
    assert next(line for line in lines if line.startswith("healing")).startswith(
        f"healing: step {step} of 16"
    )
    assert (healing.steps, Ticket.from_model(resumed)) == (16, Ticket.from_model(pruned_copy(dense)))
    once = heal_(whole, texts, **{**options, "checkpoint": None})
    assert healing.loss_after == pytest.approx(once.loss_after, rel=0.02)


def test_seconds_add_up(dense: Any, texts: list[str], tokenizer: Any, tmp_path: Path) -> None:
    options = {"teacher": dense, "tokenizer": tokenizer, "checkpoint": tmp_path / "state", **QUICK}
    killed_at(12, pruned_copy(dense), texts, **options)
    healing = heal_(pruned_copy(dense), texts, **options)
    assert healing.seconds > training.Checkpoint.load(tmp_path / "state", {}).numbers["seconds"] > 0  # type: ignore[union-attr]


@pytest.mark.parametrize(("option", "value"), [("seed", 1), ("steps", 17), ("tokens", 128)])
def test_the_checkpoint_of_another_healing_is_refused(
    option: str, value: int, dense: Any, texts: list[str], tokenizer: Any, tmp_path: Path
) -> None:
    options = {"teacher": dense, "tokenizer": tokenizer, "checkpoint": tmp_path / "state", **QUICK}
    killed_at(2, pruned_copy(dense), texts, **options)
    with pytest.raises(
        ValueError, match=rf"the checkpoint of another healing \(its (texts|{option}) differs\)"
    ):
        heal_(pruned_copy(dense), texts, **{**options, option: value})
    with pytest.raises(ValueError, match=r"the checkpoint of another healing \(its weights differs\)"):
        heal_(pruned_copy(dense, 0.5), texts, **options)


def test_a_damaged_checkpoint_is_refused(
    dense: Any, texts: list[str], tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "state").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is not the checkpoint of a healing"):
        heal_(
            pruned_copy(dense),
            texts,
            teacher=dense,
            tokenizer=tokenizer,
            checkpoint=tmp_path / "state",
            **QUICK,
        )
