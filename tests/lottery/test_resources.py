"""What the rounds of a run used, over all of its sessions, and the data that they share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert import results
from sparsebert.accounting.usage import Usage
from sparsebert.lottery.loop import run
from sparsebert.lottery.run_context import RunContext
from tests.lottery.killing import Killed, dying
from tests.lottery.tiny import collate, experiment, request

READ = {"train": "sha256:1", "validation": "sha256:2", "model": "sha256:3", "tokenizer": "sha256:4"}


def killed_in_its_second_round(out: Path) -> None:
    with pytest.raises(Killed):
        run(replace(experiment(), collate=dying(collate, 12), fingerprints=READ), request(), out)


def test_a_killed_session_counts_in_its_round_and_once(tmp_path: Path) -> None:
    killed_in_its_second_round(tmp_path)
    file = tmp_path / "round-01" / "usage.json"
    # As if the session had been longer than it was.
    before = Usage(1000.0, 2000.0, joules={"package-0": 5.0})
    file.write_text(json.dumps(before.record()))
    rows = run(replace(experiment(), fingerprints=READ), request(), tmp_path)
    resources = [Usage.of_record(row["resources"]) for row in rows]
    assert [each.resumed for each in resources] == [0, 1, 0, 0]
    assert [each.wall_seconds >= 1000 for each in resources] == [False, True, False, False]
    assert resources[1].wall_seconds < 1100
    assert resources[1].joules["package-0"] >= 5.0
    (whole,) = results.read(tmp_path / "log.jsonl", "run")
    assert whole["resources"]["wall_seconds"] == pytest.approx(
        sum(each.wall_seconds for each in resources), abs=0.01
    )
    assert not list(tmp_path.rglob("usage.json"))


def test_the_usage_of_an_unfinished_round_is_in_its_folder(tmp_path: Path) -> None:
    killed_in_its_second_round(tmp_path)
    (file,) = tmp_path.rglob("usage.json")
    assert file.parent.name == "round-01"
    assert Usage.of_record(json.loads(file.read_text())).wall_seconds > 0


def test_a_checkpoint_comes_with_what_was_used_until_then(tmp_path: Path) -> None:
    """A process that is killed after a checkpoint has recorded its usage up to there."""
    seen = []

    def stop(examples: list) -> dict:
        seen.append(sorted(path.name for path in (tmp_path / "round-00").rglob("usage.json")))
        return collate(examples)

    run(replace(experiment(), collate=stop), request(sparsity=0.0, method="dense"), tmp_path)
    assert seen[0] == []  # before the first checkpoint, at step 3 of 7
    assert seen[-1] == ["usage.json"]


def test_a_run_goes_on_with_the_data_that_it_began_with(tmp_path: Path) -> None:
    killed_in_its_second_round(tmp_path)
    other = replace(experiment(), fingerprints=READ | {"validation": "sha256:5"})
    message = "holds a run with validation data of fingerprint sha256:2, not sha256:5"
    with pytest.raises(ValueError, match=message):
        run(other, request(), tmp_path)
    # The weights of a resumed run are in its folder, and earlier versions recorded no fingerprints.
    run(replace(experiment(), fingerprints=READ | {"model": "sha256:6"}), request(), tmp_path)


def test_a_run_without_fingerprints_goes_on(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(replace(experiment(), collate=dying(collate, 12)), request(), tmp_path)
    rows = run(replace(experiment(), fingerprints=READ), request(), tmp_path)
    assert [row["fingerprints"] for row in rows] == [{}, *[READ] * (len(rows) - 1)]


def test_carbon_is_that_of_measured_energy(tmp_path: Path) -> None:
    context = RunContext(carbon_intensity=380.0)
    (row,) = run(experiment(), request(sparsity=0.0, method="dense", steps=1), tmp_path, context)
    measured = row["resources"]["energy"]["joules"]
    if measured is None:
        assert row["resources"]["carbon"] is None
    else:
        assert row["resources"]["carbon"]["grams_per_kwh"] == 380.0
