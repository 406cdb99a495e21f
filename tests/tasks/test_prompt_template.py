"""Texts in a template: the blank is always there, and only texts are cut."""

from __future__ import annotations

from typing import Any

import pytest

from sparsebert.tasks import Example, TextFormat, encode, find_task
from sparsebert.tasks.prompt_template import filled, require_template

REVIEW = "{0} the [MASK] ."


def test_one_text(tokenizer: Any) -> None:
    (row,) = [encode([Example(("a dog ran",), 1)], "sst2", tokenizer, TextFormat(template=REVIEW))[0]]
    assert row["input_ids"] == tokenizer("a dog ran the [MASK] .")["input_ids"]
    assert row["labels"] == 1


def test_two_texts_in_any_order_are_one_segment(tokenizer: Any) -> None:
    row = encode([Example(("a dog", "the cat"), 0)], "rte", tokenizer, TextFormat(template="{1} [MASK] {0}"))[
        0
    ]
    assert row["input_ids"] == tokenizer("the cat [MASK] a dog")["input_ids"]
    assert set(row["token_type_ids"]) == {0}


def test_what_is_too_long_loses_the_ends_of_its_texts_the_longest_first(tokenizer: Any) -> None:
    given = [("a dog", "the cat sat on the mat ."), ("a dog", "the cat")]
    long, short = filled("{0} [MASK] {1} .", given, tokenizer, 10)
    assert long == "a dog [MASK] the cat sat on ."
    assert short == "a dog [MASK] the cat ."
    assert len(tokenizer(long)["input_ids"]) == 10
    (shorter,) = filled("{0} [MASK] {1} .", given[:1], tokenizer, 6)
    assert shorter == "a [MASK] the ."


def test_a_mask_in_a_text_is_no_blank(tokenizer: Any) -> None:
    row = encode([Example(("a [MASK] ran",), 1)], "sst2", tokenizer, TextFormat(template=REVIEW))[0]
    assert row["input_ids"].count(tokenizer.mask_token_id) == 1


def test_a_length_without_room_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="max_length=5 leaves no room for text beside the template"):
        encode([Example(("a",), 1)], "sst2", tokenizer, TextFormat(5, REVIEW))
    assert len(encode([Example(("a",), 1)], "sst2", tokenizer, TextFormat(6, REVIEW))) == 1


@pytest.mark.parametrize(
    ("template", "task"),
    [
        ("{0} It was.", "sst2"),
        ("[MASK] {0} [MASK]", "sst2"),
        ("It was [MASK].", "sst2"),
        ("{0} {1} [MASK]", "sst2"),
        ("{0} [MASK]", "rte"),
        ("{0} {0} [MASK]", "rte"),
        ("{text} [MASK]", "sst2"),
    ],
)
def test_templates_without_a_blank_or_a_place_for_each_text(template: str, task: str) -> None:
    with pytest.raises(ValueError, match=r"one \[MASK\] and, once each, \{0\}"):
        require_template(template, find_task(task))


def test_a_span_is_read_at_every_token() -> None:
    with pytest.raises(ValueError, match="squad takes no template: it reads label words at every token"):
        require_template("{0} {1} [MASK]", find_task("squad"))
