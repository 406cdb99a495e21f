"""Words with tags from files: the columns of CoNLL and JSON lines, and what is wrong with bad ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsebert.tasks import Tagged, load, load_tags
from sparsebert.tasks.tag_files import read_tags
from tests.tasks.tagged import CONLL

ROWS = [{"tokens": ["the", "cat"], "tags": ["O", "B-PER"]}, {"tokens": ["ran"], "tags": ["O"]}]


def test_conll2003_by_its_usual_files(write: Callable[..., Path]) -> None:
    for name in ("train.txt", "valid.txt"):
        write(f"conll2003/{name}", *CONLL)
    data = load("conll2003", write("note", "").parent)
    labels = data.task.labels
    assert data.train == data.validation["validation"]
    first, second = data.train
    assert isinstance(first, Tagged)
    assert first.words == ("the", "cat", "sat")
    assert [labels[tag] for tag in first.tags] == ["O", "B-PER", "O"]
    assert isinstance(second, Tagged)
    assert [labels[tag] for tag in second.tags] == ["B-LOC", "I-LOC", "O"]


def test_columns_and_json_lines_say_the_same(write: Callable[..., Path]) -> None:
    columns = write("own.conll", "the x O", "cat\tx\tB-PER", "", "", "ran x O")
    lines = write("own.jsonl", *map(json.dumps, ROWS))
    assert [text[1:] for text in read_tags(columns)] == [text[1:] for text in read_tags(lines)]
    assert [text.line for text in read_tags(columns)] == [1, 5]


def test_the_labels_are_the_sorted_tags_of_the_training_file(write: Callable[..., Path]) -> None:
    file = write("own.jsonl", *map(json.dumps, ROWS))
    data = load_tags(file, file, name="own")
    assert data.task.labels == ("B-PER", "O")
    assert data.task.metrics == ("f1", "precision", "recall", "accuracy")
    assert data.train == [Tagged(("the", "cat"), (1, 0)), Tagged(("ran",), (1,))]
    assert data.source["train"].startswith("own.jsonl (sha256:")


def test_tags_without_entities_are_judged_by_accuracy(write: Callable[..., Path]) -> None:
    file = write("own.conll", "the DET", "cat NOUN")
    assert load_tags(file, None, name="own").task.metrics == ("accuracy",)


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("own.conll", ["the O", "cat"], r"own\.conll:2: a line must hold a word and, in the last column"),
        ("own.conll", [""], "no examples"),
        ("own.conll", ["the O", "cat O"], "all 1 examples have the label O"),
        ("own.jsonl", ['{"tokens": ["a"]}'], r"own\.jsonl:1: 'tags' must be a list of at least one text"),
        ("own.jsonl", ['{"tokens": [], "tags": []}'], "'tokens' must be a list of at least one text"),
        ("own.jsonl", ['{"tokens": ["a"], "tags": ["O", "O"]}'], "got 1 words and 2 tags"),
        ("own.jsonl", ['{"tokens": ["a", " "], "tags": ["O", "O"]}'], "word 2 is empty"),
        ("own.jsonl", ["[1"], r"own\.jsonl:1: not JSON"),
        ("own.jsonl", ["[1]"], "expected a JSON object, got list"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    write: Callable[..., Path], name: str, lines: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_tags(write(name, *lines), None, name="own")


def test_a_tag_outside_the_labels_is_refused(write: Callable[..., Path]) -> None:
    train, other = write("train.conll", "the O", "cat B-PER"), write("dev.conll", "", "cat B-LOC")
    with pytest.raises(ValueError, match=r"dev\.conll:2: tags must be among B-PER, O, got 'B-LOC'"):
        load_tags(train, other, name="own")
