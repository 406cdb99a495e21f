"""``sparsebert report``: what commands and runs have left on disk, back as tables, a page and records."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from sparsebert import results
from sparsebert.cli import app
from sparsebert.report.table import Table
from tests.cli.tiny import QUICK, refused

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, bert: Path, data: Path) -> Path:
    """Runs of two seeds in ``runs/half`` and dense ones in ``runs/dense``; ``results.jsonl`` of both
    and of their evaluation, a ticket, and the machine."""
    folder = tmp_path_factory.mktemp("work")
    there = ["--task", "sst2", "--data", str(data)]
    to = ["--json", str(folder / "results.jsonl")]
    runs = ["--seeds", "1,2", "--out", str(folder / "runs/half"), "--dense", str(folder / "runs/dense")]
    train = ["train", "--method", "random", "--sparsity", "0.5", "--model", str(bert), *there, *QUICK]
    for command in (
        [*train, *runs, *to],
        ["eval", "--model", str(folder / "runs/half"), *there, *to],
        ["prune", "--model", "bert-tiny", "--output", str(folder / "ticket.safetensors"), *to],
        ["env", *to],
    ):
        assert app.main(command) == 0
    return folder


@pytest.fixture
def here(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(work)
    return work


def titles(capsys: pytest.CaptureFixture[str], tmp_path: Path, *sources: str) -> list[str]:
    """Of the tables that are made of these."""
    file = tmp_path / "tables.jsonl"
    file.unlink(missing_ok=True)
    assert app.main(["report", *sources, "--json", str(file)]) == 0
    found = [row["title"] for row in results.read(file, "report")]
    assert all(title in capsys.readouterr().out for title in found[:1])
    return found


class TestWhatIsShown:
    def test_runs_and_the_speed_of_their_tickets_are_joined_in_a_front(
        self, here: Path, bert: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        speed = tmp_path / "speed.jsonl"
        bench = ["bench", "--model", str(bert), "--ticket", "runs/half/seed-1", "--json", str(speed)]
        assert app.main([*bench, "--seq", "8", "--budget", "0.1", "--no-memory"]) == 0
        capsys.readouterr()
        found = titles(capsys, tmp_path, "runs", str(speed))
        assert found[0] == f"Pareto front: Tickets of {bert.name} on sst2"
        assert "Pareto front" not in "".join(titles(capsys, tmp_path, "runs"))

    def test_all_that_a_file_of_results_holds(
        self, here: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        found = titles(capsys, tmp_path, "results.jsonl")
        assert [title.split(":")[0].split(" (")[0] for title in found][:6] == [
            "Rounds",
            "Over seeds",
            "Evaluated on sst2",
            "Evaluated on sst2, over seeds, accuracy",
            "Tickets pruned without training",
            "Resources of rounds",
        ]

    def test_runs_by_seed_are_summarised_and_judged_by_dense_ones_as_their_command_did(
        self, here: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        (given,) = results.read("results.jsonl", "seeds")
        assert app.main(["report", "runs/half", "runs/dense", "--json", str(tmp_path / "t")]) == 0
        _, judged, *_ = results.read(tmp_path / "t", "report")
        mine, dense = (dict(zip(judged["columns"], row, strict=True)) for row in judged["rows"])
        assert (mine["run"], dense["run"]) == ("runs/half", "runs/dense")
        assert (mine["mean"], mine["verdict"]) == (f"{given['mean']:.4f}", given["verdict"])
        assert mine["dense"].startswith(f"{given['dense_mean']:.4f}")
        assert dense["verdict"] == "-"

    def test_a_folder_of_folders_a_single_run_and_its_log(
        self, here: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert titles(capsys, tmp_path, "runs") == titles(capsys, tmp_path, "runs/half", "runs/dense")
        one = titles(capsys, tmp_path, "runs/half/seed-1")
        run = "tiny-bert on sst2, runs/half, random, element"
        assert one == [f"Rounds: {run}", f"Resources of rounds: {run}"]
        assert titles(capsys, tmp_path, "runs/half/seed-1/log.jsonl") == one

    def test_what_is_given_twice_counts_once(
        self, here: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        for sources in (["results.jsonl"], ["results.jsonl", "results.jsonl", "runs/half"]):
            assert app.main(["report", *sources, "--json", str(tmp_path / "t")]) == 0
        rows = results.read(tmp_path / "t")
        for start in ("Rounds", "Over seeds"):
            once, again = (row for row in rows if row["title"].startswith(start))
            assert once["rows"] == again["rows"]
            assert "runs/half" in again["title"]

    def test_seeds_are_in_the_order_of_their_numbers(
        self, capsys: pytest.CaptureFixture[str], work: Path, tmp_path: Path
    ) -> None:
        (row,) = results.read(work / "runs/half/seed-1/log.jsonl", "round")
        for seed in (10, 9):
            (tmp_path / f"r/seed-{seed}").mkdir(parents=True)
            results.append(tmp_path / f"r/seed-{seed}/log.jsonl", [row | {"seed": seed}])
        assert app.main(["report", str(tmp_path / "r"), "--json", str(tmp_path / "t")]) == 0
        table = Table.of_record(results.read(tmp_path / "t")[0])
        assert [row[table.columns.index("seed")] for row in table.rows] == ["9", "10"]

    def test_tables_that_were_written_as_records_come_back(
        self, here: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        first = titles(capsys, tmp_path, "results.jsonl")
        os.rename(tmp_path / "tables.jsonl", tmp_path / "earlier.jsonl")
        assert titles(capsys, tmp_path, str(tmp_path / "earlier.jsonl")) == first

    def test_records_that_no_table_knows_are_told(
        self, here: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        results.append(tmp_path / "mixed.jsonl", [*results.read("results.jsonl"), results.stamp("trial", {})])
        assert app.main(["report", str(tmp_path / "mixed.jsonl")]) == 0
        err = capsys.readouterr().err
        assert err == "skipped records that no table shows: kinds: 'trial' (1)\n"


class TestFiles:
    def test_a_page_and_markdown_are_written_instead_of_the_terminal(
        self, here: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        pytest.importorskip("jinja2")
        html, markdown = tmp_path / "page.html", tmp_path / "page.md"
        html.write_text("an earlier one")
        asked = ["report", "results.jsonl", "runs", "--html", str(html), "--markdown", str(markdown)]
        assert app.main(asked) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split(":")[0] for line in lines] == [f"wrote {html}", f"wrote {markdown}"]
        assert "<title>Results: results.jsonl, runs</title>" in html.read_text()
        assert "Density by layer and matrix: runs/half/seed-1" in markdown.read_text()
        assert markdown.read_text().startswith("# Results: results.jsonl, runs\n")
        assert sorted(file.name for file in tmp_path.iterdir()) == ["page.html", "page.md"]

    def test_a_dense_run_has_no_table_of_densities(
        self, here: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        markdown = tmp_path / "page.md"
        assert app.main(["report", "runs", "--markdown", str(markdown)]) == 0
        densities = [line for line in markdown.read_text().splitlines() if "Density by layer" in line]
        assert densities
        assert not any("dense/" in line for line in densities)
        assert capsys.readouterr().err == ""
        assert app.main(["report", "runs/dense", "--markdown", str(markdown)]) == 0
        assert "Density by layer" not in markdown.read_text()
        assert capsys.readouterr().err == (
            "without densities: the ticket of runs/dense/seed-1, runs/dense/seed-2 prunes nothing\n"
        )

    def test_pictures_and_tables_stand_beside_the_page_that_links_to_them(
        self, here: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        pytest.importorskip("jinja2")
        pytest.importorskip("matplotlib")
        html, figures, tables = (tmp_path / name for name in ("pages/page.html", "figures", "pages/csv"))
        html.parent.mkdir()
        folders = ["--figures", str(figures), "--csv", str(tables)]
        assert app.main(["report", "results.jsonl", "runs", "--html", str(html), *folders]) == 0
        files = {*figures.iterdir(), *tables.iterdir()}
        assert {file.suffix for file in files} == {".png", ".svg", ".csv"}
        linked = {
            (html.parent / unquote(href)).resolve()
            for href in re.findall(r'<a href="([^"#]+)"', html.read_text())
        }
        assert linked == {file.resolve() for file in files}
        pictures, numbers, page = capsys.readouterr().out.splitlines()
        assert pictures == f"wrote {len(list(figures.iterdir()))} files to {figures}"
        assert numbers == f"wrote {len(list(tables.iterdir()))} files to {tables}"
        assert page.startswith(f"wrote {html}: ")

    def test_a_table_as_csv_has_a_line_for_each_row(self, here: Path, tmp_path: Path) -> None:
        assert app.main(["report", "results.jsonl", "--csv", str(tmp_path / "new" / "folder")]) == 0
        for file in (tmp_path / "new" / "folder").iterdir():
            rows = list(csv.reader(file.open(encoding="utf-8")))
            assert len(rows) > 1
            assert len({len(row) for row in rows}) == 1

    def test_an_error_leaves_the_earlier_page(
        self, here: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from sparsebert.report.page import Report

        html = tmp_path / "page.html"
        html.write_text("an earlier one")
        monkeypatch.setattr(Report, "html", lambda self, *_: "\ud800")  # no text in UTF-8
        refused(capsys, "report", "results.jsonl", "--html", str(html))
        assert html.read_text() == "an earlier one"
        assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "Missing argument"),
            (["nowhere.jsonl"], "nowhere.jsonl does not exist"),
            (["results.jsonl", "--html", "no/page.html"], "--html: cannot write no/page.html: the folder no"),
            (["results.jsonl", "--csv", "results.jsonl"], "results.jsonl is a file; expected a folder"),
            (
                ["results.jsonl", "--figures", "results.jsonl/x"],
                "results.jsonl is a file; expected a folder",
            ),
            (["results.jsonl", "--markdown", "runs"], "--markdown: cannot write runs: it is a folder"),
            (["results.jsonl", "--json", "no/t.jsonl"], "--json: cannot write no/t.jsonl"),
            (["results.jsonl", "--markdown", "results.jsonl"], "would overwrite the input results.jsonl"),
            (["runs", "--json", "runs/half/seed-1/log.jsonl"], "would overwrite the input runs"),
            (
                ["results.jsonl", "--html", "p", "--markdown", "./p"],
                "--markdown p would overwrite the file of --html",
            ),
            (
                ["results.jsonl", "--json", "ticket.safetensors"],
                "--json: cannot append records to ticket.safetensors",
            ),
            (["ticket.safetensors"], "cannot read results from ticket.safetensors"),
            (["runs/half/seed-1/model"], "runs/half/seed-1/model holds no run (no log.jsonl in or below it)"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_bad_input_is_one_line(
        self, here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
    ) -> None:
        before = {file: file.read_bytes() for file in here.rglob("*.jsonl")}
        assert message in refused(capsys, "report", *arguments)
        assert {file: file.read_bytes() for file in here.rglob("*.jsonl")} == before
        assert not (here / "p").exists()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "holds no records"),
            ("not json\n", ":1 is not JSON"),
            ('{"a": 1}\n', ":1 is not a result record"),
            (
                '{"schema": 1, "kind": "trial"}\n{"schema": 1, "kind": "trial"}\n',
                "holds no records that a table can show: kinds: 'trial' (2)",
            ),
            (
                '{"schema": 1, "kind": "layer"}\n',
                "holds no records that a table can show: kinds: 'layer' (1)",
            ),
            ('{"schema": 1, "kind": "bench"}\n', "KeyError: 'workload'"),
            (
                '{"schema": 1, "kind": "run", "task": "sst2", "model": "tiny"}\n',
                "x.jsonl holds no records that a table can show: kinds: 'run'",
            ),
        ],
    )
    def test_a_file_without_results_is_named(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, message: str
    ) -> None:
        file = tmp_path / "x.jsonl"
        file.write_text(text)
        assert message in refused(capsys, "report", str(file))

    def test_what_is_no_folder_is_read_as_a_file(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "/dev/null holds no records" in refused(capsys, "report", "/dev/null")

    def test_a_run_without_a_finished_round(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text(json.dumps({"schema": 1}))
        assert "holds a run without a finished round" in refused(capsys, "report", str(tmp_path))

    def test_targets_are_refused_before_anything_is_read(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def read(*arguments: Any) -> Any:
            raise AssertionError("read")

        source = tmp_path / "x.jsonl"
        results.append(source, [results.stamp("goal", {})])
        monkeypatch.setattr(results, "read", read)
        assert "does not exist" in refused(
            capsys, "report", str(source), "--html", str(tmp_path / "no/p.html")
        )

    def test_a_page_without_jinja2_names_what_to_install(
        self, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import sys

        monkeypatch.setitem(sys.modules, "jinja2", None)
        assert "pip install 'sparsebert[report]'" in refused(capsys, "report", "results.jsonl", "--html", "p")
        assert app.main(["report", "results.jsonl"]) == 0
