"""The arena: quality and speed of every form, never one without the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from sparsebert import prune, results, sparsify_
from sparsebert.bench import arena
from sparsebert.bench.environment import detect
from sparsebert.bench.judged_texts import prepare_judged_texts
from sparsebert.bench.providers import BACKENDS
from sparsebert.bench.runner import Settings
from sparsebert.cli import app
from sparsebert.tasks.models import load_as_saved
from tests.cli.conftest import tokenizer  # noqa: F401  (a fixture)
from tests.cli.tiny import refused
from tests.quality.tiny import made_up, model, texts, written

SECONDS = {"eager": 0.4, "bf16": 0.5, "dense fp32": 0.3, "dense bf16": 0.2, "dense int8": 0.1}


@pytest.fixture(autouse=True)
def _made_up_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "time_backends", made_up(lambda name: SECONDS.get(name, 0.25)))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> str:  # noqa: F811
    return model(tmp_path_factory.mktemp("models") / "dense", tokenizer)


def run(dense: str, baselines: list[str], **options: Any) -> dict[str, dict[str, Any]]:
    judged = prepare_judged_texts(dense, texts(), batch=4)
    rows = arena.run(judged, baselines, detect(), Settings(budget=0), **options)
    return {row["form"]: row for row in rows}


def test_every_form_has_quality_and_speed(dense: str) -> None:
    rows = run(dense, ["eager", "bf16"])
    assert list(rows) == ["eager", "bf16", "dense fp32", "dense bf16", "dense int8"]
    for row in rows.values():
        assert row["kind"] == "arena"
        assert 0.9 < row["quality"]["low"] <= row["quality"]["keep"] <= 1 + 1e-9
        assert (row["measure"], row["judged"], row["rounds"]) == ("cosine", 24, 3)
        assert row["ratio"].keys() == {"eager", "bf16"}
    assert rows["eager"]["quality"]["keep"] == pytest.approx(1)
    assert rows["dense int8"]["ratio"]["eager"]["median"] == pytest.approx(4)
    batches = rows["eager"]["workload"]["batches"]
    assert rows["eager"]["latency_ms"]["median"] == pytest.approx(400 / batches)
    assert rows["eager"]["samples_per_s"] == pytest.approx(4 * batches / 0.4)
    assert json.loads(json.dumps(list(rows.values()))) == list(rows.values())


def test_the_front_holds_the_forms_that_none_beats() -> None:
    forms = {
        "slow": (1.0, 3.0),
        "good": (1.0, 2.0),
        "quick": (0.9, 1.0),
        "bad": (0.8, 1.5),
        "same": (0.9, 1.0),
    }
    assert arena.pareto_front(forms) == {"good", "quick", "same"}


def test_rounding_errors_are_not_quality(dense: str) -> None:
    rows = run(dense, ["eager"])
    assert not rows["eager"]["front"]  # dense fp32 is as good, and faster
    assert rows["dense int8"]["front"]


def test_a_form_that_fails_is_said(dense: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, pruned: Any, consume: bool = False) -> Any:
        raise RuntimeError("a library's error\nin two lines")

    monkeypatch.setattr(BACKENDS["bf16"], "build", refuse)
    rows = run(dense, ["eager", "bf16"], missing={"openvino": "not installed"})
    assert "bf16" not in rows
    expected = {"openvino": "not installed", "bf16": "a library's error in two lines"}
    assert all(row["left_out"] == expected for row in rows.values())


def test_tickets_and_folders_take_part(dense: str, tmp_path: Path) -> None:
    pruned = load_as_saved(dense)
    ticket = prune(pruned, sparsity=0.5)
    ticket.save(tmp_path / "half.safetensors")
    sparsify_(pruned, ticket).save_pretrained(tmp_path / "folder")
    rows = run(dense, ["eager"], also=[tmp_path / "half.safetensors", tmp_path / "folder"])
    assert not rows["eager"]["left_out"]
    assert rows["folder"]["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert rows["folder"]["quality"]["keep"] == pytest.approx(rows["half fp32"]["quality"]["keep"], abs=1e-5)
    assert rows["half fp32"]["quality"]["keep"] < 0.999


def test_a_folder_of_dense_weights_runs_by_the_ticket_beside_them(dense: str, tmp_path: Path) -> None:
    ticket = prune(load_as_saved(dense), sparsity=0.5)
    ticket.save(tmp_path / "half.safetensors")
    folder = tmp_path / "pruned"
    ticket.apply_(load_as_saved(dense)).save_pretrained(folder)
    ticket.save(folder / "ticket.safetensors")
    rows = run(dense, ["eager"], also=[tmp_path / "half.safetensors", folder])
    assert not rows["eager"]["left_out"]
    # Plans are timed: the two may compute some layers in different precisions.
    for precision, rounding in (("fp32", 1e-5), ("bf16", 1e-2), ("int8", 3e-2)):
        ours, by_ticket = rows[f"pruned {precision}"], rows[f"half {precision}"]
        assert ours["sparsity"] == by_ticket["sparsity"] == pytest.approx(0.5, abs=1e-3)
        assert ours["quality"]["keep"] == pytest.approx(by_ticket["quality"]["keep"], abs=rounding)


def test_timed_batches_are_the_users_lengths(dense: str) -> None:
    judged = prepare_judged_texts(dense, texts(), batch=4)
    lengths = judged.workload.lengths
    assert len(lengths) == 4 * len(judged.timed)
    assert judged.tokens == sum(lengths[:4])
    assert max(lengths) > 2 * min(lengths)
    assert all(list(batch) == ["input_ids", "attention_mask"] for batch in judged.timed)


def test_a_sparse_model_is_refused(dense: str, tmp_path: Path) -> None:
    pruned = load_as_saved(dense)
    sparsify_(pruned, prune(pruned, sparsity=0.5)).save_pretrained(tmp_path / "sparse")
    for file in Path(dense).glob("*token*"):
        (tmp_path / "sparse" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="sparse is sparse already: pass the dense model"):
        prepare_judged_texts(str(tmp_path / "sparse"), texts())


def test_the_command_prints_draws_and_records(
    dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, picture, records = written(tmp_path / "texts.txt"), tmp_path / "arena.png", tmp_path / "arena.jsonl"
    arguments = ["arena", dense, "--texts", file, "--vs", "eager", "--batch", "4"]
    assert app.main([*arguments, "--plot", str(picture), "--json", str(records)]) == 0
    out = capsys.readouterr().out
    assert "dense int8" in out
    assert "cosine" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert {row["kind"] for row in results.read(records)} == {"arena"}
    assert app.main(["report", str(records)]) == 0
    assert "Quality and speed" in capsys.readouterr().out


def test_labels_judge_by_the_tasks_metric(tmp_path: Path, tokenizer: Any, capsys: Any) -> None:  # noqa: F811
    """A classifier is right where the labels are its own answers."""
    from transformers import pipeline

    name = model(
        tmp_path / "model",
        tokenizer,
        "BertForSequenceClassification",
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
        initializer_range=0.5,
    )
    classify = pipeline("text-classification", model=name, device="cpu")
    rows = [f"{text}\t{answer['label']}" for text, answer in zip(texts(), classify(texts()), strict=True)]
    assert 5 < sum(row.endswith("yes") for row in rows) < 91
    (tmp_path / "dev.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    records = tmp_path / "arena.jsonl"
    arguments = ["arena", name, "--texts", written(tmp_path / "texts.txt"), "--vs", "eager", "--batch", "4"]
    arguments += ["--validation-file", str(tmp_path / "dev.tsv"), "--json", str(records)]
    assert app.main(arguments) == 0
    assert "kept" in capsys.readouterr().out
    by_form = {row["form"]: row for row in results.read(records)}
    assert by_form["eager"]["measure"] == "accuracy"
    assert by_form["eager"]["labels"]
    assert by_form["eager"]["quality"]["value"] == pytest.approx(1)
    assert by_form["dense fp32"]["quality"]["keep"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vs", "nothing"], "baseline in --vs"),
        (["--also", "missing"], "--also: missing does not exist"),
        (["--budget", "-1"], "--budget must be at least 0"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--label-map", "a=b"], "--label-map applies only with --task"),
        (["--task", "wikitext-2"], "has no labels to judge by"),
        (["--plot", "arena.txt"], "--plot"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "texts.txt")
    data = []
    if "wikitext-2" in arguments:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "wiki.train.raw").write_text("the film\n")
        (tmp_path / "data" / "wiki.valid.raw").write_text("the film\n")
        data = ["--data", str(tmp_path / "data")]
    assert message in refused(capsys, "arena", dense, "--texts", file, "--vs", "eager", *data, *arguments)


def test_too_few_texts_are_refused(dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "texts.txt", count=20)
    line = refused(capsys, "arena", dense, "--texts", file, "--vs", "eager")
    assert "at least 64 different texts are needed" in line
