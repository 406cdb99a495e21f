"""Tasks from the hub: what is asked for, what is made of it, and one line where it cannot be had."""

from __future__ import annotations

from typing import Any

import pytest

from sparsebert.tasks import Example, Question, Tagged, find_task, load


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], Any]:
    """Stands for the hub, by dataset, configuration and split; what is missing raises as the library does."""
    import datasets

    rows: dict[tuple[str, ...], Any] = {}

    def load_dataset(*names: str, split: str, revision: str | None = None) -> Any:
        assert (revision == "refs/convert/parquet") == names[0].endswith("conll2003")
        if (*names, split) not in rows:
            raise ConnectionError(f"Couldn't reach {names[0]}\non the Hub")
        return rows[(*names, split)]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return rows


def dataset(rows: dict[str, list[Any]], labels: list[str] | None = None) -> Any:
    import datasets

    made = datasets.Dataset.from_dict(rows)
    return made.cast_column("label", datasets.ClassLabel(names=labels)) if labels else made


def test_glue_is_asked_for_by_name_and_split(hub: dict[tuple[str, ...], Any]) -> None:
    names = ["entailment", "neutral", "contradiction"]
    rows = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [2, 0], "idx": [0, 1]}
    for split in ("train", "validation_matched", "validation_mismatched"):
        hub[("nyu-mll/glue", "mnli", split)] = dataset(rows, names)
    data = load("mnli")
    assert data.train == [Example(("a", "c"), 2), Example(("b", "d"), 0)]
    assert list(data.validation) == ["validation_matched", "validation_mismatched"]
    assert data.source["train"].startswith("nyu-mll/glue/mnli on the hub, train (")


def test_another_label_order_there_is_refused(hub: dict[tuple[str, ...], Any]) -> None:
    rows = {"question": ["a", "b"], "sentence": ["c", "d"], "label": [0, 1]}
    hub[("nyu-mll/glue", "qnli", "validation")] = dataset(rows, ["not_entailment", "entailment"])
    with pytest.raises(
        ValueError,
        match=r"labels must be entailment, not_entailment for qnli, got \['not_entailment', 'entailment'\]",
    ):
        load("qnli", train=False)


def test_scores_questions_and_text(hub: dict[tuple[str, ...], Any]) -> None:
    hub[("nyu-mll/glue", "stsb", "validation")] = dataset(
        {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [5.0, 0.25]}
    )
    hub[("rajpurkar/squad", "validation")] = dataset(
        {
            "id": ["1"],
            "question": ["who"],
            "context": ["the cat"],
            "answers": [{"text": ["cat"], "answer_start": [4]}],
        }
    )
    hub[("Salesforce/wikitext", "wikitext-2-raw-v1", "validation")] = dataset({"text": ["", " a cat "]})
    assert load("stsb", train=False).validation["validation"] == [
        Example(("a", "c"), 5.0),
        Example(("b", "d"), 0.25),
    ]
    assert load("squad", train=False).validation["validation"] == [
        Question("1", "who", "the cat", (("cat", 4),))
    ]
    assert load("wikitext-2", train=False).validation["validation"] == [" a cat "]


def test_questions_without_an_answer(hub: dict[tuple[str, ...], Any]) -> None:
    none: dict[str, list[Any]] = {"text": [], "answer_start": []}
    rows = {"id": ["1"], "question": ["who"], "context": ["the cat"], "answers": [none]}
    hub[("rajpurkar/squad_v2", "validation")] = dataset(rows)
    assert load("squad2", train=False).validation["validation"] == [Question("1", "who", "the cat", ())]
    hub[("rajpurkar/squad", "validation")] = dataset(rows)
    with pytest.raises(ValueError, match=r"question 1 has no answer; only SQuAD 2\.0"):
        load("squad", train=False)


def test_words_with_tags(hub: dict[tuple[str, ...], Any]) -> None:
    """From the branch of Parquet files; a text without words is left out."""
    import datasets

    labels = list(find_task("conll2003").labels)
    made = dataset({"tokens": [["the", "cat"], []], "ner_tags": [[0, 1], []]})
    key = ("eriktks/conll2003", "validation")

    def named(names: list[str]) -> Any:
        return made.cast_column("ner_tags", datasets.Sequence(datasets.ClassLabel(names=names)))

    hub[key] = named(labels)
    assert load("conll2003", train=False).validation["validation"] == [Tagged(("the", "cat"), (0, 1))]
    hub[key] = named(labels[::-1])
    with pytest.raises(ValueError, match=r"labels must be O, B-PER, .* for conll2003, got"):
        load("conll2003", train=False)


def test_labels_that_are_not_public_are_refused(hub: dict[tuple[str, ...], Any]) -> None:
    rows = {"sentence": ["a", "b"], "label": [1, -1]}
    hub[("nyu-mll/glue", "sst2", "validation")] = dataset(rows, ["negative", "positive"])
    with pytest.raises(ValueError, match="validation, row 1: label of sst2 must be one of 0, 1, got '-1'"):
        load("sst2", train=False)


def test_a_dataset_without_the_columns_is_refused(hub: dict[tuple[str, ...], Any]) -> None:
    hub[("nyu-mll/glue", "sst2", "validation")] = dataset({"text": ["a"]})
    with pytest.raises(ValueError, match="no column 'sentence'; the columns are text"):
        load("sst2", train=False)


@pytest.mark.usefixtures("hub")
def test_without_a_network_one_line_asks_for_a_folder() -> None:
    with pytest.raises(
        ValueError, match=r"^cannot load rte from the hub \(Couldn't reach nyu-mll/glue\); pass a folder"
    ):
        load("rte")
