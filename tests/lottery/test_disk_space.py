"""The disk space that is asked for before a round: what the round takes, and not much more."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert.lottery.disk_space import round_bytes, weight_bytes
from sparsebert.lottery.experiment import Experiment, RunConfig
from sparsebert.lottery.loop import run
from sparsebert.lottery.run_folder import RunFolder
from tests.lottery import test_cap as cap
from tests.lottery import tiny

SMP = {"mask": "L", "scope": "matrix", "ramp_steps": 3}


def case(name: str) -> tuple[Experiment, RunConfig]:
    """Return an experiment and a run with a checkpoint every second step."""
    options = {"steps": 12, "save_steps": 2}
    if name.startswith("cap"):
        return cap.experiment(), cap.config_of(name, **options)
    requests = {
        "imp": lambda: tiny.request("imp", 0.2, **options),
        "rewind to a step": lambda: tiny.request("imp", 0.2, rewind="step", rewind_step=5, **options),
        "standard": lambda: tiny.request("standard", 0.3, **options),
        "movement": lambda: tiny.request("movement", 0.3, scope="matrix", **options),
        "blocks": lambda: tiny.request(
            "movement", 0.3, scope="matrix", granularity="block", block_size=(2, 2), **options
        ),
        "smp": lambda: tiny.request("smp", 0.7, choose_every=2, **SMP, **options),
        "one checkpoint": lambda: tiny.request("dense", 0.0, steps=3),
    }
    return tiny.judged(), requests[name]()


@contextlib.contextmanager
def largest_size(folder: Path) -> Iterator[list[int]]:
    """Yield a list that holds the largest size of the folder so far, sampled in a thread."""
    largest, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            with contextlib.suppress(OSError):  # for a file or folder that was deleted since it was listed
                size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                largest[0] = max(largest[0], size)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield largest
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    "name",
    [
        "imp",
        "rewind to a step",
        "standard",
        "movement",
        "blocks",
        "smp",
        "one checkpoint",
        "cap",
    ],
)
def test_a_round_fits_into_the_space_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    experiment, config = case(name)
    asked: list[int] = []
    monkeypatch.setattr(RunFolder, "require_space", lambda self, size: asked.append(size))
    with largest_size(tmp_path) as largest:
        run(experiment, config, tmp_path)
    assert largest[0] <= max(asked)
    # The sampling misses peaks, and records and states of random generators take more than tiny weights.
    assert max(asked) < 2.5 * largest[0]


def test_movement_pruning_on_elements_needs_eighteen_copies_in_checkpoints() -> None:
    experiment = replace(tiny.judged(), model=tiny.model())
    config = tiny.request("movement", 0.3, scope="matrix", steps=9, save_steps=3)
    scores = config.method.score_bytes(experiment.model, config.units)
    assert scores == 4 * tiny.PRUNABLE
    copies = round_bytes(experiment, config, 0, 9) - 9 * scores
    dense = round_bytes(experiment, tiny.request("dense", 0.0, steps=9, save_steps=3), 0, 9)
    assert copies == dense
    assert dense > (9 + 3) * weight_bytes(experiment)


def test_what_the_folder_holds_already_is_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    folder = RunFolder(tmp_path)
    with pytest.raises(OSError, match=r"the next round needs 0\.00 GB"):
        folder.require_space(1000)
    (tmp_path / "start.safetensors").write_bytes(b"0" * 900)
    folder.require_space(1000)


def test_left_overs_in_a_run_are_swept_even_if_it_is_finished(tmp_path: Path) -> None:
    config = tiny.request("dense", 0.0)
    run(tiny.experiment(), config, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for folder in (tmp_path, tmp_path / "round-00", tmp_path / "model"):
        (folder / ".log.jsonl.0123456789ab.tmp").write_text("half")
        (folder / ".any.0123456789ab.tmp").mkdir()
        (folder / ".any.0123456789ab.tmp" / "weights").write_text("half")
    run(tiny.experiment(), config, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
