"""``sparsebert sweep`` on a tiny BERT: cells, holes, resuming, changed options, and what the report shows."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsebert import results
from sparsebert.accounting import energy
from sparsebert.cli import app
from sparsebert.lottery.run_folder import RunFolder
from tests import rapl
from tests.cli.tiny import refused

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

EXPERIMENT = """\
title: Tickets of a tiny BERT
source: {{paper: Somebody 2020, table: Table 1}}
train: {{model: {model}, steps: 6, batch-size: 8, learning-rate: 0.003, device: cpu, save-steps: 2}}
seeds: [1, 2]
columns:
  sst2: {{task: sst2, sparsity: 0.5}}
  cola: {{task: cola, sparsity: 0.5}}
rows:
  dense: {{method: dense, sparsity: null, columns: [sst2]}}
  imp: {{label: IMP, method: imp, step: 0.5, columns: [sst2]}}
  moved: {{method: ticket, sparsity: null, ticket: {{row: imp, column: sst2}}, columns: [cola]}}
metric: {{sst2: accuracy}}
published: {{imp: {{sst2: 90}}, dense: {{sst2: [91, 0.5]}}}}
small:
  seeds: [1]
  rows: [dense]
"""


@pytest.fixture
def file(bert: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(EXPERIMENT.format(model=bert))
    return path


@pytest.fixture
def sweep(file: Path, data: Path, tmp_path: Path) -> Callable[..., int]:
    """Run the experiment in the folder ``sweep``."""

    def run(*options: str) -> int:
        return app.main(["sweep", str(file), "--data", str(data), "--out", str(tmp_path / "sweep"), *options])

    return run


def records(folder: Path) -> dict[str, results.Record]:
    rows = results.read(folder / "experiment.jsonl", "experiment")
    return {f"{row['row']}/{row['column']}/seed-{row['seed']}": row for row in rows}


def started(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The runs that trained: those of whose rounds there was a line of progress."""
    lines = capsys.readouterr().err.splitlines()
    return list(dict.fromkeys(line.partition(":")[0] for line in lines if ": round " in line))


def test_every_cell_is_a_run_and_a_second_sweep_only_reads_them(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("--json", str(tmp_path / "rows.jsonl")) == 0
    folder = tmp_path / "sweep"
    rows = records(folder)
    assert list(rows) == [
        f"{cell}/seed-{seed}" for seed in (1, 2) for cell in ("dense/sst2", "imp/sst2", "moved/cola")
    ]
    assert {row["status"] for row in rows.values()} == {"done"}
    imp, moved = rows["imp/sst2/seed-1"], rows["moved/cola/seed-1"]
    assert (imp["metric"], imp["method"], imp["rounds"], imp["steps"]) == ("accuracy", "imp", 2, 12)
    assert imp["sparsity"] == pytest.approx(0.5)
    assert moved["masks_sha256"] == imp["masks_sha256"]
    assert moved["sources"] == {"ticket": "imp/sst2"}
    assert str(tmp_path) not in json.dumps(moved)
    assert results.read(tmp_path / "rows.jsonl") == list(rows.values())
    assert not RunFolder(folder / "imp/sst2/seed-1").model.exists()
    out = capsys.readouterr().out
    assert "Tickets of a tiny BERT" in out
    assert "[91.00 ± 0.50]" in out
    assert "**Tickets of a tiny BERT**" in (folder / "experiment.md").read_text()
    assert sweep() == 0
    assert started(capsys) == []


def test_a_dry_run_prints_the_command_lines_and_runs_nothing(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("--dry-run", "--only", "moved/*") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4  # the ticket's run and the cell's, for two seeds
    words = shlex.split(lines[1])
    assert words[:2] == ["sparsebert", "train"]
    assert words[words.index("--ticket") + 1] == str(tmp_path / "sweep/imp/sst2/seed-1")
    assert not (tmp_path / "sweep").exists()
    assert app.main(shlex.split(lines[0])[1:]) == 0  # each is a command of its own
    assert RunFolder(tmp_path / "sweep/imp/sst2/seed-1").finished()


def test_a_run_that_stopped_midway_is_finished_by_the_next_sweep(
    sweep: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sparsebert.lottery import loop

    trained = loop.train_round

    def stopped(*arguments: object, **options: object) -> object:
        outcome = trained(*arguments, **options)  # type: ignore[arg-type]
        raise KeyboardInterrupt
        return outcome

    monkeypatch.setattr(loop, "train_round", stopped)
    assert sweep("--only", "imp/*") == 130
    monkeypatch.undo()
    capsys.readouterr()
    assert sweep("--only", "imp/*") == 0
    rows = records(tmp_path / "sweep")
    assert rows["imp/sst2/seed-1"]["status"] == "done"
    assert rows["imp/sst2/seed-1"]["sessions"] == 3  # of two rounds, one started twice
    assert rows["dense/sst2/seed-1"]["reason"] == "not asked for (--only)"


def test_a_cell_without_data_is_a_hole_and_the_others_go_on(
    bert: Path, file: Path, sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = file.read_text().replace("cola: {task: cola", "rte: {task: rte").replace("[cola]", "[rte]")
    file.write_text(text + "unavailable: {rte: not here}\n")
    assert sweep("--only", "moved/*") == 1
    rows = records(tmp_path / "sweep")
    hole = rows["moved/rte/seed-1"]
    assert hole["status"] == "not run"
    assert (
        hole["reason"].startswith("the data folder/glue does not hold rte")
        or "does not hold rte" in hole["reason"]
    )
    assert hole["reason"].endswith("(not here)")
    assert rows["imp/sst2/seed-1"]["status"] == "done"
    assert "2 runs of 4 failed; the last table says why" in capsys.readouterr().err
    # Failures of an earlier sweep stay in the table; they are not those of a sweep of other cells.
    assert sweep("--only", "imp/*") == 0
    assert records(tmp_path / "sweep")["moved/rte/seed-1"]["reason"] == hole["reason"]


def test_a_cell_whose_source_did_not_run_says_so(
    file: Path, sweep: Callable[..., int], tmp_path: Path
) -> None:
    file.write_text(
        file.read_text()
        .replace("sst2: {task: sst2", "sst2: {task: mrpc")
        .replace("metric: {sst2: accuracy}\n", "")
    )
    assert sweep("--only", "moved/*") == 1
    assert records(tmp_path / "sweep")["moved/cola/seed-1"]["reason"] == (
        "its ticket is that of imp/sst2, which did not run"
    )


def test_a_cell_with_changed_options_is_refused_or_runs_again_with_the_cells_that_need_it(
    file: Path, sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep() == 0
    before = records(tmp_path / "sweep")
    file.write_text(file.read_text().replace("step: 0.5", "step: 0.25"))
    assert sweep() == 1
    reason = records(tmp_path / "sweep")["imp/sst2/seed-1"]["reason"]
    assert "its options have changed since it ran (step was 0.5, is 0.25)" in reason
    assert "--rerun-changed" in reason
    capsys.readouterr()
    assert sweep("--rerun-changed") == 0
    assert started(capsys) == [
        f"{cell}/seed-{seed}" for seed in (1, 2) for cell in ("imp/sst2", "moved/cola")
    ]
    after = records(tmp_path / "sweep")
    assert after["imp/sst2/seed-1"]["rounds"] == 3
    assert after["dense/sst2/seed-1"]["timestamp"] >= before["dense/sst2/seed-1"]["timestamp"]


def test_a_run_that_a_changed_cell_replaces_takes_those_that_need_it_along_even_if_the_sweep_is_killed(
    file: Path,
    sweep: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sparsebert.lottery import loop

    assert sweep() == 0
    file.write_text(file.read_text().replace("step: 0.5", "step: 0.25"))
    trained = loop.train_round
    rounds = iter(range(4))

    def killed_in_the_next_cell(*arguments: object, **options: object) -> object:
        if next(rounds) == 3:  # imp has run its three rounds; moved begins
            raise KeyboardInterrupt
        return trained(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train_round", killed_in_the_next_cell)
    assert sweep("--rerun-changed") == 130
    monkeypatch.undo()
    assert records(tmp_path / "sweep")["moved/cola/seed-1"]["reason"] == "not finished yet"
    assert "moved/cola/seed-1 runs again: it needs imp/sst2" in capsys.readouterr().err
    assert sweep("--rerun-changed") == 0
    after = records(tmp_path / "sweep")
    assert after["moved/cola/seed-1"]["masks_sha256"] == after["imp/sst2/seed-1"]["masks_sha256"]


def test_a_cell_left_out_has_no_result_of_a_run_that_no_longer_exists(
    file: Path, sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep() == 0
    file.write_text(file.read_text().replace("step: 0.5", "step: 0.25"))
    assert sweep("--only", "imp/*", "--rerun-changed") == 0
    row = records(tmp_path / "sweep")["moved/cola/seed-1"]
    assert (row["status"], row["reason"]) == ("not run", "not asked for (--only)")
    assert "moved/cola/seed-1 is deleted: it needs imp/sst2" in capsys.readouterr().err
    assert sweep() == 0
    after = records(tmp_path / "sweep")
    assert after["moved/cola/seed-1"]["masks_sha256"] == after["imp/sst2/seed-1"]["masks_sha256"]


def test_the_report_of_a_sweep_that_was_killed_has_a_hole_for_each_cell_to_come(
    sweep: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sparsebert.lottery import loop

    def killed(*arguments: object, **options: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train_round", killed)
    assert sweep() == 130
    monkeypatch.undo()
    rows = records(tmp_path / "sweep")
    assert len(rows) == 6
    assert {row["reason"] for row in rows.values()} == {"not finished yet"}
    capsys.readouterr()
    assert app.main(["report", str(tmp_path / "sweep")]) == 0
    assert "not finished yet" in capsys.readouterr().out
    # Who then asks for one cell is not told that the others failed.
    assert sweep("--only", "dense/sst2") == 0
    assert records(tmp_path / "sweep")["imp/sst2/seed-1"]["reason"] == "not asked for (--only)"


def test_a_reason_names_no_local_path_and_keeps_its_other_words(
    bert: Path, file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(
        file.read_text().replace("sst2: {task: sst2", "sst2: {task: mrpc").replace("{sst2: accuracy}", "{}")
    )
    reasons = []
    for folder, option in ((data, "."), (data.parent, data.name)):
        monkeypatch.chdir(folder)
        out = tmp_path / f"sweep-{len(reasons)}"
        assert app.main(["sweep", str(file), "--data", option, "--out", str(out), "--only", "dense/*"]) == 1
        reasons.append(records(out)["dense/sst2/seed-1"]["reason"])
    assert set(reasons) == {"DATA does not hold mrpc; expected train.tsv and dev.tsv in MRPC/"}


def test_the_small_preset_has_no_difference_and_says_that_its_model_is_another(
    file: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert app.main(["sweep", str(file), "--small", "--data", str(data)]) == 0
    out = capsys.readouterr().out
    assert "small preset on tiny-bert, another model than the paper's" in out
    assert "Difference is empty: another model." in out
    rows = records(tmp_path / "runs" / "tiny-small")
    assert list(rows) == ["dense/sst2/seed-1"]
    assert rows["dense/sst2/seed-1"]["small"] is True
    capsys.readouterr()
    assert app.main(["report", str(tmp_path / "runs" / "tiny-small")]) == 0
    assert "another model than the paper's" in capsys.readouterr().out


def test_several_processes_of_a_launcher_are_refused(
    sweep: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sweep() == 2
    assert "a sweep is one process, got 2 of a launcher" in capsys.readouterr().err
    assert sweep("--dry-run") == 0


def test_speed_is_measured_once_and_stands_beside_accuracy(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ["--only", "imp/sst2", "--speed", "--budget", "0"]
    assert sweep(*only) == 0
    speed = records(tmp_path / "sweep")["imp/sst2/seed-1"]["speed"]
    assert speed["ratio"].keys() <= {"onednn", "eager", "fused"}
    assert speed["weight_bytes"] > 0
    assert speed["batch"] == 8
    assert "speed" not in records(tmp_path / "sweep")["imp/sst2/seed-2"]  # the first seed's tickets alone
    assert "weights MB" in capsys.readouterr().out
    measured = (tmp_path / "sweep/imp/sst2/seed-1/speed.jsonl").read_bytes()
    assert sweep(*only) == 0
    assert (tmp_path / "sweep/imp/sst2/seed-1/speed.jsonl").read_bytes() == measured
    # A sweep that measures nothing keeps what was measured.
    assert sweep("--only", "imp/sst2") == 0
    assert records(tmp_path / "sweep")["imp/sst2/seed-1"]["speed"] == speed


def test_the_carbon_of_each_run_stands_in_its_record_and_in_the_report(
    sweep: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only = ["--only", "dense/*", "--carbon-intensity", "380"]
    rapl.read_from(tmp_path / "powercap", monkeypatch)
    assert sweep(*only) == 2
    assert "--carbon-intensity 380 needs measured energy" in capsys.readouterr().err
    rapl.write_domain(tmp_path / "powercap", "0", "package-0")
    counts = itertools.count(0, 3_600_000_000_000)  # a kWh between two readings
    monkeypatch.setattr(energy.Rapl, "_counts", lambda rapl: {"package-0": next(counts)})
    assert sweep(*only) == 0
    resources = records(tmp_path / "sweep")["dense/sst2/seed-1"]["resources"]
    assert resources["carbon"]["grams_per_kwh"] == 380
    assert resources["carbon"]["grams"] == pytest.approx(resources["energy"]["joules"] / 3.6e6 * 380)
    assert resources["carbon"]["grams"] > 0
    capsys.readouterr()
    assert app.main(["report", str(tmp_path / "sweep")]) == 0
    assert "at 380 g/kWh, as the user gave it" in capsys.readouterr().out
    assert sweep("--dry-run", *only) == 0
    assert "--carbon-intensity 380.0" in capsys.readouterr().out


def test_results_of_cells_that_are_not_run_follow_the_file(
    file: Path, sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(file.read_text().replace("seeds: [1, 2]", "seeds: [1]"))
    assert sweep() == 0
    assert records(tmp_path / "sweep")["moved/cola/seed-1"]["metric"] == "mcc"
    file.write_text(file.read_text().replace("{sst2: accuracy}", "{sst2: accuracy, cola: accuracy}"))
    assert sweep("--only", "dense/*") == 0
    row = records(tmp_path / "sweep")["moved/cola/seed-1"]
    assert (row["status"], row["metric"]) == ("done", "accuracy")
    file.write_text(file.read_text().replace("seeds: [1]", "seeds: [3]", 1))
    capsys.readouterr()
    assert sweep("--only", "dense/*") == 0
    assert (
        "no longer in the experiment, without a place in its tables: dense/sst2/seed-1, imp/sst2/seed-1, "
        "moved/cola/seed-1"
    ) in capsys.readouterr().err


def test_a_page_names_tickets_by_their_place_in_the_sweep(sweep: Callable[..., int], tmp_path: Path) -> None:
    assert sweep("--only", "imp/sst2") == 0
    page = tmp_path / "page.md"
    assert app.main(["report", str(tmp_path / "sweep"), "--markdown", str(page)]) == 0
    assert "\n| imp/sst2/seed-1 | imp |" in page.read_text()


def test_a_folder_of_sweeps_and_runs_is_reported_with_the_tables_of_the_sweeps(
    file: Path, sweep: Callable[..., int], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("--only", "imp/sst2") == 0
    (tmp_path / "runs").mkdir()
    (tmp_path / "sweep").rename(tmp_path / "runs" / "sweep")
    run = tmp_path / "runs" / "sweep" / "imp" / "sst2" / "seed-1"
    run.rename(tmp_path / "runs" / "single")
    capsys.readouterr()
    assert app.main(["report", str(tmp_path / "runs")]) == 0
    out = capsys.readouterr().out
    assert "Tickets of a tiny BERT: each cell" in out
    assert out.count("Rounds: ") == 1
    assert "runs/single" in out


def test_a_record_that_another_version_wrote_is_named(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/experiment.jsonl").write_text('{"schema": 1, "kind": "experiment"}\n')
    assert sweep() == 2
    assert "is not as this version writes it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("step: 0.5", "step: 0", "row imp, column sst2: the share pruned in a step must be between 0 and 1"),
        ("method: imp", "method: impp", "unknown method 'impp'"),
        ("steps: 6", "steps: 6, epochs: 2", "--steps conflicts with --epochs"),
        ("device: cpu", "device: gpu", "row dense, column sst2: unknown device 'gpu'"),
        ("task: cola", "task: colla", "unknown task 'colla'"),
        ("metric: {sst2: accuracy}", "metric: {sst2: f1}", "unknown metric of sst2 'f1'; known: accuracy"),
        ("sparsity: null, columns", "sparsity: 1.5, columns", "sparsity must be in [0, 1), got 1.5"),
    ],
)
def test_options_that_train_would_refuse_are_refused_before_the_first_run(
    file: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    before: str,
    after: str,
    message: str,
) -> None:
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after, 1))
    line = refused(capsys, "sweep", str(file), "--data", str(data), "--out", str(tmp_path / "sweep"))
    assert message in line
    assert str(file) in line
    assert not (tmp_path / "sweep").exists()


def test_patterns_and_folders_that_do_not_fit_are_refused(
    file: Path, sweep: Callable[..., int], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", str(file), "--data", str(data), "--out", str(tmp_path / "sweep")]
    assert "did you mean 'imp/sst2'?" in refused(capsys, *command, "--only", "imp/sst")
    assert "must be NAME=FOLDER" in refused(capsys, *command, "--model-folder", "bert")
    assert "--budget applies only with --speed: omit it" in refused(capsys, *command, "--budget", "2")
    assert "is not a folder" in refused(capsys, *command, "--model-folder", "bert=/nowhere")
    assert "unknown model of tiny in --model-folder 'bert'" in refused(
        capsys, *command, "--model-folder", f"bert={tmp_path}"
    )
    assert "does not exist" in refused(capsys, "sweep", str(tmp_path / "missing.yaml"))
    assert sweep("--small") == 0
    assert "holds the sweep of tiny, its small preset, not tiny: choose another --out" in refused(
        capsys, *command
    )


def test_a_model_may_come_from_a_local_folder(
    bert: Path, file: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(file.read_text().replace(str(bert), "some/bert"))
    command = ["sweep", str(file), "--data", str(data), "--out", str(tmp_path / "sweep"), "--dry-run"]
    assert app.main([*command, "--model-folder", f"some/bert={bert}"]) == 0
    assert f"--model {bert}" in capsys.readouterr().out
    # So may a teacher.
    file.write_text(file.read_text().replace("{label: IMP,", "{label: IMP, teacher: some/teacher,"))
    assert app.main([*command, "--model-folder", f"some/teacher={bert}"]) == 0
    assert f"--teacher {bert}" in capsys.readouterr().out
