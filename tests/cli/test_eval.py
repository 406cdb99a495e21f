"""``sparsebert eval``: metrics of trained models, one or several seeds of them, and the verdict on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsebert import results
from sparsebert.cli import app
from tests.cli.tiny import refused, save

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")


class TestEval:
    def test_it_finds_what_the_run_log_says(
        self, capsys: pytest.CaptureFixture[str], asked: list[str], tmp_path: Path, data: Path
    ) -> None:
        assert app.main(["train", "--method", "one-shot", "--sparsity", "0.5", *asked]) == 0
        capsys.readouterr()
        rows_file = tmp_path / "eval.jsonl"
        model = ["--model", str(tmp_path / "run" / "model"), "--task", "sst2", "--data", str(data)]
        assert app.main(["eval", *model, "--json", str(rows_file)]) == 0
        (row,) = results.read(rows_file, "eval")
        (logged,) = results.read(tmp_path / "run" / "log.jsonl", "round")
        assert row["metrics"] == logged["metrics"]
        assert f"accuracy {row['metrics']['accuracy']:.4f}" in capsys.readouterr().out
        ticket = ["--ticket", str(tmp_path / "run" / "ticket.safetensors")]
        assert app.main(["eval", *model, *ticket, "--json", str(rows_file)]) == 0
        assert results.read(rows_file, "eval")[1]["metrics"] == row["metrics"]

    def test_a_model_without_a_trained_head_is_refused(
        self, capsys: pytest.CaptureFixture[str], bert: Path, data: Path
    ) -> None:
        line = refused(capsys, "eval", "--model", str(bert), "--task", "sst2", "--data", str(data))
        assert "has no trained head for sst2" in line

    def test_compacted(
        self, capsys: pytest.CaptureFixture[str], asked: list[str], tmp_path: Path, data: Path
    ) -> None:
        """Neurons are taken out without a change; thin rows cost what the command says they cost."""
        units = ["--granularity", "neuron", "--sparsity", "0.5"]
        assert app.main(["train", "--method", "one-shot", *units, *asked]) == 0
        run = tmp_path / "run"
        ticket = ["--ticket", str(run / "ticket.safetensors")]
        model = ["--model", str(run / "model"), "--task", "sst2", "--data", str(data)]
        rows_file = tmp_path / "eval.jsonl"
        capsys.readouterr()
        assert app.main(["eval", *model, *ticket, "--compact", "--json", str(rows_file)]) == 0
        assert "compacted (exact): " in capsys.readouterr().out
        line = refused(capsys, "eval", *model, *ticket, "--compact", "--min-row-weights", "1000")
        assert "min_row_weights must be at most the longest row, 30 weights, got 1000" in line
        lossy = ["--compact", "--min-row-weights", "30"]
        assert app.main(["eval", *model, *ticket, *lossy, "--json", str(rows_file)]) == 0
        assert "compacted (lossy, rows of at least 30 weights): " in capsys.readouterr().out
        exact, thinned = results.read(rows_file, "eval")
        (logged,) = results.read(run / "log.jsonl", "round")
        assert exact["metrics"] == exact["masked_metrics"] == thinned["masked_metrics"] == logged["metrics"]
        assert exact["compaction"]["output_change"]["max"] < 1e-5
        assert exact["compaction"]["weights"]["stored"] < exact["compaction"]["weights"]["configured"]
        assert thinned["compaction"]["weights"]["exact"] < exact["compaction"]["weights"]["exact"]
        line = refused(capsys, "eval", *model, "--compact")
        assert "--compact requires --ticket" in line
        assert "requires --compact" in refused(capsys, "eval", *model, *ticket, "--min-row-weights", "3")

    def test_another_label_order_is_refused(
        self, capsys: pytest.CaptureFixture[str], tokenizer: Any, tmp_path: Path, data: Path
    ) -> None:
        labels = {0: "positive", 1: "negative"}
        turned = save(
            tmp_path / "turned",
            tokenizer,
            "BertForSequenceClassification",
            id2label=labels,
            label2id={label: index for index, label in labels.items()},
        )
        line = refused(capsys, "eval", "--model", str(turned), "--task", "sst2", "--data", str(data))
        assert "label order" in line


class TestSeeds:
    @pytest.fixture
    def runs(self, asked: list[str], tmp_path: Path) -> Path:
        """Random tickets of the seeds 1 to 3, and dense runs of the same seeds."""
        random = ["--method", "random", "--sparsity", "0.5", "--seeds", "1,2,3"]
        assert app.main(["train", *asked, *random, "--dense", str(tmp_path / "dense")]) == 0
        return tmp_path / "run"

    def test_all_runs_of_a_folder_are_summed_up_and_judged(
        self, capsys: pytest.CaptureFixture[str], runs: Path, data: Path, tmp_path: Path
    ) -> None:
        capsys.readouterr()
        rows_file = tmp_path / "eval.jsonl"
        there = ["--task", "sst2", "--data", str(data), "--model", str(runs), "--json", str(rows_file)]
        assert app.main(["eval", *there, "--dense", str(tmp_path / "dense")]) == 0
        logged = [results.read(runs / f"seed-{seed}" / "log.jsonl", "round")[0] for seed in (1, 2, 3)]
        rows = results.read(rows_file, "eval")
        assert [(row["seed"], row["metrics"]) for row in rows] == [
            (row["seed"], row["metrics"]) for row in logged
        ]
        (summary,) = results.read(rows_file, "eval_seeds")
        assert summary["values"] == [row["metrics"]["accuracy"] for row in rows]
        assert summary["verdict"] in ("strict", "winning", "none", "undecided")
        assert f"± {summary['std']:.4f} {summary['verdict']}" in capsys.readouterr().out

    def test_some_of_them_by_seed(
        self, capsys: pytest.CaptureFixture[str], runs: Path, data: Path, tmp_path: Path
    ) -> None:
        rows_file = tmp_path / "eval.jsonl"
        there = ["--task", "sst2", "--data", str(data), "--model", str(runs), "--json", str(rows_file)]
        assert app.main(["eval", *there, "--seeds", "3,1"]) == 0
        assert [row["seed"] for row in results.read(rows_file, "eval")] == [3, 1]
        capsys.readouterr()
        assert "no run of seed 4; its seeds: 1, 2, 3" in refused(capsys, "eval", *there, "--seeds", "4")
        there[there.index(str(runs))] = str(runs / "seed-1")
        assert "--seeds needs a folder of runs by seed" in refused(capsys, "eval", *there, "--seeds", "1")
