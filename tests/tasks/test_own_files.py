"""Tables of one's own as a task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsebert.tasks import Example, load_files

Write = Callable[..., Path]


def test_any_number_of_classes_in_the_order_of_the_alphabet(write: Write) -> None:
    train = write("train.csv", "label,text", "red,a", "blue,b", "green,c", "red,d")
    validation = write("dev.csv", "text,label", "e,green", "f,blue")
    data = load_files(train, validation, columns=["text"], label="label")
    assert data.task.labels == ("blue", "green", "red")
    assert data.task.metrics == ("accuracy", "macro_f1")
    assert data.train == [
        Example(("a",), 2),
        Example(("b",), 0),
        Example(("c",), 1),
        Example(("d",), 2),
    ]
    assert data.validation == {"validation": [Example(("e",), 1), Example(("f",), 0)]}
    assert data.source["train"].startswith("train.csv (sha256:")
    assert set(data.source) == {"train", "validation"}


def test_labels_that_are_numbers_are_in_their_order(write: Write) -> None:
    train = write("train.tsv", "text\tstars", "a\t10", "b\t9", "c\t1")
    assert load_files(train, train, columns=["text"], label="stars").task.labels == ("1", "9", "10")


def test_pairs_and_scores_from_json_lines(write: Write) -> None:
    rows = [{"a": "x", "b": "y", "score": 3}, {"a": "z", "b": "w", "score": -0.5}]
    train = write("train.jsonl", *map(json.dumps, rows))
    data = load_files(train, train, columns=["a", "b"], label="score", regression=True)
    assert (data.task.kind, data.task.num_labels, data.task.labels) == ("regression", 1, ())
    assert data.train == [Example(("x", "y"), 3.0), Example(("z", "w"), -0.5)]


def test_a_label_that_training_has_not_is_named_by_file_and_line(write: Write) -> None:
    train = write("train.csv", "text,label", "a,yes", "b,no")
    validation = write("dev.csv", "text,label", "a,yes", "b,maybe")
    with pytest.raises(ValueError, match=r"dev\.csv:3: label of own must be one of no, yes, got 'maybe'"):
        load_files(train, validation, columns=["text"], label="label")


def test_a_trained_model_s_labels_need_no_training_file(write: Write) -> None:
    validation = write("dev.csv", "text,label", "a,yes", "b,no")
    data = load_files(None, validation, columns=["text"], label="label", labels=["yes", "no"])
    assert (data.task.labels, list(data.train)) == (("yes", "no"), [])
    assert data.validation == {"validation": [Example(("a",), 0), Example(("b",), 1)]}
    with pytest.raises(ValueError, match="labels are missing"):
        load_files(None, validation, columns=["text"], label="label")


def test_a_changed_file_is_another_source(write: Write) -> None:
    train = write("train.csv", "text,label", "a,yes", "b,no")
    before = load_files(train, train, columns=["text"], label="label").source
    write("train.csv", "text,label", "a,yes", "b,no", "c,no")
    assert load_files(train, train, columns=["text"], label="label").source != before


def test_scores_that_are_no_numbers_are_named_by_file_and_line(write: Write) -> None:
    train = write("train.csv", "text,label", "a,1", "b,high")
    with pytest.raises(ValueError, match=r"train\.csv:3: label must be a finite number, got 'high'$"):
        load_files(train, train, columns=["text"], label="label", regression=True)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (["text,label"], "no examples"),
        (["text,label", "a,yes", "b,yes"], "all 2 examples have the label yes"),
        (["text,class", "a,yes"], "no column 'label'; the columns are text, class"),
    ],
)
def test_data_that_nothing_can_be_learnt_from_is_refused(
    write: Write, rows: list[str], complaint: str
) -> None:
    train = write("train.csv", *rows)
    with pytest.raises(ValueError, match=rf"train\.csv.*{complaint}"):
        load_files(train, train, columns=["text"], label="label")


def test_three_text_columns_are_too_many(write: Write) -> None:
    train = write("train.csv", "a,b,c,label")
    with pytest.raises(ValueError, match="text columns must be one or two, got 3"):
        load_files(train, train, columns=["a", "b", "c"], label="label")


def test_a_missing_file_is_named(write: Write, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        load_files(tmp_path / "none.csv", write("dev.csv"), columns=["text"], label="label")
