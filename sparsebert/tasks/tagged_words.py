"""Words with a tag each as token ids: the first piece of a word carries its tag."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sparsebert.tasks.encoded import TEXTS_AT_ONCE, Encoded, Row, require_offsets, rows_of
from sparsebert.tasks.examples import Tagged
from sparsebert.tasks.metrics import IGNORED
from sparsebert.tasks.registry import Task
from sparsebert.tasks.text_format import TextFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Predicted tag of a word that the model does not read; it is the tag of no word.
UNREAD = -1


class EncodedWords(Encoded):
    """Words with tags, joined by blanks to one text.

    The targets, ``labels``, are the tag of a word at its first piece, and ``IGNORED`` at all other tokens, as
    in run_ner.py of transformers.

    Attributes:
        examples: The encoded examples.
    """

    def __init__(
        self, rows: Sequence[Row], examples: Sequence[Tagged], words: Sequence[Sequence[int | None]]
    ) -> None:
        labels = [
            [IGNORED if word is None else example.tags[word] for word in positions]
            for example, positions in zip(examples, words, strict=True)
        ]
        super().__init__(rows, {"labels": labels})
        self.examples = examples
        self._words = [
            np.array([word for word in positions if word is not None], np.int64) for positions in words
        ]

    def tags(self, index: int, predicted: np.ndarray) -> np.ndarray:
        """Return a tag for each word of an example.

        Args:
            index: Number of the example.
            predicted: int64, the tags predicted at the tokens that have a label, in their order.

        Returns:
            int64 [words]; ``UNREAD`` for a word that is cut off, or that the tokenizer reads as nothing.
        """
        tags = np.full(len(self.examples[index].words), UNREAD, np.int64)
        tags[self._words[index]] = predicted
        return tags


def encode_words(
    examples: Sequence[Tagged], task: Task, tokenizer: PreTrainedTokenizerBase, text_format: TextFormat
) -> EncodedWords:
    """Encode words with tags; warn of words beyond the maximum length.

    Args:
        examples: The examples.
        task: Their task.
        tokenizer: The model's tokenizer.
        text_format: Maximum length.

    Raises:
        ValueError: The tokenizer is slow.
    """
    require_offsets(tokenizer, task)
    length = text_format.length(task)
    rows: list[Row] = []
    words: list[list[int | None]] = []
    for first in range(0, len(examples), TEXTS_AT_ONCE):
        part = examples[first : first + TEXTS_AT_ONCE]
        encoded = tokenizer(
            [" ".join(each.words) for each in part],
            truncation=True,
            max_length=length,
            return_offsets_mapping=True,
        )
        rows += rows_of(encoded)
        for example, offsets in zip(part, encoded["offset_mapping"], strict=True):
            words.append(_first_pieces(example.words, offsets))
    total = sum(len(each.words) for each in examples)
    read = sum(word is not None for positions in words for word in positions)
    if read < total:
        warnings.warn(
            f"{task.name}: {total - read} of {total} words lie beyond {length} tokens, or hold nothing that "
            "the tokenizer reads: they are not trained on, and count as untagged",
            stacklevel=4,
        )
    return EncodedWords(rows, examples, words)


def _first_pieces(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """Return for each token the word of which it is the first piece, or None."""
    # Words end before a blank, where the next one starts.
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    first_of: list[int | None] = []
    last = -1
    for start, end in offsets:
        # By the last character: some tokenizers count the blank before a word to it.
        word = int(np.searchsorted(ends, end, side="left")) if end > start else last
        first_of.append(word if word > last else None)
        last = max(last, word)
    return first_of
