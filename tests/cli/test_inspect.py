"""``sparsebert inspect``: tickets by path, in the terminal, as a page, as records and as files."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from sparsebert import Ticket, results
from sparsebert.cli import app
from sparsebert.workflows.ticket_sources import labelled_tickets, named_sources
from tests import decoders
from tests.cli.tiny import QUICK, refused

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tickets(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Path:
    """Files of two seeds, of another model, of another project and of none."""
    folder = tmp_path_factory.mktemp("tickets")
    prune = ["prune", "--method", "random", "--sparsity", "0.5"]
    for command in (
        [*prune, "--model", str(bert), "--seeds", "1,2", "--output", str(folder / "random.safetensors")],
        [*prune, "--model", str(bert), "--pooler", "--output", str(folder / "pooler.safetensors")],
        [*prune, "--model", "bert-tiny", "--output", str(folder / "other.safetensors")],
        [
            "convert",
            str(folder / "random-seed-1.safetensors"),
            str(folder / "mask.pt"),
            "--to",
            "bert-tickets",
        ],
        [
            *("convert", str(folder / "random-seed-1.safetensors"), str(folder / "smp.npy"), "--to", "smp"),
            *("--model", str(bert)),
        ],
    ):
        assert app.main(command) == 0
    gpt2 = decoders.saved(folder / "gpt2", decoders.gpt2())
    assert app.main([*prune, "--model", str(gpt2), "--output", str(folder / "gpt2.safetensors")]) == 0
    (folder / "text.txt").write_text("no ticket")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def here(tickets: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tickets)
    return tickets


ONE, TWO = "random-seed-1.safetensors", "random-seed-2.safetensors"


class TestOutput:
    def test_one_ticket_in_the_terminal(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert app.main(["inspect", ONE]) == 0
        out = capsys.readouterr().out
        for title in ("Density by layer and matrix", "What the masks leave empty", "Density by head"):
            assert f"{title}: random-seed-1" in out

    def test_seeds_are_compared(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert app.main(["inspect", ONE, f"b={TWO}", "--show", "survivors,overlap"]) == 0
        out = capsys.readouterr().out
        assert "Density by head over 2 tickets (random, element, 50% sparse)" in out
        assert "Tickets: random-seed-1, b." in out
        assert "Overlap of tickets" in out
        assert "Density by layer" not in out

    def test_matrices_of_one_ticket_alone_are_said(
        self, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert app.main(["inspect", ONE, "pooler.safetensors"]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "Compared on the matrices that all tickets have (12): pooler also has pooler.dense." in out

    def test_records_make_the_same_page_later(self, here: Path, tmp_path: Path) -> None:
        pytest.importorskip("jinja2")
        pytest.importorskip("matplotlib")
        now, later, records = (tmp_path / name for name in ("now.html", "later.html", "r.jsonl"))
        assert app.main(["inspect", ONE, TWO, "--html", str(now), "--json", str(records)]) == 0
        assert [row["kind"] for row in results.read(records)] == [
            *["inspect"] * 2,
            "inspect_survivors",
            "inspect_overlap",
        ]
        assert app.main(["report", str(records), "--html", str(later)]) == 0
        pages = [page.read_text().partition("<main ")[2] for page in (now, later)]
        assert pages[0] == pages[1]
        assert pages[0].count('role="img"') == 5

    def test_a_page_links_to_the_files_beside_it(self, here: Path, tmp_path: Path) -> None:
        pytest.importorskip("jinja2")
        pytest.importorskip("matplotlib")
        page, out = tmp_path / "page.html", tmp_path / "the files"
        assert app.main(["inspect", ONE, "--show", "heads", "--html", str(page), "--out", str(out)]) == 0
        linked = {
            tmp_path / unquote(href) for href in re.findall('href="(the%20files/[^"]+)"', page.read_text())
        }
        assert linked == set(out.iterdir())
        assert {file.suffix for file in linked} == {".png", ".svg", ".csv"}

    def test_files(self, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pytest.importorskip("matplotlib")
        out = tmp_path / "out"
        assert app.main(["inspect", ONE, TWO, "--show", "overlap", "--out", str(out)]) == 0
        assert capsys.readouterr().out.endswith(f"wrote 3 files to {out}\n")
        names = ["overlap-of-tickets.png", "overlap-of-tickets.svg", "overlap.csv"]
        assert sorted(file.name for file in out.iterdir()) == names


class TestSources:
    def test_a_run_and_a_folder_of_runs(
        self, tmp_path: Path, bert: Path, data: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("accelerate")
        pytest.importorskip("sklearn")
        pytest.importorskip("jinja2")
        train = ["train", "--method", "random", "--sparsity", "0.5", "--model", str(bert), "--task", "sst2"]
        runs, page = tmp_path / "runs", tmp_path / "page.html"
        assert app.main([*train, "--data", str(data), *QUICK, "--seeds", "2,10", "--out", str(runs)]) == 0
        records = tmp_path / "r.jsonl"
        assert app.main(["inspect", str(runs), "--json", str(records)]) == 0
        rows = results.read(records, "inspect")
        assert [(row["name"], row["task"], row["seed"]) for row in rows] == [
            ("runs/seed-2", "sst2", 2),
            ("runs/seed-10", "sst2", 10),
        ]
        assert app.main(["inspect", str(runs / "seed-2"), "--sparsity", "0.5"]) == 0
        (runs / "seed-10" / "ticket.safetensors").write_bytes(b"damaged")
        capsys.readouterr()
        assert app.main(["report", str(runs), "--html", str(page)]) == 0
        text = page.read_text()
        assert f"Density by layer and matrix: {runs}/seed-2" in text
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"without the ticket of {runs}/seed-10: ")
        line = refused(capsys, "inspect", str(runs), "--sparsity", "0.9")
        assert "has no round of sparsity 0.9" in line

    def test_tickets_of_other_projects_take_heads_and_shapes_from_the_model(
        self, here: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        records = tmp_path / "r.jsonl"
        asked = ["mask.pt", "smp.npy", ONE, "--model", str(bert), "--json", str(records)]
        assert app.main(["inspect", *asked]) == 0
        assert all(row["heads"]["heads"] == 2 for row in results.read(records, "inspect"))
        (overlap,) = results.read(records, "inspect_overlap")
        assert overlap["jaccard"] == [[1.0] * 3] * 3

    def test_a_decoder_has_matrices_and_no_heads(
        self, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Its model is no obstacle, and no compaction is promised."""
        assert app.main(["inspect", "gpt2.safetensors", "--model", "gpt2"]) == 0
        out = capsys.readouterr().out
        assert "attn.c_attn" in out
        assert "In per cent." in out
        assert "Compaction" not in out
        assert "Density by head" not in out

    def test_a_file_in_the_folder_of_a_run_keeps_its_own_method(
        self, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = tmp_path / "run"
        run.mkdir()
        (run / "run.json").write_text("{}")
        for name in ("ticket.safetensors", "mine.safetensors"):
            Ticket.load(ONE).save(run / name)
        record = {"method": "imp", "task": "sst2", "seed": 7}
        monkeypatch.setattr("sparsebert.lottery.run_folder.RunFolder.rounds_done", lambda self: [record])
        named = named_sources([str(run / "ticket.safetensors"), str(run / "mine.safetensors")])
        labels = [label for label, _ in labelled_tickets(named)]
        assert [(label.method, label.task, label.seed) for label in labels] == [
            ("imp", "sst2", 7),
            ("random", None, 1),
        ]

    def test_files_of_one_name_are_named_by_their_paths(
        self, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Ticket.load(TWO).save(tmp_path / ONE)
        records = tmp_path / "r.jsonl"
        assert app.main(["inspect", ONE, str(tmp_path / ONE), "--json", str(records)]) == 0
        assert [row["name"] for row in results.read(records, "inspect")] == [ONE, str(tmp_path / ONE)]


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["text.txt"], "text.txt is not a usable ticket file"),
            (["nowhere"], "ticket nowhere does not exist: name a ticket file or the folder of a run"),
            (["x=nowhere"], "ticket nowhere does not exist"),
            (["empty"], "folder empty holds neither a run nor a ticket"),
            (
                [ONE, "other.safetensors"],
                "tickets of different models: encoder.layer.0.attention.self.query is 20x20 in",
            ),
            ([ONE, ONE], f"ticket {ONE} is named twice: omit one"),
            ([f"a={ONE}", f"a={TWO}"], "two tickets are named a: use different names"),
            ([ONE, "--sparsity", "0.5"], "--sparsity selects a round of a run, and no ticket is the folder"),
            ([ONE, "--show", "overlap"], "--show overlap needs at least two tickets, got 1"),
            ([ONE, "--show", "survivors"], "--show survivors needs at least two tickets, got 1"),
            (
                ["mask.pt", "--show", "heads"],
                "--show heads: mask does not record the number of attention heads",
            ),
            (
                [ONE, "--show", "all"],
                "--show must be of density, heads, survivors, overlap, masks, got 'all'",
            ),
            (["gpt2.safetensors", "--show", "heads"], "gpt2 has no attention matrix of a BERT-like model"),
            (["smp.npy"], "smp.npy holds an array without matrix names or shapes; pass the model"),
            ([ONE, "--model", "bert-nowhere"], "bert-nowhere"),
            ([ONE, "--sparsity", "90"], "--sparsity must be from 0 to 1, got 90; did you mean 0.9?"),
            ([ONE, "--out", "text.txt"], "--out text.txt: "),
            ([ONE, "--json", "text.txt"], "--json: cannot append records to text.txt"),
            ([ONE, "--html", "no/page.html"], "--html: cannot write no/page.html"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_bad_input_is_one_line(
        self, here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
    ) -> None:
        before = {file: file.stat().st_mtime_ns for file in here.rglob("*")}
        assert message in refused(capsys, "inspect", *arguments)
        assert {file: file.stat().st_mtime_ns for file in here.rglob("*")} == before
