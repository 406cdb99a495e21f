"""``sparsebert transfer``: the matrix of tickets against tasks, made of runs that are done once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from sparsebert import results
from sparsebert.cli import app
from sparsebert.interop.bert_tickets import to_bert_tickets
from sparsebert.pruning import prune
from sparsebert.tasks import encoding, find_task
from sparsebert.tasks.verdict import summary, verdict
from sparsebert.tickets.ticket import Ticket
from tests.cli.tiny import PRUNABLE, QUICK, refused, save

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def model(bert: Path) -> Any:
    return transformers.AutoModel.from_pretrained(bert)


@pytest.fixture(scope="module")
def half(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ticket that prunes half of the weights, pooler left alone."""
    path = tmp_path_factory.mktemp("tickets") / "half.safetensors"
    prune(model, "magnitude", sparsity=0.5).save(path)
    return path


@pytest.fixture
def matrix(there: list[str], tmp_path: Path) -> list[str]:
    return ["transfer", *there, "--out", str(tmp_path / "matrix"), *QUICK]


def cells(file: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["source"], row["task"]): row for row in results.read(file, "transfer")}


class TestMatrix:
    def test_every_ticket_meets_every_task(
        self, capsys: pytest.CaptureFixture[str], matrix: list[str], half: Path, tmp_path: Path
    ) -> None:
        rows_file = tmp_path / "results.jsonl"
        asked = ["--ticket", f"sst2={half}", "--tasks", "sst2,cola=4", "--seeds", "1,2", "--random"]
        assert app.main([*matrix, *asked, "--json", str(rows_file)]) == 0
        found = cells(rows_file)
        assert list(found) == [
            (source, task) for task in ("sst2", "cola") for source in ("dense", "sst2", "random")
        ]
        for (source, task), row in found.items():
            logs = [tmp_path / "matrix" / source / task / f"seed-{seed}" / "log.jsonl" for seed in (1, 2)]
            rounds = [results.read(log, "round")[0] for log in logs]
            assert {row["steps"] for row in rounds} == {6 if task == "sst2" else 4}
            assert row["metric"] == ("accuracy" if task == "sst2" else "mcc")
            assert row["values"] == [each["metrics"][row["metric"]] for each in rounds]
            assert (row["mean"], row["std"]) == (summary(row["values"]).mean, summary(row["values"]).std)
            assert row["sparsity"] == (0 if source == "dense" else 0.5)
            assert {each["kept"] for each in rounds} == {int(PRUNABLE * row["density"])}
        for source in ("sst2", "random"):
            row, dense = found[source, "cola"], found["dense", "cola"]
            assert row["verdict"] == verdict(dense["values"], row["values"], row["chance"]).verdict
            assert (row["dense_mean"], row["dense_std"]) == (dense["mean"], dense["std"])
        out = capsys.readouterr().out
        assert "cola (mcc)" in out
        row = found["sst2", "sst2"]
        assert f"{row['mean']:.4f} ± {row['std']:.4f} {row['verdict']}" in out

    def test_a_task_is_encoded_once_and_every_run_is_as_if_alone(
        self, matrix: list[str], there: list[str], half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counted: list[str] = []

        def encode(examples: Any, task: Any, *arguments: Any) -> Any:
            counted.append(find_task(task).name)
            return plain(examples, task, *arguments)

        plain = encoding.encode
        monkeypatch.setattr(encoding, "encode", encode)
        asked = ["--ticket", f"a={half}", "--tasks", "sst2,cola=4", "--seeds", "1,2"]
        assert app.main([*matrix, *asked]) == 0
        assert counted == ["sst2", "sst2", "cola", "cola"]  # validation and training examples
        alone = ["--method", "ticket", "--ticket", str(half), "--task", "sst2", "--seed", "2"]
        assert app.main(["train", *there, *alone, *QUICK, "--out", str(tmp_path / "alone")]) == 0
        logs = [tmp_path / folder / "log.jsonl" for folder in ("alone", "matrix/a/sst2/seed-2")]
        one, other = (results.read(log, "round")[0] for log in logs)
        assert (one["metrics"], one["loss"]) == (other["metrics"], other["loss"])

    def test_the_ticket_is_trained_as_it_is_and_the_random_one_is_another_for_each_seed(
        self, matrix: list[str], half: Path, tmp_path: Path
    ) -> None:
        asked = ["--ticket", f"a={half}", "--tasks", "sst2", "--seeds", "1,2", "--random"]
        assert app.main([*matrix, *asked]) == 0

        def trained(source: str, seed: int) -> Ticket:
            return Ticket.load(tmp_path / "matrix" / source / "sst2" / f"seed-{seed}" / "ticket.safetensors")

        assert trained("a", 1) == trained("a", 2) == Ticket.load(half)
        assert trained("random", 1) != trained("random", 2)
        assert trained("random", 1).sparsity == 0.5

    def test_what_is_finished_is_not_done_again(
        self,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        matrix: list[str],
        half: Path,
        tmp_path: Path,
    ) -> None:
        from sparsebert.lottery import loop

        asked = [*matrix, "--ticket", f"a={half}", "--tasks", "sst2,cola"]
        assert app.main(asked) == 0
        first = capsys.readouterr().out
        shutil.rmtree(tmp_path / "matrix" / "a" / "cola")
        trained = []
        train_round = loop.train_round

        def counted(*arguments: Any, **options: Any) -> Any:
            trained.append(options["folder"])
            return train_round(*arguments, **options)

        monkeypatch.setattr(loop, "train_round", counted)
        assert app.main(asked) == 0
        assert [folder.relative_to(tmp_path / "matrix").parts[:2] for folder in trained] == [("a", "cola")]
        second = capsys.readouterr().out
        assert "3 of 4 runs were already finished" in second
        assert first.split("┏")[1].split("┘")[0] == second.split("┏")[1].split("┘")[0]

    def test_a_finished_matrix_needs_no_data(self, matrix: list[str], half: Path, bert: Path) -> None:
        asked = [*matrix, "--ticket", f"a={half}", "--tasks", "sst2"]
        assert app.main(asked) == 0
        asked[asked.index("--data") + 1] = "/nowhere/data"
        assert app.main(asked) == 0

    def test_dense_runs_of_another_command_are_used(
        self, there: list[str], asked: list[str], matrix: list[str], half: Path, tmp_path: Path
    ) -> None:
        dense = tmp_path / "dense"
        train = ["train", "--method", "random", "--sparsity", "0.5", "--seeds", "1,2", *asked]
        assert app.main([*train, "--dense", str(dense / "sst2")]) == 0
        logs = sorted(dense.glob("sst2/seed-*/log.jsonl"))
        before = [log.read_bytes() for log in logs]
        transfer = ["--ticket", f"a={half}", "--tasks", "sst2", "--seeds", "1,2", "--dense", str(dense)]
        assert app.main([*matrix, *transfer]) == 0
        assert [log.read_bytes() for log in logs] == before
        assert len(logs) == 2
        assert not (tmp_path / "matrix" / "dense").exists()


class TestTickets:
    def test_runs_by_seed_bring_a_ticket_for_each_seed_and_the_round_that_is_asked_for(
        self, matrix: list[str], asked: list[str], tmp_path: Path
    ) -> None:
        imp = ["--sparsity", "0.7", "--step", "0.35", "--seeds", "1,2", "--steps", "3"]
        assert app.main(["train", *asked, *imp]) == 0
        runs = tmp_path / "run"
        transfer = ["--ticket", f"imp={runs}", "--tasks", "cola", "--seeds", "1,2", "--sparsity", "0.35"]
        assert app.main([*matrix, *transfer]) == 0
        for seed in (1, 2):
            source = runs / f"seed-{seed}" / "round-01" / "ticket.safetensors"
            target = tmp_path / "matrix" / "imp" / "cola" / f"seed-{seed}" / "ticket.safetensors"
            assert Ticket.load(target) == Ticket.load(source)

    def test_a_language_model_s_ticket_goes_elsewhere(
        self, matrix: list[str], there: list[str], tokenizer: Any, tmp_path: Path, bert: Path
    ) -> None:
        run = ["--task", "wikitext-2", "--max-length", "16", "--out", str(tmp_path / "mlm"), *QUICK]
        assert app.main(["train", *there, *run, "--method", "one-shot", "--sparsity", "0.5"]) == 0
        assert app.main([*matrix, "--ticket", str(tmp_path / "mlm"), "--tasks", "sst2"]) == 0
        assert (tmp_path / "matrix" / "mlm" / "sst2" / "seed-0" / "ticket.safetensors").exists()

    def test_a_mask_of_the_pooler_is_left_out_where_there_is_none(
        self, matrix: list[str], model: Any, tmp_path: Path
    ) -> None:
        """BERT-Tickets' masks have one; its transfer to SQuAD and masked language modelling has no use for
        it."""
        ticket = prune(model, "magnitude", sparsity=0.5, include_pooler=True)
        to_bert_tickets(ticket, tmp_path / "mask.pt")
        asked = ["--ticket", f"chen={tmp_path / 'mask.pt'}", "--tasks", "sst2,wikitext-2", "--random"]
        assert app.main([*matrix, *asked, "--max-length", "16"]) == 0
        trained = {
            (source, task): Ticket.load(tmp_path / f"matrix/{source}/{task}/seed-0/ticket.safetensors")
            for source in ("chen", "random")
            for task in ("sst2", "wikitext-2")
        }
        assert trained["chen", "sst2"] == ticket
        assert trained["chen", "wikitext-2"].masks.keys() == ticket.masks.keys() - {"pooler.dense"}
        assert "pooler.dense" in trained["random", "sst2"].masks
        assert "pooler.dense" not in trained["random", "wikitext-2"].masks

    def test_another_sparsity_is_told(
        self, capsys: pytest.CaptureFixture[str], matrix: list[str], half: Path, model: Any, tmp_path: Path
    ) -> None:
        prune(model, "random", sparsity=0.7).save(tmp_path / "other.safetensors")
        asked = ["--ticket", str(half), "--ticket", str(tmp_path / "other.safetensors"), "--tasks", "sst2"]
        assert app.main([*matrix, *asked, "--random"]) == 0
        out = capsys.readouterr().out
        assert "the tickets differ in sparsity" in out
        assert "half 50.00%, other 70.00%" in out
        assert {folder.name for folder in (tmp_path / "matrix").iterdir()} == {
            *("dense", "half", "other", "random-1", "random-2")
        }


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (["--tasks", "sst2,colla"], "did you mean 'cola'"),
            (["--tasks", "sst2,mrpc"], "does not hold mrpc"),
            (["--tasks", "sst2=many"], "--tasks must be tasks with optional steps"),
            (
                ["--tasks", "sst2", "--ticket", "dense={half}"],
                "'dense' cannot be the name of a ticket's source",
            ),
            (["--tasks", "sst2", "--ticket", "{half}"], "two tickets have the name half"),
            (["--tasks", "sst2", "--sparsity", "0.7"], "the sparsity of the ticket is 0.5000, not 0.7"),
            (["--tasks", "sst2", "--ticket", "b=/nowhere/ticket"], "/nowhere/ticket"),
            (
                ["--tasks", "sst2", "--ticket", "b={folder}"],
                "holds neither a run nor a ticket: name a ticket file or the folder of a run",
            ),
            (["--tasks", "sst2", "--model", "/nowhere/bert"], "/nowhere/bert"),
            (["--tasks", "sst2", "--steps", "0"], "steps must be at least 1"),
            (
                ["--tasks", "sst2=3", "--warmup-steps", "3"],
                "warmup_steps must be below the 3 steps of a round, got 3",
            ),
            (["--tasks", "sst2", "--json", "/nowhere/at/all.jsonl"], "does not exist"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_bad_input_is_one_line_before_any_training(
        self,
        capsys: pytest.CaptureFixture[str],
        matrix: list[str],
        half: Path,
        tmp_path: Path,
        changes: list[str],
        message: str,
    ) -> None:
        changes = [each.format(half=half, folder=tmp_path) for each in changes]
        assert message in refused(capsys, *matrix, "--ticket", str(half), *changes)
        assert not list(tmp_path.glob("matrix/**/log.jsonl"))

    def test_a_ticket_of_another_model_is_named_by_its_first_mismatch(
        self,
        capsys: pytest.CaptureFixture[str],
        matrix: list[str],
        tokenizer: Any,
        half: Path,
        tmp_path: Path,
    ) -> None:
        other = save(tmp_path / "wider", tokenizer, intermediate_size=40)
        line = refused(capsys, *matrix, "--ticket", str(half), "--tasks", "sst2", "--model", str(other))
        assert "encoder.layer.0.intermediate.dense.weight is 30x20 in the ticket and 40x20" in line

    def test_a_seed_that_the_runs_lack(
        self, capsys: pytest.CaptureFixture[str], matrix: list[str], asked: list[str], tmp_path: Path
    ) -> None:
        assert app.main(["train", *asked, "--method", "random", "--sparsity", "0.5", "--seeds", "1,2"]) == 0
        capsys.readouterr()
        line = refused(
            capsys, *matrix, "--ticket", str(tmp_path / "run"), "--tasks", "sst2", "--seeds", "2,3"
        )
        assert "holds no run of seed 3; its seeds: 1, 2" in line

    def test_a_run_that_is_not_finished(
        self, capsys: pytest.CaptureFixture[str], matrix: list[str], asked: list[str], tmp_path: Path
    ) -> None:
        assert app.main(["train", *asked, "--method", "random", "--sparsity", "0.5"]) == 0
        log = tmp_path / "run" / "log.jsonl"
        log.write_text(log.read_text().splitlines()[0] + "\n")
        capsys.readouterr()
        line = refused(capsys, *matrix, "--ticket", str(tmp_path / "run"), "--tasks", "sst2")
        assert "is not finished" in line
