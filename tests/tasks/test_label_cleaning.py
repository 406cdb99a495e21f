"""Labels as people write them: what is a class, what is missing, and which spellings are one class."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sparsebert.tasks import Example, TaskData, load_files
from sparsebert.tasks.label_cleaning import class_counts

Write = Callable[..., Path]
FORMATS = ("csv", "tsv", "jsonl", "json")


def table(write: Write, name: str, rows: Sequence[tuple[Any, Any]]) -> Path:
    """Write rows of text and label in the format of the name's ending."""
    if name.endswith(".csv"):
        lines = ["text,label", *(f'"{text}","{label}"' for text, label in rows)]
    elif name.endswith(".tsv"):
        lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in rows)]
    else:
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        if name.endswith(".json"):
            lines = ["[" + ",\n".join(lines) + "]"]
    return write(name, *lines)


def load(train: Path, validation: Path | None = None, **options: Any) -> TaskData:
    return load_files(train, validation or train, columns=["text"], label="label", **options)


def line_of(row: int, form: str) -> int:
    """Line of a row of :func:`table`, counted from 0."""
    return row + (2 if form in ("csv", "tsv") else 1)


@pytest.mark.parametrize("form", FORMATS)
class TestInEveryFormat:
    def test_blanks_around_a_label_are_not_part_of_it(self, write: Write, form: str) -> None:
        rows = [("a", "yes "), ("b", " no"), ("c", "yes"), ("d", "no\u00a0"), ("e", "\ufeffyes")]
        data = load(table(write, f"train.{form}", rows))
        assert data.task.labels == ("no", "yes")
        assert [example.label for example in data.train] == [1, 0, 1, 0, 1]

    @pytest.mark.parametrize("label", ["", "  ", "nan", "NaN", "NULL", "<NA>", "\\\\N"])
    def test_a_missing_label_is_refused_by_file_and_line(self, write: Write, form: str, label: str) -> None:
        path = table(write, f"train.{form}", [("a", "yes"), ("b", "no"), ("c", label.replace("\\\\", "\\"))])
        place = rf"train\.{form}:{line_of(2, form)}: nothing in column label"
        with pytest.raises(ValueError, match=rf"{place}.*--drop-empty"):
            load(path)

    @pytest.mark.parametrize("text", ["", "  ", "\u200b"])
    def test_a_missing_text_is_refused_by_file_and_line(self, write: Write, form: str, text: str) -> None:
        path = table(write, f"train.{form}", [("a", "yes"), (text, "no")])
        with pytest.raises(ValueError, match=rf"train\.{form}:{line_of(1, form)}: nothing in column text;"):
            load(path)

    def test_rows_without_text_or_label_can_be_dropped_and_are_counted(self, write: Write, form: str) -> None:
        train = table(write, f"train.{form}", [("a", "yes"), ("", "no"), ("b", " "), ("c", "no")])
        dev = table(write, f"dev.{form}", [("a", "yes"), ("b", "no"), ("", "")])
        data = load(train, dev, drop_empty=True)
        assert data.dropped == {"train": 2, "validation": 1}
        assert data.train == [Example(("a",), 1), Example(("c",), 0)]
        assert "without 2 empty rows" in data.source["train"]

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("yes", "Yes"),
            ("1", "1.0"),
            ("1", "01"),
            ("-1", "-1.00"),
            ("not entailment", "not_entailment"),
            ("not-entailment", "Not  Entailment"),
            ("caf\u00e9", "cafe\u0301"),
            ("\uff59\uff45\uff53", "yes"),
            ("straße", "STRASSE"),
            ("yes", "yes."),
            ("yes", "'yes'"),
            ("ye\u200bs", "yes"),
        ],
    )
    def test_two_spellings_of_a_class_are_refused_with_both_and_their_counts(
        self, write: Write, form: str, one: str, other: str
    ) -> None:
        path = table(write, f"train.{form}", [("a", one), ("b", "else"), ("c", one), ("d", other)])
        with pytest.raises(ValueError, match="look like one class") as refusal:
            load(path)
        message = str(refusal.value)
        assert f"{one!r} (2 rows of {path}, first in line {line_of(0, form)}" in message
        assert f"{other!r} (1 row of {path}, first in line {line_of(3, form)}" in message


def test_numbers_and_truth_values_of_json_are_spellings_too(write: Write) -> None:
    for labels in ((1, 1.0, 0), (True, "True", False), ("1", 1.0, 0)):
        with pytest.raises(ValueError, match="look like one class"):
            load(table(write, "train.jsonl", [("a", label) for label in labels]))
    data = load(table(write, "train.jsonl", [("a", 1), ("b", "1"), ("c", 0)]))
    assert data.task.labels == ("0", "1")


def test_a_null_label_of_json_is_missing(write: Write) -> None:
    path = table(write, "train.jsonl", [("a", "x"), ("b", "y"), ("c", None)])
    with pytest.raises(ValueError, match=r"train\.jsonl:3: nothing in column label;"):
        load(path)


def test_spellings_are_compared_between_the_files_too(write: Write) -> None:
    train = table(write, "train.csv", [("a", "yes"), ("b", "no"), ("c", "yes")])
    dev = table(write, "dev.csv", [("a", "no"), ("b", "Yes")])
    with pytest.raises(
        ValueError, match=r"'yes' \(2 rows of .*train\.csv, .*'Yes' \(1 row of .*dev\.csv, first"
    ):
        load(train, dev)


@pytest.mark.parametrize(
    "labels",
    [
        ("1", "10", "100"),
        ("1.1", "1.2"),
        ("-1", "+2", "0"),
        ("C", "C++", "C#"),
        ("+", "-"),
        ("1_1", "11"),
        ("none", "NA"),
    ],
)
def test_different_classes_stay_apart(write: Write, labels: tuple[str, ...]) -> None:
    data = load(table(write, "train.csv", [("a", label) for label in labels]))
    assert set(data.task.labels) == set(labels)


class TestListedClasses:
    def test_their_order_is_that_of_the_outputs(self, write: Write) -> None:
        path = table(write, "train.csv", [("a", "neg"), ("b", "pos"), ("c", "mid ")])
        data = load(path, labels=["pos", "mid", "neg"])
        assert data.task.labels == ("pos", "mid", "neg")
        assert [example.label for example in data.train] == [2, 0, 1]
        assert data.source["labels"] == "pos, mid, neg"

    def test_another_label_is_named_by_file_and_line(self, write: Write) -> None:
        path = table(write, "train.csv", [("a", "neg"), ("b", "pos"), ("c", "mid")])
        with pytest.raises(
            ValueError, match=r"train\.csv:4: label of own must be one of pos, neg, got 'mid'"
        ):
            load(path, labels=["pos", "neg"])

    def test_two_spellings_may_be_two_classes(self, write: Write) -> None:
        path = table(write, "train.csv", [("a", "a"), ("b", "A"), ("c", "null")])
        assert load(path, labels=["A", "a", "null"]).task.labels == ("A", "a", "null")

    def test_a_spelling_that_is_not_listed_is_refused_with_the_one_that_is(self, write: Write) -> None:
        path = table(write, "train.csv", [("a", "yes"), ("b", "no"), ("c", "No")])
        with pytest.raises(
            ValueError, match=r"'no' \(1 row of .*\) and 'No' \(1 row of .*first in line 4\) look"
        ):
            load(path, labels=["yes", "no"])

    def test_a_spelling_of_a_trained_model_s_label_is_refused_with_the_map(self, write: Write) -> None:
        path = table(write, "dev.csv", [("a", "yes"), ("b", "no")])
        with pytest.raises(ValueError, match=r"'YES' \(expected\) and 'yes' \(1 row of .*\(--label-map\)$"):
            load_files(None, path, columns=["text"], label="label", labels=["YES", "NO"])

    def test_a_class_without_examples_is_counted_as_such(self, write: Write) -> None:
        path = table(write, "train.csv", [("a", "yes"), ("b", "no")])
        (line, _) = class_counts(load(path, labels=["yes", "maybe", "no"]))
        assert line == "own, train: 2 examples: yes 1, maybe 0, no 1"

    @pytest.mark.parametrize("labels", [["yes", "yes "], ["yes", ""]])
    def test_a_list_with_an_empty_or_repeated_name_is_refused(self, write: Write, labels: list[str]) -> None:
        path = table(write, "train.csv", [("a", "yes"), ("b", "no")])
        with pytest.raises(ValueError, match="labels must be different and not empty"):
            load(path, labels=labels)


def test_scores_may_have_blanks_and_must_be_there(write: Write) -> None:
    path = table(write, "train.csv", [("a", " 1"), ("b", "1.0 "), ("c", "2")])
    assert [example.label for example in load(path, regression=True).train] == [1.0, 1.0, 2.0]
    path = table(write, "train.csv", [("a", "1"), ("b", ""), ("c", "2")])
    with pytest.raises(ValueError, match=r"train\.csv:3: nothing in column label;"):
        load(path, regression=True)
    assert load(path, regression=True, drop_empty=True).dropped == {"train": 1, "validation": 1}
    with pytest.raises(ValueError, match="labels of a regression are scores"):
        load(path, regression=True, labels=["1", "2"])


def test_the_classes_are_counted_for_each_file(write: Write) -> None:
    train = table(write, "train.csv", [("a", "yes"), ("b", "no"), ("c", "yes")])
    dev = table(write, "dev.csv", [("a", "yes"), ("b", "no")])
    assert class_counts(load(train, dev)) == [
        "own, train: 3 examples: no 1, yes 2",
        "own, validation: 2 examples: no 1, yes 1",
    ]
    assert class_counts(load(table(write, "s.csv", [("a", "1"), ("b", "2")]), regression=True)) == []


def test_of_many_classes_the_first_are_named(write: Write) -> None:
    path = table(write, "train.csv", [(f"text {number}", f"class {number:03}") for number in range(300)])
    (line, _) = class_counts(load(path))
    assert line.endswith("class 018 1, class 019 1, and 280 more")
    other = table(write, "dev.csv", [("a", "class 000"), ("b", "other")])
    with pytest.raises(ValueError, match=r"dev\.csv:3: .* class 019, and 280 more, got 'other'"):
        load(path, other)


def test_many_labels_are_compared_in_linear_time(write: Write) -> None:
    path = table(write, "train.csv", [("a", f"class {number}") for number in range(10_000)])
    assert len(load(path).task.labels) == 10_000


def test_nothing_remains_if_every_row_is_dropped(write: Write) -> None:
    path = table(write, "train.csv", [("a", ""), ("", "no")])
    with pytest.raises(ValueError, match=r"train\.csv: no examples"):
        load(path, drop_empty=True)
