"""Every command that works for a while records what it used, and the fingerprints of what it read."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from sparsebert import results
from sparsebert.accounting import energy
from sparsebert.cli import app
from tests import rapl
from tests.cli.tiny import QUICK, WORDS, refused

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

RESOURCES = {"wall_seconds", "cpu_seconds", "cuda_seconds", "peak_rss_bytes", "peak_gpu_bytes"} | {
    *("process_peak", "energy", "carbon", "resumed")
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    lines = sorted({" ".join(draw.choices(WORDS[5:], k=draw.randint(3, 8))) for _ in range(150)})
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def no_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    rapl.read_from(tmp_path / "powercap", monkeypatch)


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A RAPL package whose counter stands at 1 kWh when it is read again."""
    counter = rapl.write_domain(tmp_path / "powercap", "0", "package-0")
    rapl.read_from(tmp_path / "powercap", monkeypatch)
    return counter


def recorded(command: list[str], file: Path, kind: str) -> list[Any]:
    assert app.main([*command, "--json", str(file)]) == 0
    rows = results.read(file, kind)
    assert rows
    return rows


def trained(bert: Path, data: Path, out: Path, *more: str, method: str = "one-shot") -> list[str]:
    command = ["train", "--task", "sst2", "--data", str(data), "--model", str(bert), "--method", method]
    return [*command, "--sparsity", "0.1", *QUICK, "--out", str(out), *more]


def test_train(bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = recorded(trained(bert, data, tmp_path / "run"), tmp_path / "rows.jsonl", "round")
    for row in rows:
        assert row["resources"].keys() == RESOURCES
        assert row["resources"]["wall_seconds"] >= sum(row["seconds"].values()) - 0.01
        assert row["memory"]["peak_rss_bytes"] == row["resources"]["peak_rss_bytes"]
        assert row["fingerprints"].keys() == {"train", "validation", "model", "tokenizer"}
    (run,) = results.read(tmp_path / "run" / "log.jsonl", "run")
    assert run["resources"]["cpu_seconds"] == pytest.approx(
        sum(row["resources"]["cpu_seconds"] for row in rows), abs=0.01
    )
    assert run["fingerprints"] == rows[0]["fingerprints"]
    assert "Resources of rounds: tiny-bert on sst2, one-shot" in capsys.readouterr().out
    assert app.main(["report", str(tmp_path / "run")]) == 0
    assert "Resources of rounds" in capsys.readouterr().out


def test_the_seed_of_a_head_does_not_change_the_model(bert: Path, data: Path, tmp_path: Path) -> None:
    command = trained(bert, data, tmp_path / "run", "--seeds", "1,2")
    assert app.main([*command, "--json", str(tmp_path / "rows.jsonl")]) == 0
    one, other = (row["fingerprints"] for row in results.read(tmp_path / "rows.jsonl", "round"))
    assert one == other
    summaries = results.read(tmp_path / "rows.jsonl", "seeds")
    assert all(row["fingerprints"] == one for row in summaries)
    assert all(row["resources"]["wall_seconds"] > 0 for row in summaries)


def test_a_run_does_not_go_on_with_other_data(
    bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changing = tmp_path / "data"
    shutil.copytree(data, changing)
    run = tmp_path / "run"
    assert app.main(trained(bert, changing, run, method="imp")) == 0
    # As if it had been killed in its last round.
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    (run / "log.jsonl").write_text(json.dumps(log[0]) + "\n")
    table = changing / "glue" / "SST-2" / "train.tsv"
    lines = table.read_text().splitlines()
    lines[1] = lines[1][:-1] + str(1 - int(lines[1][-1]))
    table.write_text("\n".join(lines) + "\n")
    line = refused(capsys, *trained(bert, changing, run, method="imp"))
    assert f"{run} holds a run with training data of fingerprint sha256:" in line


def test_transfer(bert: Path, data: Path, tmp_path: Path) -> None:
    ticket = tmp_path / "ticket.safetensors"
    assert app.main(["prune", "--model", str(bert), "--sparsity", "0.5", "--output", str(ticket)]) == 0
    command = ["transfer", "--ticket", f"a={ticket}", "--tasks", "sst2,cola", "--model", str(bert)]
    command += ["--data", str(data), *QUICK, "--out", str(tmp_path / "runs")]
    rows = recorded(command, tmp_path / "rows.jsonl", "transfer")
    assert [(row["source"], row["task"]) for row in rows][:2] == [("dense", "sst2"), ("a", "sst2")]
    assert rows[0]["fingerprints"] == rows[1]["fingerprints"]
    assert all(row["resources"]["wall_seconds"] > 0 for row in rows)


def test_prune_and_heal(bert: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pruned, healed = tmp_path / "pruned", tmp_path / "healed"
    command = ["prune", "--method", "wanda", "--sparsity", "0.5", "--model", str(bert), "--texts", str(texts)]
    (first,) = recorded([*command, "--output", str(pruned)], tmp_path / "rows.jsonl", "prune")
    command = ["heal", str(pruned), "--teacher", str(bert), "--texts", str(texts), "--output", str(healed)]
    command += ["--steps", "4", "--learning-rate", "0.003"]
    (second,) = recorded(command, tmp_path / "rows.jsonl", "heal")
    for row in (first, second):
        assert row["resources"].keys() == RESOURCES
    assert first["fingerprints"].keys() == {"model", "tokenizer", "texts"}
    assert second["fingerprints"].keys() == {"model", "teacher", "tokenizer", "texts"}
    for name in ("tokenizer", "texts"):
        assert first["fingerprints"][name] == second["fingerprints"][name]
    assert first["fingerprints"]["model"] != second["fingerprints"]["model"]
    assert capsys.readouterr().out.count("\nused ") == 2
    # Nothing but results and folders.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["healed", "pruned", "rows.jsonl"]
    assert app.main(["report", str(tmp_path / "rows.jsonl")]) == 0
    assert "Resources" in capsys.readouterr().out


def test_a_ticket_of_scores_has_the_fingerprint_of_its_model(bert: Path, tmp_path: Path) -> None:
    command = ["prune", "--model", str(bert), "--output", str(tmp_path / "ticket.safetensors")]
    (row,) = recorded(command, tmp_path / "rows.jsonl", "prune")
    assert row["fingerprints"].keys() == {"model"}


def test_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "--model", "bert-tiny", "--seq", "8", "--budget", "0.01", "--no-memory"]
    ours, eager = recorded([*command, "--no-measure", "--vs", "eager"], tmp_path / "rows.jsonl", "bench")
    assert ours["resources"].keys() == RESOURCES
    assert eager["resources"] is None  # of the same comparison
    assert ours["fingerprints"] == eager["fingerprints"]
    assert ours["fingerprints"].keys() == {"model", "masks"}
    assert "\nused " in capsys.readouterr().out


def test_eval_reads_what_was_trained_on(
    bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (*_, row) = recorded(trained(bert, data, tmp_path / "run"), tmp_path / "rows.jsonl", "round")
    command = ["eval", "--task", "sst2", "--data", str(data), "--model", str(tmp_path / "run")]
    (evaluated,) = recorded(command, tmp_path / "rows.jsonl", "eval")
    assert evaluated["resources"].keys() == RESOURCES
    assert "\nused " in capsys.readouterr().out
    for name in ("validation", "tokenizer"):
        assert evaluated["fingerprints"][name] == row["fingerprints"][name]
    assert evaluated["fingerprints"]["model"] != row["fingerprints"]["model"]


def test_eval_of_several_models_counts_each_and_their_sum(
    bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, runs = tmp_path / "rows.jsonl", str(tmp_path / "runs")
    assert app.main(trained(bert, data, tmp_path / "runs", "--seeds", "1,2")) == 0
    command = ["eval", "--task", "sst2", "--data", str(data), "--model", runs, "--dense", runs]
    rows = recorded([*command, "--perturb", "typos"], file, "eval")
    parts = [row["resources"]["wall_seconds"] for row in rows]
    (summary,) = results.read(file, "eval_seeds")
    assert summary["resources"].keys() == RESOURCES
    assert summary["resources"]["wall_seconds"] > sum(parts)  # and the dense models
    assert not any("resources" in row for row in results.read(file, "robustness"))
    capsys.readouterr()
    assert app.main(["report", str(file)]) == 0
    table = capsys.readouterr().out.partition("Resources")[2]
    assert [line.count("on sst2, seed ") for line in table.splitlines() if "on sst2" in line] == [1, 1]


class TestCarbon:
    @pytest.mark.usefixtures("no_counters")
    def test_an_intensity_without_measured_energy_is_refused(
        self, bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = refused(capsys, *trained(bert, data, tmp_path / "run", "--carbon-intensity", "380"))
        assert (
            "--carbon-intensity 380 needs measured energy, and there is none here: no RAPL counters" in line
        )
        assert not (tmp_path / "run").exists()

    @pytest.mark.usefixtures("counters")
    @pytest.mark.parametrize("intensity", ["-1", "inf", "nan"])
    def test_an_intensity_is_a_number_from_0(
        self, intensity: str, bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = refused(capsys, *trained(bert, data, tmp_path / "run", "--carbon-intensity", intensity))
        assert "--carbon-intensity must be a number of grams per kWh, at least 0, got" in line

    def test_the_carbon_of_measured_energy_is_recorded_with_its_intensity(
        self, counters: Path, bert: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = energy.Rapl.read

        def one_kwh(self: Any) -> Any:
            counters.write_text(str(int(3.6e12)))
            return read(self)

        monkeypatch.setattr(energy.Rapl, "read", one_kwh)
        command = trained(bert, data, tmp_path / "run", "--carbon-intensity", "380")
        (row,) = recorded(command, tmp_path / "rows.jsonl", "round")
        assert row["resources"]["energy"]["domains"] == {"package-0": 3.6e6}
        assert row["resources"]["carbon"] == {"grams_per_kwh": 380.0, "grams": 380.0}

    def test_it_does_not_apply_to_tickets_of_scores(
        self, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["prune", "--model", str(bert), "--output", str(tmp_path / "t.safetensors")]
        line = refused(capsys, *command, "--carbon-intensity", "380")
        assert "--carbon-intensity applies only with a one-shot method" in line
