"""``sparsebert prune``: tickets without training, of examples too, and from tickets of other projects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparsebert import results
from sparsebert.cli import app
from sparsebert.interop.bert_tickets import to_bert_tickets
from sparsebert.interop.smp import to_smp
from sparsebert.pruning import prune
from sparsebert.tickets.ticket import Ticket
from tests.cli.tiny import PRUNABLE, QUICK, refused
from tests.sparsify.models import WIDTH

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "ticket.safetensors"


@pytest.fixture
def asked(bert: Path, output: Path) -> list[str]:
    return ["prune", "--model", str(bert), "--sparsity", "0.5", "--output", str(output)]


class TestSnip:
    def test_it_draws_the_ticket_that_training_would(
        self, asked: list[str], there: list[str], output: Path, tmp_path: Path
    ) -> None:
        snip = ["--method", "snip", "--task", "sst2", "--batches", "3", "--seeds", "5"]
        assert app.main([*asked, *there, *snip, "--batch-size", "8"]) == 0
        run = ["--sparsity", "0.5", "--out", str(tmp_path / "run"), *QUICK]
        assert app.main(["train", *there, *snip, *run]) == 0
        ticket = Ticket.load(output)
        assert ticket == Ticket.load(tmp_path / "run" / "ticket.safetensors")
        assert (ticket.metadata["method"], ticket.sparsity) == ("snip", 0.5)

    def test_files_of_one_s_own_will_do(self, asked: list[str], output: Path, tmp_path: Path) -> None:
        table = tmp_path / "own.csv"
        table.write_text("text,label\nthe film is good,1\nthe plot is bad,0\n")
        assert app.main([*asked, "--method", "snip", "--train-file", str(table)]) == 0
        assert Ticket.load(output).sparsity == 0.5

    @pytest.mark.parametrize("method", ["snip", "sparsegpt"])
    def test_a_validation_file_which_nothing_reads_is_refused(
        self, method: str, capsys: pytest.CaptureFixture[str], asked: list[str], tmp_path: Path
    ) -> None:
        own = ["--method", method, "--validation-file", "dev.csv", "--output", str(tmp_path / "pruned")]
        for train in ([], ["--train-file", "train.csv"]):
            assert "--validation-file dev.csv does not apply" in refused(capsys, *asked, *own, *train)

    def test_a_collapsed_layer_is_a_warning_of_one_line(
        self, asked: list[str], there: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        snip = ["--method", "snip", "--task", "sst2", "--batches", "1", "--batch-size", "8"]
        assert app.main([*asked, *there, *snip, "--sparsity", "0.998"]) == 0
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "collapse" in line]
        assert line.startswith("sparsebert: warning: layer collapse: ")

    def test_without_examples_it_says_what_it_needs(
        self, capsys: pytest.CaptureFixture[str], asked: list[str], output: Path
    ) -> None:
        assert "needs examples: name a task" in refused(capsys, *asked, "--method", "snip")
        assert not output.exists()


class TestSeeds:
    def test_each_has_a_file_and_a_record_and_their_overlap_is_told(
        self, capsys: pytest.CaptureFixture[str], asked: list[str], tmp_path: Path
    ) -> None:
        rows_file = tmp_path / "results.jsonl"
        random = ["--method", "random", "--seeds", "1,2,3", "--json", str(rows_file)]
        assert app.main([*asked, *random]) == 0
        tickets = [Ticket.load(tmp_path / f"ticket-seed-{seed}.safetensors") for seed in (1, 2, 3)]
        rows = results.read(rows_file, "prune")
        assert [(row["seed"], row["ticket"]["sparsity"]) for row in rows] == [(1, 0.5), (2, 0.5), (3, 0.5)]
        (overlap,) = results.read(rows_file, "prune_seeds")
        assert overlap["overlaps"] == [
            tickets[0].overlap(tickets[1]),
            tickets[0].overlap(tickets[2]),
            tickets[1].overlap(tickets[2]),
        ]
        assert overlap["mean"] == pytest.approx(1 / 3, abs=0.05)  # of two random halves
        assert f"{overlap['mean']:.4f} ± {overlap['std']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["ours", "mask.pt", "mask.npy"])
def test_a_ticket_of_any_kind_is_pruned_further(
    asked: list[str], output: Path, bert: Path, tmp_path: Path, kind: str
) -> None:
    model = transformers.AutoModel.from_pretrained(bert)
    first = prune(model, "random", sparsity=0.2)
    path = tmp_path / kind
    writers: dict[str, Any] = {
        "ours": lambda: first.save(path),
        "mask.pt": lambda: to_bert_tickets(first, path),
        "mask.npy": lambda: to_smp(first, path, model),
    }
    writers[kind]()
    assert app.main([*asked, "--ticket", str(path)]) == 0
    ticket = Ticket.load(output)
    assert ticket & first == ticket
    assert sum(int(mask.sum()) for mask in ticket.masks.values()) == PRUNABLE // 2


def test_panels_and_the_sparsity_that_they_reach(
    asked: list[str], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main([*asked, "--granularity", "panel(6,2)", "--round-to", "4"]) == 0
    ticket = Ticket.load(output)
    for mask in ticket.masks.values():
        panels = [panel[0].sum() for panel in mask.split(6)]
        assert all(count % 4 == 0 or count == mask.shape[1] for count in panels)
    assert ticket.sparsity == ticket.metadata["sparsity_reached"] == pytest.approx(0.5, abs=0.005)
    assert f"{ticket.sparsity:.2%} sparse" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--method", "snp"], "did you mean 'snip'"),
        (["--task", "sst3"], "did you mean 'sst2'"),
        (["--sparsity", "1"], "sparsity must be a number in [0, 1)"),
        (["--sparsity", "50"], "did you mean 0.5"),
        (["--granularity", "7x7"], "blocks of 7x7 do not divide"),
        (["--granularity", "panel"], "'panel' needs block_size=(out, in)"),
        (
            ["--granularity", "panel(32,2)", "--round-to", "33"],
            "round_to must be a positive multiple",
        ),
        (["--round-to", "32"], "'element' takes no round_to; only 'panel' does"),
        (["--scope", "globl"], "did you mean 'global'"),
        (["--seeds", "one"], "whole numbers"),
        (["--seeds", "-1"], "seed must be"),
        (["--method", "snip", "--task", "sst2", "--batches", "0"], "must be at least 1"),
        (["--ticket", "/nowhere/ticket"], "/nowhere/ticket"),
        (["--model", "/nowhere/bert"], "/nowhere/bert"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_what_was_there_stays(
    capsys: pytest.CaptureFixture[str], asked: list[str], output: Path, changes: list[str], message: str
) -> None:
    output.write_text("before")
    assert message in refused(capsys, *asked, *changes)
    assert output.read_text() == "before"


class TestAnyModel:
    @pytest.fixture
    def mpnet(self, tmp_path: Path) -> str:
        config = transformers.MPNetConfig(**WIDTH)
        transformers.MPNetModel(config).save_pretrained(tmp_path / "mpnet")
        return str(tmp_path / "mpnet")

    def test_heads_and_filters(self, mpnet: str, output: Path) -> None:
        command = ["prune", "--model", mpnet, "--sparsity", "0.5", "--output", str(output)]
        assert app.main(command) == 0
        assert (len(Ticket.load(output).masks), Ticket.load(output).sparsity) == (12, 0.5)
        assert app.main([*command, "--granularity", "head"]) == 0
        assert len(Ticket.load(output).masks) == 8
        assert app.main([*command, "--filter", r"\.attn\.|pooler", "--granularity", "4x1"]) == 0
        assert len(Ticket.load(output).masks) == 9

    def test_an_expression_that_is_none(self, mpnet: str, output: Path, capsys: Any) -> None:
        command = ["prune", "--model", mpnet, "--output", str(output), "--filter"]
        assert app.main([*command, "("]) == 2
        assert "--filter must be a regular expression, got '('" in capsys.readouterr().err
        assert app.main([*command, "nothing"]) == 2
        assert "the filter picks none of the linear layers of MPNetModel" in capsys.readouterr().err
        assert not output.exists()
