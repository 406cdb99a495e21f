"""Heads, neurons and whole MLPs from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsebert import results
from sparsebert.cli import app
from sparsebert.tickets.ticket import Ticket
from tests.cli.tiny import QUICK, refused

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")


class TestPrune:
    @pytest.mark.parametrize("granularity", ["head", "head+neuron", "head+mlp"])
    def test_by_importance(
        self, capsys: pytest.CaptureFixture[str], there: list[str], tmp_path: Path, granularity: str
    ) -> None:
        tickets = {}
        for name, flags in {"fresh": [], "published": ["--accumulate"]}.items():
            output = tmp_path / f"{name}.safetensors"
            options = ["--granularity", granularity, "--sparsity", "0.5", "--scope", "type"]
            arguments = ["--task", "sst2", *there, *options, "--batch-size", "4", "--output", str(output)]
            assert app.main(["prune", "--method", "head-importance", *arguments, *flags]) == 0
            tickets[name] = Ticket.load(output)
        assert "50.00% sparse" in capsys.readouterr().out
        assert tickets["published"].metadata["options"]["accumulate"] is True
        assert bool(tickets["fresh"].removed) == ("mlp" in granularity)

    def test_refusals(self, capsys: pytest.CaptureFixture[str], there: list[str], tmp_path: Path) -> None:
        model, data = there[:2], there[2:]
        output = ["--output", str(tmp_path / "x.safetensors"), "--sparsity", "0.5", *model]
        importance = ["prune", "--method", "head-importance", *output]
        assert "not granularity 'element'" in refused(capsys, *importance, *data, "--task", "sst2")
        assert "pass data" in refused(capsys, *importance, "--granularity", "head")
        line = refused(capsys, "prune", "--method", "magnitude", *output, "--accumulate")
        assert "unknown option of method magnitude 'accumulate'" in line
        assert not (tmp_path / "x.safetensors").exists()


class TestTrain:
    def test_importance(self, asked: list[str], tmp_path: Path) -> None:
        units = ["--granularity", "head+neuron", "--scope", "type", "--batches", "2"]
        assert app.main(["train", "--method", "importance", "--sparsity", "0.5", *units, *asked]) == 0
        rows = results.read(tmp_path / "run" / "log.jsonl", "round")
        assert [row["sparsity"] for row in rows] == [0, 0.5]

    def test_single_weights_are_refused(
        self, capsys: pytest.CaptureFixture[str], asked: list[str], tmp_path: Path
    ) -> None:
        single = ["--granularity", "element", "--sparsity", "0.5"]
        line = refused(capsys, "train", "--method", "importance", *single, *asked)
        assert "must be head, neuron, mlp, head+neuron or head+mlp" in line
        assert not (tmp_path / "run").exists()

    def test_the_search_and_what_it_is_judged_by(
        self, asked: list[str], there: list[str], tmp_path: Path
    ) -> None:
        search = ["--granularity", "head+mlp", "--batches", "2", "--threshold", "0.6"]
        assert app.main(["train", "--method", "importance-search", *search, *asked]) == 0
        ticket = Ticket.load(tmp_path / "run" / "ticket.safetensors")
        assert ticket.metadata["search"][0]["heads"] == 4
        for method in ("bad-units", "random-units"):
            out = ["--out", str(tmp_path / method), "--ticket", str(tmp_path / "run")]
            arguments = ["--task", "sst2", *there, *QUICK, *out]
            assert app.main(["train", "--method", method, *arguments]) == 0
            other = Ticket.load(tmp_path / method / "ticket.safetensors")
            assert other.sparsity == ticket.sparsity


def test_the_search_by_magnitude_and_what_it_is_judged_by(
    capsys: pytest.CaptureFixture[str], asked: list[str], there: list[str], tmp_path: Path
) -> None:
    search = ["--batches", "2", "--threshold", "0.6", "--most-steps", "3"]
    assert app.main(["train", "--method", "magnitude-search", *search, *asked]) == 0
    ticket = Ticket.load(tmp_path / "run" / "ticket.safetensors")
    assert ticket.bias_masks
    for method in ("bad-weights", "random-weights"):
        out = ["--out", str(tmp_path / method), "--ticket", str(tmp_path / "run")]
        assert app.main(["train", "--method", method, "--task", "sst2", *there, *QUICK, *out]) == 0
        other = Ticket.load(tmp_path / method / "ticket.safetensors")
        assert other.bias_masks.keys() == ticket.bias_masks.keys()
    line = refused(capsys, "train", "--method", "magnitude-search", *search, *asked, "--sparsity", "0.5")
    assert "decides the sparsity" in line


def test_magnitude_tickets_with_biases_and_what_two_of_them_share(
    capsys: pytest.CaptureFixture[str], bert: Path, tmp_path: Path
) -> None:
    tickets = {}
    for name, flags in {"good": [], "bad": ["--keep-smallest"]}.items():
        tickets[name] = tmp_path / f"{name}.safetensors"
        arguments = ["--model", str(bert), "--output", str(tickets[name]), "--sparsity", "0.3", "--biases"]
        assert app.main(["prune", *arguments, *flags]) == 0
    both = tmp_path / "both.safetensors"
    assert app.main(["convert", str(tickets["good"]), str(both), "--intersect", str(tickets["bad"])]) == 0
    good, bad = Ticket.load(tickets["good"]), Ticket.load(tickets["bad"])
    assert good.bias_masks
    assert Ticket.load(both) == good & bad


def test_early_bird_says_what_the_search_saved(
    capsys: pytest.CaptureFixture[str], asked: list[str], tmp_path: Path
) -> None:
    early = ["--mask-interval", "1", "--window", "2", "--epsilon", "1.0", "--sparsity", "0.5"]
    assert app.main(["train", "--method", "early-bird", *early, *asked]) == 0
    saved = "seed 0: ticket drawn after 3 of 6 steps, 50% of the search saved\n"
    assert saved in capsys.readouterr().out
    rows = results.read(tmp_path / "run" / "log.jsonl", "round")
    assert [row["steps"] for row in rows] == [3, 6]
    assert rows[1]["search"]["saved"] == 0.5
    assert (rows[1]["granularity"], rows[1]["scope"]) == ("head+neuron", "heads-by-layer")


def test_super_tickets(asked: list[str], tmp_path: Path) -> None:
    grid = ["--step", "0.25", "--sparsity", "0.5", "--batches", "2"]
    assert app.main(["train", "--method", "super-tickets", *grid, *asked]) == 0
    (whole,) = results.read(tmp_path / "run" / "log.jsonl", "run")
    rows = results.read(tmp_path / "run" / "log.jsonl", "round")
    assert len(rows) == 3
    assert whole["metrics"]["accuracy"] == max(row["metrics"]["accuracy"] for row in rows[1:])


def test_super_tickets_of_the_released_grid(
    capsys: pytest.CaptureFixture[str], asked: list[str], tmp_path: Path
) -> None:
    grid = ["--grid", "released", "--step", "0.25", "--sparsity", "0.75", "--batches", "100"]
    published = ["--accumulate", "--equal-batches"]
    assert app.main(["train", "--method", "super-tickets", *grid, *published, *asked]) == 0
    out, err = capsys.readouterr()
    assert "round 2 of 4, without 25.0% of the heads" in err
    assert "seed 0, round 3: without 2 of 4 heads and 1 of 2 MLPs" in out
    sparsity = results.read(tmp_path / "run" / "log.jsonl", "round")[-1]["sparsity"]
    assert f"{sparsity:.0%} pruned, granularity 'head+mlp': estimated gain" in out
    options = json.loads((tmp_path / "run" / "run.json").read_text())["options"]
    assert (options["grid"], options["equal_batches"]) == ("released", True)
    scope = ["train", "--method", "super-tickets", *grid, "--scope", "global", *asked]
    assert "scope must be type, got 'global'" in refused(capsys, *scope)
