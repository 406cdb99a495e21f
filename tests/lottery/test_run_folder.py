"""The folder of a run: a log that says what happened, runs that are done stay done, and refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert import results
from sparsebert.bert import resolve
from sparsebert.tickets.provenance import weight_hash
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.snapshot import Snapshot

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from sparsebert.lottery import loop
from sparsebert.lottery.experiment import RunConfig
from sparsebert.lottery.loop import run
from sparsebert.lottery.run_context import RunContext
from tests.lottery.tiny import experiment, model, request


def tickets(out: Path) -> list[Ticket]:
    return [Ticket.load(path) for path in sorted(out.glob("round-*/ticket.safetensors"))]


def test_a_run_of_an_earlier_version_lacks_options_and_goes_on_with_their_defaults(tmp_path: Path) -> None:
    run(experiment(), request(sparsity=0.2), tmp_path)
    path = tmp_path / "run.json"
    config = json.loads(path.read_text())
    del config["options"]["step"], config["training"]["weight_decay"]
    path.write_text(json.dumps(config))
    assert len(run(experiment(), request(sparsity=0.2), tmp_path)) == 3
    for changes, message in (
        ({"step": 0.05}, "options.step 0.1, not 0.05"),
        ({"weight_decay": 0.5}, "training.weight_decay 0.0, not 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            run(experiment(), request(sparsity=0.2, **changes), tmp_path)


class TestRecords:
    def test_each_round_says_what_it_was(self, tmp_path: Path) -> None:
        rows = run(experiment(), request(sparsity=0.2), tmp_path)
        assert rows == results.read(tmp_path / "log.jsonl", "round")
        for number, row in enumerate(rows):
            assert (row["round"], row["rounds"], row["steps"], row["sessions"]) == (number, 3, 7, 1)
            assert (row["method"], row["seed"], row["task"], row["model"]) == ("imp", 0, "made-up", "tiny")
            assert row["density"] == pytest.approx(1 - row["sparsity"])
            assert set(row["metrics"]) == {"accuracy"}
            assert row["loss"] > 0
            assert set(row["seconds"]) == {"prune", "train", "evaluate"}
            assert row["memory"]["peak_rss_bytes"] > 1e7
            assert (tmp_path / row["ticket"]).is_file()
        (whole,) = results.read(tmp_path / "log.jsonl", "run")
        assert whole["metrics"] == rows[-1]["metrics"]

    def test_the_ticket_knows_the_weights_it_was_made_for(self, tmp_path: Path) -> None:
        run(experiment(), request(sparsity=0.3), tmp_path)
        final = Ticket.load(tmp_path / "ticket.safetensors")
        assert final.metadata["model"]["weights"] == weight_hash(model())
        final.check(model(), weights=True)
        assert len(final.metadata["history"]) == 3

    def test_the_model_that_is_left_has_the_ticket_s_zeros_and_its_metrics(self, tmp_path: Path) -> None:
        from transformers import BertForSequenceClassification

        rows = run(experiment(), request(sparsity=0.2), tmp_path)
        left = BertForSequenceClassification.from_pretrained(tmp_path / "model")
        assert Ticket.from_model(left) == Ticket.load(tmp_path / "ticket.safetensors")
        assert experiment().evaluate(left) == rows[-1]["metrics"]

    def test_it_is_judged_in_fp32_whatever_it_was_trained_in(self, tmp_path: Path) -> None:
        from transformers import BertForSequenceClassification

        whole = experiment()
        forward = type(whole.model).forward
        rows = run(whole, request(sparsity=0.2, precision="bf16"), tmp_path)
        assert whole.model.forward.__func__ is forward
        left = BertForSequenceClassification.from_pretrained(tmp_path / "model")
        assert left.dtype == torch.float32
        assert experiment().evaluate(left) == rows[-1]["metrics"]

    def test_every_round_is_trained_in_the_precision_asked_for(self, tmp_path: Path) -> None:
        whole = experiment()
        seen: list[torch.dtype] = []

        def watch(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if module.training:
                seen.append(output.dtype)

        resolve(whole.model, "encoder.layer.0.attention.self.query").register_forward_hook(watch)
        run(whole, request(sparsity=0.2, precision="bf16"), tmp_path)
        assert seen == [torch.bfloat16] * 3 * 7

    def test_nothing_else_is_left(self, tmp_path: Path) -> None:
        run(experiment(), request(rewind="step", rewind_step=2), tmp_path)
        names = {path.name for path in tmp_path.rglob("*") if path.is_file()}
        assert names == {
            *("run.json", "log.jsonl", ".lock", "ticket.safetensors", "sessions"),
            *("model.safetensors", "config.json"),
        }


class TestContext:
    def test_the_caller_is_told_before_the_work_starts_and_not_once_it_is_done(self, tmp_path: Path) -> None:
        calls: list[str] = []
        whole, config = experiment(), request(sparsity=0.1, steps=1)

        def before(model: Any, config: RunConfig) -> None:
            assert model is whole.model
            assert not any(tmp_path.iterdir())
            calls.append(config.method.name)

        context = RunContext(say=calls.append, before=before)
        run(whole, config, tmp_path, context)
        done = r": step 1 of 1(, loss \d\.\d{4})?, accuracy \d\.\d{4}, done in \d+ s"
        expected = [
            "imp",
            "round 1 of 2, 0.0% sparse",
            rf"round 1 of 2, 0.0% sparse{done}, about \d+ s left",
            "round 2 of 2, 10.0% sparse",
            rf"round 2 of 2, 10.0% sparse{done}",
        ]
        assert all(re.fullmatch(pattern, call) for pattern, call in zip(expected, calls, strict=True))
        run(whole, config, tmp_path, context)
        assert calls[5:] == [f"{tmp_path} is finished: nothing to do"]


class TestSecondStart:
    def test_a_finished_run_does_nothing_and_says_so_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = run(experiment(), request(sparsity=0.1), tmp_path)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        said: list[str] = []
        assert run(experiment(), request(sparsity=0.1), tmp_path, RunContext(said.append)) == rows
        assert said == [f"{tmp_path} is finished: nothing to do"]
        monkeypatch.setenv("RANK", "1")  # another process says nothing
        assert run(experiment(), request(sparsity=0.1), tmp_path, RunContext(said.append)) == rows
        assert len(said) == 1
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"} == {
            path: time for path, time in before.items() if path.name != ".lock"
        }

    @pytest.mark.parametrize(
        ("changes", "name"),
        [
            ({"learning_rate": 2e-3}, "training.learning_rate 0.001, not 0.002"),
            ({"seed": 1}, "training.seed 0, not 1"),
            ({"scope": "matrix"}, "units.scope 'global', not 'matrix'"),
            ({"share": "remaining"}, "options.share"),
        ],
    )
    def test_other_settings_are_refused(self, tmp_path: Path, changes: dict[str, Any], name: str) -> None:
        run(experiment(), request(sparsity=0.1, steps=1), tmp_path)
        with pytest.raises(ValueError, match=name):
            run(experiment(), request(sparsity=0.1, steps=1, **changes), tmp_path)

    def test_a_folder_of_something_else_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("precious")
        with pytest.raises(ValueError, match=r"is not empty and holds no run \(thesis.tex\)"):
            run(experiment(), request(), tmp_path)
        assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]
        (tmp_path / "run.json").write_text("{}")
        with pytest.raises(ValueError, match="does not describe a run"):
            run(experiment(), request(), tmp_path)
        assert (tmp_path / "thesis.tex").read_text() == "precious"

    def test_two_processes_in_one_folder_are_one_too_many(self, tmp_path: Path) -> None:
        fcntl = pytest.importorskip("fcntl")
        with open(tmp_path / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(ValueError, match="another process is working in"):
                run(experiment(), request(), tmp_path)


class TestRefusals:
    def test_what_does_not_fit_is_found_before_any_training(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop, "train_round", lambda *_, **__: pytest.fail("trained"))
        for changes, message in [
            ({"granularity": "block", "block_size": (0, 4)}, "block_size must be"),
            ({"scope": "layer"}, "unknown scope"),
            ({"rewind": "step", "rewind_step": 7}, "rewind_step must be below the 7 steps of a round, got 7"),
            ({"warmup_steps": 7}, "warmup_steps must be below the 7 steps"),
        ]:
            with pytest.raises(ValueError, match=message):
                run(experiment(), request(**changes), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_ticket_of_another_model(self, tmp_path: Path) -> None:
        ticket = Ticket({"encoder.layer.0.attention.self.query": torch.eye(3, dtype=torch.bool)})
        with pytest.raises(ValueError, match="ticket of another model"):
            run(experiment(), request("ticket", None, ticket=ticket), tmp_path)

    def test_a_full_disk_is_one_line_and_what_was_done_stays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(self: Snapshot, path: Path) -> None:
            if path.name == "trained.safetensors" and path.parent.name == "round-01":
                raise OSError(28, "No space left on device")
            save(self, path)

        save = Snapshot.save
        monkeypatch.setattr(Snapshot, "save", full)
        with pytest.raises(OSError, match="No space left"):
            run(experiment(), request(sparsity=0.2), tmp_path)
        lines = (tmp_path / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["round"] for line in lines] == [0]
        monkeypatch.undo()
        rows = run(experiment(), request(sparsity=0.2), tmp_path)
        assert [row["sessions"] for row in rows] == [1, 2, 1]
        assert tickets(tmp_path)[-1].sparsity == 0.2

    def test_too_small_a_disk_is_found_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from collections import namedtuple

        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 10, 0))
        with pytest.raises(OSError, match="GB are free"):
            run(experiment(), request(), tmp_path)
        assert not (tmp_path / "start.safetensors").exists()
