"""``optimize``: the fastest form that holds a bound, on texts that its search has not seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import sparsebert
from sparsebert import plan, results
from sparsebert.bench import judged_texts
from sparsebert.cli import app
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.quality.held_out import HeldOut
from sparsebert.quality.measures import Quality
from sparsebert.tasks.models import load_as_saved
from sparsebert.tasks.texts import text_batches
from sparsebert.workflows import form_choice, form_search, pruned_forms
from sparsebert.workflows.form_search import SPARSITIES, FormSearch, Journal
from sparsebert.workflows.pruned_forms import Shape
from tests.cli.conftest import tokenizer  # noqa: F401  (a fixture)
from tests.cli.tiny import refused
from tests.quality.tiny import made_up, model, texts, written

DENSE = {"dense fp32": 0.4, "dense bf16": 0.2, "dense int8": 0.1}
# Written into a weight by a healing that is made up.
HEALED = 7.0
QUICK: dict[str, Any] = {"batch": 4, "budget": 0.0}


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests run at the same time."""
    monkeypatch.setattr(pruned_forms, "usable_cores", lambda: 1)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> str:  # noqa: F811
    return model(tmp_path_factory.mktemp("models") / "dense", tokenizer)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], list[str]]:
    """Let forms take made-up seconds; sparse ones half a second unless they are named."""

    def install(seconds: dict[str, float]) -> list[str]:
        names: list[str] = []

        def seconds_of(name: str) -> float:
            names.append(name)
            return {**DENSE, **seconds}.get(name, 0.5)

        fake = made_up(seconds_of)
        monkeypatch.setattr(form_search, "time_backends", fake)
        monkeypatch.setattr(form_choice, "time_backends", fake)
        return names

    return install


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Let models keep 1 less a loss for each percent of sparsity, and less by another in int8.

    They are pruned by magnitude, which is quick.
    """

    def install(loss: float, loss_of_int8: float = 0.0) -> None:
        def quality_of(self: Any, head: Any, encoder: Callable[[Any], Any]) -> Quality:
            base = encoder.__closure__[0].cell_contents  # type: ignore[attr-defined]
            layers = [each for each in base.modules() if isinstance(each, SparseLinear)]
            weights = [each.weight for each in layers] or [
                each.weight for each in base.encoder.modules() if isinstance(each, torch.nn.Linear)
            ]
            zeros = sum(int((weight == 0).sum()) for weight in weights)
            sparsity = zeros / sum(weight.numel() for weight in weights)
            low = loss_of_int8 if any(each.precision == "int8" for each in layers) else 0.0
            value = 1 - loss * round(100 * sparsity) - low
            return Quality(value, value, value)

        def quick(model: Any, method: str, *, sparsity: float, granularity: str, **options: Any) -> Any:
            ticket = sparsebert.prune(model, sparsity=sparsity, granularity=granularity)
            ticket.apply_(model)
            return ticket

        monkeypatch.setattr(HeldOut, "quality_of", quality_of)
        monkeypatch.setattr(pruned_forms, "prune_", quick)

    return install


def row_of(found: Any, name: str) -> dict[str, Any]:
    return next(row for row in found.records if row["form"] == name)


def test_the_fastest_form_that_holds_is_chosen(dense: str, timed: Any, kept: Any) -> None:
    """1 % less for 10 % sparsity: 45 % is the most for .955."""
    timed({"element 45% fp32": 0.05})
    kept(0.001)
    found = sparsebert.optimize(dense, texts(), keep=0.955, granularities=["element"], **QUICK)
    assert found.chosen == "element 45% fp32"
    assert found.ticket.sparsity == pytest.approx(0.45, abs=0.01)
    row = row_of(found, found.chosen)
    assert row["chosen"]
    assert row["speedup"] == pytest.approx(8)
    assert row["verdict"]["keep"] >= 0.955
    assert "45% fp32 keeps 0.9550" in found.note
    assert "8.00x of it from sparsity alone" in found.note


@pytest.mark.parametrize(("loss", "most"), [(0.001, "45%"), (0.002, "20%"), (0.0005, "90%")])
def test_the_search_of_a_granularity_begins_where_the_one_before_it_ended(
    loss: float, most: str, dense: str, timed: Any, kept: Any
) -> None:
    timed({})
    kept(loss)
    steps: list[str] = []
    options = {"keep": 0.955, "precisions": ["fp32"], "on_step": steps.append, **QUICK}
    found = sparsebert.optimize(dense, texts(), granularities=["4x2", "4x1"], **options)
    assert {f"4x2 {most} fp32", f"4x1 {most} fp32"} <= {row["form"] for row in found.records}
    judged = [step for step in steps if step.startswith("judging 4x1") and step.endswith("masked")]
    assert len(judged) == 2


def test_a_granularity_that_holds_at_more_than_the_one_before_it_is_searched_to_its_end(
    dense: str, timed: Any, kept: Any, monkeypatch: Any
) -> None:
    timed({})
    kept(0.001)
    prune = pruned_forms.prune_

    def lossy(model: Any, method: str, *, sparsity: float, granularity: str, **options: Any) -> Any:
        """Prune twice as much as is asked for in columns of four."""
        share = min(0.99, 2 * sparsity) if granularity == "4x1" else sparsity
        return prune(model, method, sparsity=share, granularity=granularity, **options)

    monkeypatch.setattr(pruned_forms, "prune_", lossy)
    options = {"keep": 0.955, "precisions": ["fp32"], **QUICK}
    found = sparsebert.optimize(dense, texts(), granularities=["4x1", "element"], **options)
    assert {"4x1 20% fp32", "element 45% fp32"} <= {row["form"] for row in found.records}


def test_sparsity_and_precision_are_reported_apart(dense: str, timed: Any, kept: Any) -> None:
    timed({"element 45% int8": 0.08})
    kept(0.001)
    found = sparsebert.optimize(dense, texts(), keep=0.955, granularities=["element"], **QUICK)
    row = row_of(found, "element 45% int8")
    assert (row["speedup"], row["sparsity_gain"]) == (pytest.approx(5), pytest.approx(1.25))
    assert row_of(found, "dense int8")["sparsity_gain"] == 1.0


def test_a_bound_that_no_sparse_form_holds_gives_the_best_dense_form(
    dense: str, timed: Any, kept: Any, tmp_path: Path
) -> None:
    timed({})
    kept(0.01)
    out = tmp_path / "out"
    found = sparsebert.optimize(dense, texts(), keep=0.95, out=out, granularities=["element"], **QUICK)
    assert found.chosen == "dense int8"
    assert found.note.startswith("no sparse form keeps 0.95 and is faster: the result is dense int8")
    loaded = load_as_saved(str(out))
    assert plan(loaded).tolerance == "int8"


def test_a_bound_that_int8_breaks_gives_bf16(dense: str, timed: Any, kept: Any, monkeypatch: Any) -> None:
    timed({})
    kept(0.01, 0.02)
    # Tiny layers are faster in bf16, whatever the tolerance.
    monkeypatch.setattr(form_search, "in_engine", _dense_of_int8)
    monkeypatch.setattr(form_choice, "in_engine", _dense_of_int8)
    found = sparsebert.optimize(dense, texts(), keep=0.99, granularities=[], **QUICK)
    assert found.chosen == "dense bf16"
    assert not row_of(found, "dense int8")["holds"]


def _dense_of_int8(model: Any, ticket: Any, precision: str, judged: Any) -> Any:
    format = {"int8": "vector_int8"}.get(precision, "dense")
    return sparsebert.sparsify_(model, ticket, tolerance=precision, format=format, fuse=False)


def test_a_sparse_form_that_is_not_faster_is_reported_and_not_chosen(
    dense: str, timed: Any, kept: Any
) -> None:
    timed({f"element {sparsity:.0%} int8": 0.099 for sparsity in SPARSITIES})
    kept(0.0)
    found = sparsebert.optimize(dense, texts(), keep=0.95, granularities=["element"], **QUICK)
    assert found.chosen == "dense int8"
    assert row_of(found, "element 95% int8")["sparsity_gain"] == pytest.approx(1.01, abs=0.01)


def test_a_form_that_fails_the_verdict_gives_way_to_the_next(
    dense: str, timed: Any, kept: Any, monkeypatch: Any
) -> None:
    timed({})
    kept(0.001)
    names: list[str] = []
    judge = HeldOut.quality_of

    def strict(self: Any, head: Any, encoder: Any) -> Quality:
        if names[-1].startswith("judging dense int8 on texts"):
            return Quality(0.5, 0.5, 0.5)
        return judge(self, head, encoder)

    monkeypatch.setattr(HeldOut, "quality_of", strict)
    options = {"keep": 0.955, "granularities": [], "on_step": names.append, **QUICK}
    found = sparsebert.optimize(dense, texts(), **options)
    assert found.chosen == "dense bf16"
    assert row_of(found, "dense int8")["verdict"]["keep"] == 0.5
    assert row_of(found, "dense fp32")["verdict"] is None


def test_healing_holds_the_bound_at_a_higher_sparsity(
    dense: str, timed: Any, kept: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Healing gives back a third of the loss: the bound holds at 65 % instead of 45 %."""
    timed({"element 65% healed fp32": 0.04, "element 45% fp32": 0.05})
    kept(0.001)
    judge = HeldOut.quality_of
    healed: list[Any] = []

    class Healing:
        def record(self) -> dict[str, Any]:
            return {"minutes": 1}

    def heal(model: Any, texts: Any, **options: Any) -> Healing:
        assert options["minutes"] == 2
        embedding = model.base_model.embeddings.word_embeddings.weight
        with torch.no_grad():
            embedding[0, 0] = HEALED
        healed.append(options["ticket"].sparsity)
        return Healing()

    def quality_of(self: Any, head: Any, encoder: Any) -> Quality:
        quality = judge(self, head, encoder).value
        base = encoder.__closure__[0].cell_contents
        if base.embeddings.word_embeddings.weight[0, 0] == HEALED:
            quality = (1 + 2 * quality) / 3
        return Quality(quality, quality, quality)

    monkeypatch.setattr(pruned_forms, "heal_", heal)
    monkeypatch.setattr(HeldOut, "quality_of", quality_of)
    out = tmp_path / "out"
    options = {"keep": 0.955, "precisions": ["fp32"], "granularities": ["element"], "heal_minutes": 2}
    found = sparsebert.optimize(dense, texts(220), out=out, **options, **QUICK)
    assert found.chosen == "element 65% healed fp32"
    assert healed == sorted(set(healed), key=healed.index)  # each once
    assert found.ticket.metadata["history"][-1]["operation"] == "heal"
    assert load_as_saved(str(out)).embeddings.word_embeddings.weight[0, 0] == HEALED
    assert not (tmp_path / "out.search").exists()


def test_the_verdict_is_given_on_other_texts(dense: str, timed: Any, monkeypatch: Any) -> None:
    timed({})
    seen: dict[str, set[str]] = {}
    prepare = judged_texts.prepare_judged_texts

    def remember(*args: Any, **options: Any) -> Any:
        judged = prepare(*args, **options)
        for part in ("search", "verdict"):
            batches = getattr(judged, part).batches
            seen[part] = {str(ids[ids != 0].tolist()) for batch in batches for ids in batch["input_ids"]}
        calibration = [ids for batch in judged.calibration for ids in batch["input_ids"]]
        seen["calibration"] = {str(ids[ids != 0].tolist()) for ids in calibration}
        return judged

    monkeypatch.setattr(judged_texts, "prepare_judged_texts", remember)
    sparsebert.optimize(dense, texts(), keep=0.9, granularities=[], **QUICK)
    assert not seen["search"] & seen["verdict"]
    assert not (seen["search"] | seen["verdict"]) & seen["calibration"]


def test_a_killed_search_goes_on_with_what_it_measured(
    dense: str, timed: Any, kept: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    names = timed({"element 45% fp32": 0.05})
    kept(0.001)
    out = tmp_path / "out"
    options = {"keep": 0.955, "out": out, "granularities": ["element"], **QUICK}
    candidate = FormSearch._candidate

    def killed(self: Any, shape: Shape, precision: str) -> Any:
        if shape.granularity and precision == "bf16":
            raise KeyboardInterrupt
        return candidate(self, shape, precision)

    with monkeypatch.context() as patch:
        patch.setattr(FormSearch, "_candidate", killed)
        with pytest.raises(KeyboardInterrupt):
            sparsebert.optimize(dense, texts(), **options)
    assert not out.exists()
    assert (tmp_path / "out.search").exists()
    names.clear()
    steps: list[str] = []
    found = sparsebert.optimize(dense, texts(), on_step=steps.append, **options)
    assert found.chosen == "element 45% fp32"
    assert "timing element 45% bf16" in steps
    assert "timing element 45% fp32" not in steps
    assert not any(step.endswith("masked") for step in steps)
    assert not (tmp_path / "out.search").exists()
    assert results.read(out / "optimize.jsonl") == found.records


def test_a_killed_search_reads_the_models_that_it_pruned(
    dense: str, timed: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    timed({})
    options = {"keep": 0.9, "out": tmp_path / "out", "granularities": ["element"], **QUICK}
    pruned: list[float] = []
    prune = pruned_forms.prune_

    def counted(*args: Any, **options: Any) -> Any:
        pruned.append(options["sparsity"])
        return prune(*args, **options)

    def killed(self: Any, shape: Shape, precision: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(pruned_forms, "prune_", counted)
    with monkeypatch.context() as patch:
        patch.setattr(FormSearch, "base", killed)
        patch.setattr(FormSearch, "dense", lambda self, precision: None)
        with pytest.raises(KeyboardInterrupt):
            sparsebert.optimize(dense, texts(), **options)
    assert pruned
    before = list(pruned)
    sparsebert.optimize(dense, texts(), **options)
    assert not set(pruned[len(before) :]) & set(before)
    assert len(pruned) == len(set(pruned))


def test_a_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "out.search"
    Journal(folder, {"weights": "a"}).add(1, "key")
    assert Journal(folder, {"weights": "a"}).get("key") == 1
    with pytest.raises(ValueError, match="belongs to a search with another model, texts or options"):
        Journal(folder, {"weights": "b"})


@pytest.mark.parametrize(
    "cls",
    [
        "BertModel",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
    ],
)
def test_a_written_folder_loads_as_any_other(cls: str, tmp_path: Path, tokenizer: Any, timed: Any) -> None:  # noqa: F811
    timed({f"element {sparsity:.0%} fp32": 0.01 for sparsity in SPARSITIES})
    name = model(tmp_path / "dense", tokenizer, cls)
    out = tmp_path / "out"
    options = {"keep": 0.8, "precisions": ["fp32"], "granularities": ["element"], **QUICK}
    found = sparsebert.optimize(name, texts(), out=out, **options)
    assert found.chosen.startswith("element")
    loaded = load_as_saved(str(out)).eval()
    assert type(loaded).__name__ == cls
    assert plan(loaded).layers
    batch = text_batches(texts()[:4], tokenizer)[0]
    with torch.inference_mode():
        written_result, result = loaded(**batch), found.model.eval()(**batch)
    for field in result:
        real = batch["attention_mask"].bool()
        ours, theirs = result[field], written_result[field]
        if ours.shape[:2] == real.shape:
            ours, theirs = ours[real], theirs[real]
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_the_command_says_what_it_tried(
    dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], timed: Any
) -> None:
    timed({})
    arguments = [
        "optimize",
        dense,
        "--texts",
        written(tmp_path / "texts.txt"),
        "--out",
        str(tmp_path / "out"),
    ]
    arguments += ["--granularities", "none", "--batch", "4", "--json", str(tmp_path / "records.jsonl")]
    assert app.main(arguments) == 0
    out = capsys.readouterr().out
    assert "dense int8 *" in out
    assert f"wrote {tmp_path / 'out'}: no sparse form keeps 0.99" in out
    rows = results.read(tmp_path / "records.jsonl", "optimize")
    # One search, whose resources stand in one record.
    assert [row["resources"] is not None for row in rows] == [row["chosen"] for row in rows]
    assert all(row["fingerprints"].keys() == {"model", "tokenizer", "texts"} for row in rows)
    assert app.main(["report", str(tmp_path / "records.jsonl")]) == 0
    assert "Search of the fastest form" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "99"], "--keep must be from 0 to 1, got 99; did you mean 0.99?"),
        (["--keep", "0"], "keep must be above 0 and at most 1, got 0"),
        (["--precisions", "fp8"], "unknown tolerance 'fp8'"),
        (["--granularities", "sideways"], "granularity"),
        (["--method", "guess"], "one-shot method"),
        (["--budget", "-1"], "--budget must be at least 0"),
        (["--heal-minutes", "-1"], "--heal-minutes must be at least 0"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = written(tmp_path / "texts.txt"), str(tmp_path / "out")
    assert message in refused(capsys, "optimize", dense, "--texts", file, "--out", out, *arguments)
    assert not Path(out).exists()


def test_healing_needs_texts_of_its_own(dense: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="healing needs 100 texts beside those that judge, got 48"):
        sparsebert.optimize(dense, texts(), heal_minutes=1, granularities=[], **QUICK)


def test_labels_judge_by_the_tasks_metric(tmp_path: Path, tokenizer: Any, timed: Any) -> None:  # noqa: F811
    """A classifier keeps its own answers: dense fp32 keeps all, and other forms what is sure."""
    timed({})
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    name = model(
        tmp_path / "model", tokenizer, "BertForSequenceClassification", initializer_range=0.5, **names
    )
    classify = load_as_saved(name).eval()
    batch = tokenizer(texts(), padding=True, return_tensors="pt")
    classes = classify(**batch).logits.argmax(-1).tolist()
    rows = [f"{text}\t{('no', 'yes')[each]}" for text, each in zip(texts(), classes, strict=True)]
    (tmp_path / "dev.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    arguments = ["optimize", name, "--texts", written(tmp_path / "texts.txt"), "--batch", "4"]
    arguments += ["--validation-file", str(tmp_path / "dev.tsv"), "--granularities", "none"]
    arguments += ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "records.jsonl")]
    assert app.main(arguments) == 0
    records = {row["form"]: row for row in results.read(tmp_path / "records.jsonl")}
    row = records["dense fp32"]
    assert (row["measure"], row["labels"], row["quality"]["keep"]) == ("accuracy", True, 1.0)
    assert row["judged"] == {"search": 48, "verdict": 48}
    assert load_as_saved(str(tmp_path / "out")).config.id2label == names["id2label"]


def test_a_folder_that_exists_is_not_replaced(
    dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "texts.txt")
    line = refused(capsys, "optimize", dense, "--texts", file, "--out", str(tmp_path))
    assert f"output folder {tmp_path} already exists" in line
