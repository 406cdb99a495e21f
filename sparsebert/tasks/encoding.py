"""Encoding of examples as token ids, which depend only on the examples, the tokenizer and the text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch.utils.data import Dataset

from sparsebert.tasks.examples import Example, Examples, Question
from sparsebert.tasks.prompt_template import filled
from sparsebert.tasks.registry import Task, find_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts per call of the tokenizer: enough for its speed, few enough for memory.
_TEXTS_AT_ONCE = 1000
# As in run_squad.py of BERT: tokens that two windows of a long paragraph share, maximum tokens of a question.
_WINDOW_OVERLAP = 128
_QUESTION_TOKENS = 64
# Placeholder of WikiText for a rare word.
_RARE_WORD = "<unk>"

Row = Mapping[str, list[int]]


@dataclass(frozen=True)
class TextFormat:
    """The format in which a model reads the texts of examples.

    Attributes:
        max_length: Maximum tokens per example; None for the task's default.
        template: Text around the texts of an example (:mod:`sparsebert.tasks.prompt_template`); None for the
            texts alone.
    """

    max_length: int | None = None
    template: str | None = None


class Encoded(Dataset[dict[str, Any]]):
    """Encoded examples, as dicts of model inputs and targets.

    Inputs are ``input_ids``, ``attention_mask``, and ``token_type_ids`` if the tokenizer has them. Targets
    are ``labels``, or ``start_positions`` and ``end_positions``. Examples are not padded; one int32 array
    holds all ids, a few bytes per token.

    Attributes:
        lengths: int64 [examples], tokens of each example.
    """

    def __init__(self, rows: Iterable[Row], targets: Mapping[str, Sequence[int] | Sequence[float]]) -> None:
        ids: list[np.ndarray] = []
        types: list[np.ndarray] = []
        for row in rows:
            ids.append(np.asarray(row["input_ids"], np.int32))
            if "token_type_ids" in row:
                types.append(np.asarray(row["token_type_ids"], np.int8))
        self.lengths = np.array([len(each) for each in ids], np.int64)
        self._ends = np.cumsum(self.lengths)
        self._ids = np.concatenate([np.empty(0, np.int32), *ids])
        self._types = np.concatenate(types) if types else None
        self._targets = dict(targets)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        end = int(self._ends[index])
        tokens = slice(end - int(self.lengths[index]), end)
        item: dict[str, Any] = {"input_ids": self._ids[tokens].tolist()}
        item["attention_mask"] = [1] * len(item["input_ids"])
        if self._types is not None:
            item["token_type_ids"] = self._types[tokens].tolist()
        return item | {name: values[index] for name, values in self._targets.items()}


class EncodedQuestions(Encoded):
    """Windows of a question and its paragraph; a long paragraph has several overlapping windows.

    The targets are the positions of the first and the last token of the first accepted answer, or 0 (the
    first special token) if the window does not hold the whole answer.

    Attributes:
        questions: The encoded questions.
        question_of: int64 [windows], index of each window's question.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        targets: Mapping[str, Sequence[int]],
        questions: Sequence[Question],
        question_of: Sequence[int],
        spans: Sequence[np.ndarray],
    ) -> None:
        super().__init__(rows, targets)
        self.questions = questions
        self.question_of = np.array(question_of, np.int64)
        self._spans = np.concatenate([np.empty((0, 2), np.int32), *spans])

    def spans(self, window: int) -> np.ndarray:
        """Return the range of the context's characters that each token covers.

        Returns:
            int32 [tokens, 2], start and end; (0, 0) for tokens outside the context.
        """
        end = int(self._ends[window])
        return self._spans[end - int(self.lengths[window]) : end]


def encode(
    examples: Examples,
    task: str | Task,
    tokenizer: PreTrainedTokenizerBase,
    text_format: TextFormat = TextFormat(),
) -> Encoded:
    """Encode a task's examples.

    Sentences and pairs are truncated, the longer text of a pair first. Paragraphs of SQuAD become overlapping
    windows (:class:`EncodedQuestions`). Running text is joined and cut into blocks, without loss; for causal
    language modelling as in transformers' run_clm.py, with the ends of lines, but without special tokens, and
    with the last block.

    Args:
        examples: The examples.
        task: Their task, or its name.
        tokenizer: The model's tokenizer.
        text_format: Maximum length, and the template for sentences and pairs.

    Raises:
        ValueError: If the length leaves no room for text, a text has no token to predict, or the tokenizer is
            slow and the task is SQuAD.
    """
    task = find_task(task)
    length = task.max_length if text_format.max_length is None else text_format.max_length
    room = length - int(tokenizer.num_special_tokens_to_add(pair=len(task.columns) > 1))
    if task.kind == "clm":
        # The first token of a block is predicted by none.
        if length < 2:
            raise ValueError(f"max_length={length} leaves no token to predict; use at least 2")
        blocks = Encoded(_blocks(cast("Sequence[str]", examples), tokenizer, length, causal=True), {})
        if len(examples) and not len(blocks):
            raise ValueError(f"{task.name}: one token of text leaves none to predict; use a longer text")
        return blocks
    if room < len(task.columns):
        raise ValueError(
            f"max_length={length} leaves no room for text beside the special tokens; use a larger one"
        )
    if task.kind == "span":
        return _encode_questions(cast("Sequence[Question]", examples), tokenizer, length)
    if task.kind == "mlm":
        return Encoded(_blocks(cast("Sequence[str]", examples), tokenizer, length), {})
    labelled = cast("Sequence[Example]", examples)
    texts: Iterable[tuple[str, ...]] = (example.texts for example in labelled)
    if text_format.template is not None:
        texts = ((text,) for text in filled(text_format.template, list(texts), tokenizer, length))
    labels = [example.label for example in labelled]
    return Encoded(_encode_texts(texts, tokenizer, length), {"labels": labels})


def _encode_texts(
    texts: Iterable[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[Row]:
    remaining = iter(texts)
    while chunk := list(islice(remaining, _TEXTS_AT_ONCE)):
        encoded = tokenizer(*map(list, zip(*chunk, strict=True)), truncation=True, max_length=max_length)
        yield from _rows(encoded)


def _blocks(
    lines: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, *, causal: bool = False
) -> Iterator[Row]:
    """Join all lines into one stream of tokens, and yield it in blocks, each between [CLS] and [SEP].

    For causal language modelling lines keep their ends, blocks have no special tokens, and a last one of one
    token is left out.
    """
    unknown_token = tokenizer.unk_token or _RARE_WORD
    # Lines of the hub end in a newline, those of a file do not.
    end = "\n" if causal else ""
    texts = [line.rstrip("\r\n").replace(_RARE_WORD, unknown_token) + end for line in lines if line.strip()]
    chunks = (texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(texts), _TEXTS_AT_ONCE))
    ids: Iterator[int] = chain.from_iterable(
        chain.from_iterable(tokenizer(chunk, add_special_tokens=False, truncation=False)["input_ids"])
        for chunk in chunks
    )
    has_types = "token_type_ids" in tokenizer.model_input_names
    room, least = (max_length, 2) if causal else (max_length - 2, 1)
    block: list[int] = []
    for token in chain(ids, (None,)):
        if len(block) >= least and (token is None or len(block) == room):
            row = block if causal else [tokenizer.cls_token_id, *block, tokenizer.sep_token_id]
            yield {"input_ids": row} | ({"token_type_ids": [0] * len(row)} if has_types else {})
            block = []
        if token is not None:
            block.append(token)


def _encode_questions(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> EncodedQuestions:
    if not tokenizer.is_fast:
        raise ValueError(f"SQuAD needs a fast tokenizer (for offsets), got {type(tokenizer).__name__}")
    rows: list[Row] = []
    question_of: list[int] = []
    spans: list[np.ndarray] = []
    starts: list[int] = []
    ends: list[int] = []
    shortened = _shortened([each.question for each in questions], tokenizer, max_length)
    for first in range(0, len(questions), _TEXTS_AT_ONCE):
        part = slice(first, first + _TEXTS_AT_ONCE)
        encoded = tokenizer(
            shortened[part],
            [each.context for each in questions[part]],
            truncation="only_second",
            max_length=max_length,
            stride=min(_WINDOW_OVERLAP, max_length // 4),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        rows.extend(_rows(encoded))
        for window, index in enumerate(encoded["overflow_to_sample_mapping"]):
            in_context = np.array([part == 1 for part in encoded.sequence_ids(window)])
            covered = np.where(in_context[:, None], np.array(encoded["offset_mapping"][window]), 0)
            text, start = questions[first + index].answers[0]
            start_token, end_token = _answer_tokens(covered, start, start + len(text))
            question_of.append(first + index)
            spans.append(covered.astype(np.int32))
            starts.append(start_token)
            ends.append(end_token)
    targets = {"start_positions": starts, "end_positions": ends}
    return EncodedQuestions(rows, targets, questions, question_of, spans)


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


def _shortened(texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[str]:
    """Return questions truncated to 64 tokens or half the length, to leave room for the paragraph."""
    limit = min(_QUESTION_TOKENS, max_length // 2 - 2)
    if not texts:
        return texts
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    return [
        text if len(offsets) <= limit else text[: offsets[limit - 1][1]]
        for text, offsets in zip(texts, encoded["offset_mapping"], strict=True)
    ]


def _answer_tokens(covered: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """Return the first and last token that cover the characters ``start`` to ``end``.

    The result is (0, 0) if the tokens do not cover all of these characters.
    """
    inside = np.flatnonzero((covered[:, 1] > start) & (covered[:, 0] < end) & (covered[:, 1] > covered[:, 0]))
    if not len(inside):
        return 0, 0
    first, last = int(inside[0]), int(inside[-1])
    whole = covered[first, 0] <= start and covered[last, 1] >= end
    return (first, last) if whole else (0, 0)


def _rows(encoded: Any) -> Iterator[Row]:
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    for values in zip(*(encoded[name] for name in names), strict=True):
        yield dict(zip(names, values, strict=True))
