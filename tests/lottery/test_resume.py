"""A run that is killed, wherever that is, ends with the same masks and weights to the bit."""

from __future__ import annotations

import contextlib
import os
import pkgutil
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert import results
from sparsebert.lottery.loop import run
from tests.lottery import tiny
from tests.lottery.killing import Killed, dying

ROOT = Path(__file__).resolve().parents[2]
REWINDING: dict[str, dict[str, Any]] = {
    "pretrained": {},
    "step": {"rewind_step": 2},
    "learning-rate": {},
    "none": {},
}
# Four rounds of seven batches, of which five are an epoch; one batch is made ahead.
BATCHES = 28


def config_of(rewind: str) -> Any:
    return tiny.request(rewind=rewind, head="keep", **REWINDING[rewind])


def outcome(out: Path) -> tuple[list[bytes], dict[str, Tensor], list[Any]]:
    """Masks of all rounds, final weights, and the metrics and losses on the way."""
    masks = [path.read_bytes() for path in sorted(out.glob("round-*/ticket.safetensors"))]
    rows = results.read(out / "log.jsonl", "round")
    return masks, load_file(out / "model" / "model.safetensors"), [row["metrics"] for row in rows]


def assert_same(one: Path, other: Path) -> None:
    (masks, weights, metrics), (their_masks, their_weights, their_metrics) = outcome(one), outcome(other)
    assert masks == their_masks
    assert metrics == their_metrics
    assert weights.keys() == their_weights.keys()
    assert all(torch.equal(weights[name], their_weights[name]) for name in weights)


@pytest.fixture(scope="module", params=REWINDING)
def uninterrupted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp(request.param)
    run(tiny.experiment(), config_of(request.param), out)
    return request.param, out


def test_interrupted_at_any_batch(uninterrupted: tuple[str, Path], tmp_path: Path) -> None:
    """In every session a few batches further: in mid-round, at its first step, before and after saves."""
    rewind, reference = uninterrupted
    torch.rand(3)  # the random state that a session finds does not matter
    sessions = 0
    for batch in (5, 1, 4, 8, 3, 9, 2, 7, None):
        sessions += 1
        try:
            run(replace(tiny.experiment(), collate=dying(tiny.collate, batch)), config_of(rewind), tmp_path)
        except Killed:
            continue
        break
    assert sessions > 4
    assert sum(row["sessions"] for row in results.read(tmp_path / "log.jsonl", "round")) > 6
    assert_same(tmp_path, reference)


def test_interrupted_with_batches_grouped_by_length(tmp_path: Path) -> None:
    """Their order, in the second epoch too, follows from the seed and not from the random state."""
    config = tiny.request(head="keep", sparsity=0.1, group_by_length=True)
    run(tiny.experiment(), config, tmp_path / "whole")
    for session in range(3):
        torch.manual_seed(session)
        batch = 8 if session < 2 else None
        with pytest.raises(Killed) if batch else contextlib.nullcontext():
            run(replace(tiny.experiment(), collate=dying(tiny.collate, batch)), config, tmp_path / "parts")
    assert_same(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("where", ["ticket", "trained", "evaluate", "log", "finish"])
def test_interrupted_between_the_parts_of_a_round(
    uninterrupted: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    rewind, reference = uninterrupted
    target = {
        "ticket": "sparsebert.lottery.loop.start_round",  # after the ticket is written
        "trained": "sparsebert.training.snapshot.Snapshot.save",  # after the last step
        "evaluate": "sparsebert.lottery.loop.ticket_fields",  # before the record is written
        "log": "sparsebert.lottery.loop._Run._clean_up",  # after it is
        "finish": "sparsebert.lottery.loop.shutil.copyfile",  # after the model, before its ticket
    }[where]
    skip = {"ticket": 2, "trained": 2, "evaluate": 2, "log": 1, "finish": 0}[where]
    calls = iter(range(skip, -1, -1))
    original = pkgutil.resolve_name(target)

    def killed(*arguments: Any, **options: Any) -> Any:
        if next(calls, None) == 0:
            raise Killed
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(target, killed)
        with pytest.raises(Killed):
            run(tiny.experiment(), config_of(rewind), tmp_path)
    run(tiny.experiment(), config_of(rewind), tmp_path)
    assert_same(tmp_path, reference)


def start(out: Path, rewind: str, *arguments: str) -> int:
    options = ["--rewind", rewind, "--rewind-step", str(REWINDING[rewind].get("rewind_step", 0)), *arguments]
    command = [sys.executable, "-m", "tests.lottery.tiny", str(out), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, env=environment()).returncode


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_killed_with_kill_9_at_random_points(uninterrupted: tuple[str, Path], tmp_path: Path) -> None:
    rewind, reference = uninterrupted
    points = random.Random(0)
    for _ in range(3):
        batch = str(points.randint(2, BATCHES // 3))
        assert start(tmp_path, rewind, "--die-at-batch", batch) == -signal.SIGKILL
    assert start(tmp_path, rewind) == 0
    assert_same(tmp_path, reference)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["movement", "l0", "smp --mask S"])
def test_a_learned_ticket_survives_kill_9(tmp_path: Path, method: str) -> None:
    """In a step, and while a checkpoint is written, which holds the scores that the masks follow from."""
    learned = ["--learned", *method.split()]
    assert start(tmp_path / "whole", "pretrained", *learned) == 0
    for death in (["--die-at-batch", "5"], ["--die-at-save", "2"], ["--die-at-batch", "3"]):
        assert start(tmp_path / "parts", "pretrained", *learned, *death) == -signal.SIGKILL
    assert start(tmp_path / "parts", "pretrained", *learned) == 0
    assert_same(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
def test_killed_with_kill_9_while_a_checkpoint_is_written(
    uninterrupted: tuple[str, Path], tmp_path: Path
) -> None:
    rewind, reference = uninterrupted
    for save in ("2", "4", "3"):
        assert start(tmp_path, rewind, "--die-at-save", save) == -signal.SIGKILL
    assert start(tmp_path, rewind) == 0
    assert_same(tmp_path, reference)
