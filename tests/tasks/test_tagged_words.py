"""Words with tags as token ids: the first piece of a word carries its tag, and each word gets one back."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsebert.tasks import Tagged, TextFormat, collate, encode, find_task
from sparsebert.tasks.evaluator import tags_of
from sparsebert.tasks.metrics import IGNORED, compute
from sparsebert.tasks.tagged_words import UNREAD, EncodedWords

CATS = Tagged(("the", "cats", "sat"), (0, 1, 0))


def encoded(tokenizer: Any, *examples: Tagged, length: int | None = None) -> EncodedWords:
    made = encode(examples, "conll2003", tokenizer, TextFormat(length))
    assert isinstance(made, EncodedWords)
    return made


def test_the_first_piece_of_a_word_carries_its_tag(tokenizer: Any) -> None:
    item = encoded(tokenizer, CATS)[0]
    assert tokenizer.convert_ids_to_tokens(item["input_ids"]) == [
        "[CLS]",
        "the",
        "cat",
        "##s",
        "sat",
        "[SEP]",
    ]
    assert item["labels"] == [IGNORED, 0, 1, IGNORED, 0, IGNORED]


def test_padding_has_no_label(tokenizer: Any) -> None:
    made = encoded(tokenizer, CATS, Tagged(("ran",), (2,)))
    batch = collate("conll2003", tokenizer)([made[0], made[1]])
    assert batch["labels"].tolist()[1] == [IGNORED, 2, IGNORED, IGNORED, IGNORED, IGNORED]
    assert batch["attention_mask"].tolist()[1] == [1, 1, 1, 0, 0, 0]


def test_words_that_are_cut_off_or_hold_nothing_are_said_and_count_as_untagged(tokenizer: Any) -> None:
    example = Tagged(("the", "\u200b", "cat", "sat"), (0, 0, 1, 1))
    with pytest.warns(UserWarning, match="conll2003: 2 of 4 words lie beyond 4 tokens, or hold nothing"):
        made = encoded(tokenizer, example, length=4)
    assert made[0]["labels"] == [IGNORED, 0, 1, IGNORED]
    logits = torch.zeros(6, find_task("conll2003").num_labels)
    logits[2, 1] = 9
    (tags,) = tags_of(made, [logits])
    assert tags.tolist() == [0, UNREAD, 1, UNREAD]
    # "O", "O", "B-PER" and, unread, "O" in place of "B-PER".
    scores = compute("conll2003", [tags], [np.array(example.tags)])
    assert scores == pytest.approx({"f1": 2 / 3, "precision": 1.0, "recall": 0.5, "accuracy": 0.75})


def test_logits_that_are_not_finite_tag_nothing(tokenizer: Any) -> None:
    made = encoded(tokenizer, CATS)
    (tags,) = tags_of(made, [torch.full((6, 9), torch.nan)])
    assert tags.tolist() == [UNREAD] * 3


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

        def num_special_tokens_to_add(self, pair: bool) -> int:
            return 2

    slow: Any = Slow()
    with pytest.raises(ValueError, match="conll2003 needs a fast tokenizer"):
        encode([CATS], "conll2003", slow)


@pytest.mark.real_data
def test_real_words_are_read_as_transformers_reads_words(data_folder: Path) -> None:
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(str(data_folder / "bert-vocab" / "vocab.txt"))
    lines = (data_folder / "wikitext-2" / "wiki.test.raw.txt").read_text().splitlines()
    draw = random.Random(0)
    texts = [tuple(line.split()) for line in draw.sample([line for line in lines if line.strip()], 100)]
    examples = [Tagged(words, tuple(draw.randrange(9) for _ in words)) for words in texts]
    made = encode(examples, "conll2003", tokenizer, TextFormat(512))
    theirs = tokenizer(
        [list(words) for words in texts], is_split_into_words=True, truncation=True, max_length=512
    )
    for index, example in enumerate(examples):
        assert made[index]["input_ids"] == theirs["input_ids"][index]
        words = theirs.word_ids(index)
        labels = [
            IGNORED if word is None or word == before else example.tags[word]
            for before, word in zip([None, *words], words, strict=False)
        ]
        assert made[index]["labels"] == labels
