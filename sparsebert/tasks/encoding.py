"""Encoding of examples as token ids, which depend only on the examples, the tokenizer and the text format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from sparsebert.tasks.encoded import TEXTS_AT_ONCE, Encoded, Row, rows_of
from sparsebert.tasks.examples import Example, Examples
from sparsebert.tasks.prompt_template import filled
from sparsebert.tasks.question_windows import encode_questions
from sparsebert.tasks.registry import Kind, Task, find_task
from sparsebert.tasks.tagged_words import encode_words
from sparsebert.tasks.text_blocks import causal_blocks, masked_blocks
from sparsebert.tasks.text_format import TextFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(
    examples: Examples,
    task: str | Task,
    tokenizer: PreTrainedTokenizerBase,
    text_format: TextFormat = TextFormat(),
) -> Encoded:
    """Encode a task's examples.

    Sentences and pairs are truncated, the longer text of a pair first. Paragraphs of questions become
    overlapping windows (:class:`sparsebert.tasks.question_windows.EncodedQuestions`), words with tags one
    text (:class:`sparsebert.tasks.tagged_words.EncodedWords`). Running text is joined and cut into blocks
    (:mod:`sparsebert.tasks.text_blocks`).

    Args:
        examples: The examples.
        task: Their task, or its name.
        tokenizer: The model's tokenizer.
        text_format: Maximum length, the template for sentences and pairs, and the windows of questions.

    Raises:
        ValueError: If the length leaves no room for text, a text has no token to predict, or the tokenizer is
            slow and the task is about questions or words.
    """
    task = find_task(task)
    length = text_format.length(task)
    room = length - int(tokenizer.num_special_tokens_to_add(pair=len(task.columns) > 1))
    if task.kind != "clm" and room < len(task.columns):
        raise ValueError(
            f"max_length={length} leaves no room for text beside the special tokens; use a larger one"
        )
    return _ENCODERS[task.kind](examples, task, tokenizer, text_format)


def _labelled_texts(
    examples: Sequence[Example], task: Task, tokenizer: PreTrainedTokenizerBase, text_format: TextFormat
) -> Encoded:
    length = text_format.length(task)
    texts: Iterable[tuple[str, ...]] = (example.texts for example in examples)
    if text_format.template is not None:
        texts = ((text,) for text in filled(text_format.template, list(texts), tokenizer, length))
    labels = [example.label for example in examples]
    return Encoded(_encode_texts(texts, tokenizer, length), {"labels": labels})


def _encode_texts(
    texts: Iterable[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[Row]:
    remaining = iter(texts)
    while chunk := list(islice(remaining, TEXTS_AT_ONCE)):
        encoded = tokenizer(*map(list, zip(*chunk, strict=True)), truncation=True, max_length=max_length)
        yield from rows_of(encoded)


_ENCODERS: Mapping[Kind, Callable[[Any, Task, Any, TextFormat], Encoded]] = {
    "classification": _labelled_texts,
    "regression": _labelled_texts,
    "span": encode_questions,
    "tokens": encode_words,
    "mlm": masked_blocks,
    "clm": causal_blocks,
}


class EncodedOnce:
    """:func:`encode` with a cache, for several runs on the same examples.

    Examples are compared by identity, tokenizers by name. The cache keeps all its results.
    """

    def __init__(self) -> None:
        # Keeping the examples alive keeps their ids unique.
        self._cache: dict[tuple[Any, ...], tuple[Examples, Encoded]] = {}

    def __call__(
        self,
        examples: Examples,
        task: str | Task,
        tokenizer: PreTrainedTokenizerBase,
        text_format: TextFormat = TextFormat(),
    ) -> Encoded:
        key = id(examples), find_task(task).name, tokenizer.name_or_path, text_format
        if key not in self._cache:
            self._cache[key] = examples, encode(examples, task, tokenizer, text_format)
        return self._cache[key][1]
