"""Examples as token ids: always the same for the same examples, tokenizer and length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch.utils.data import Dataset

from sparsebert.tasks.examples import Example, Examples, Question
from sparsebert.tasks.prompt_template import filled
from sparsebert.tasks.registry import Task, find_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts handed to the tokenizer at once: enough for its speed, little enough for memory.
_TEXTS_AT_ONCE = 1000
# Of BERT's run_squad.py: tokens that two windows of a long paragraph share, and tokens of a question.
_WINDOW_OVERLAP = 128
_QUESTION_TOKENS = 64
# How WikiText writes a word that was too rare for it.
_RARE_WORD = "<unk>"

Row = Mapping[str, list[int]]


class Encoded(Dataset[dict[str, Any]]):
    """Encoded examples as dicts of ``input_ids``, ``attention_mask``, ``token_type_ids`` where the tokenizer
    has them, and the targets: ``labels``, or ``start_positions`` and ``end_positions``.

    Nothing is padded; the ids of all examples lie in one int32 array, a few bytes a token.
    ``lengths``: tokens of each example.
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
    """Windows of question and paragraph; a long paragraph has several, which overlap.

    ``questions``: what was encoded; ``question_of``: int64 [windows], the index of each one's question.
    The targets are the tokens of the first accepted answer, or 0 (the first special token) where the
    window does not hold it whole.
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
        """int32 [tokens, 2]: the characters of the context that each token covers; (0, 0) for all others."""
        end = int(self._ends[window])
        return self._spans[end - int(self.lengths[window]) : end]


def encode(
    examples: Examples,
    task: str | Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    template: str | None = None,
) -> Encoded:
    """Encode a task's examples, none longer than ``max_length`` tokens (the task's own where it is None).

    Sentences and pairs are cut, the longer of a pair first; paragraphs of SQuAD give several windows
    (:class:`EncodedQuestions`); running text is joined and cut into blocks, and none of it is lost.
    ``template``: what sentences and pairs are put into, as one text (:mod:`sparsebert.tasks.prompt_template`).
    Raises ValueError if the length leaves no room for text, or for a slow tokenizer with SQuAD.
    """
    task = find_task(task)
    length = task.max_length if max_length is None else max_length
    room = length - int(tokenizer.num_special_tokens_to_add(pair=len(task.columns) > 1))
    if room < len(task.columns):
        raise ValueError(f"a length of {length} tokens leaves no room for text beside the special tokens")
    if task.kind == "span":
        return _encode_questions(cast("Sequence[Question]", examples), tokenizer, length)
    if task.kind == "mlm":
        return Encoded(_blocks(cast("Sequence[str]", examples), tokenizer, length), {})
    given = cast("Sequence[Example]", examples)
    texts: Iterable[tuple[str, ...]] = (example.texts for example in given)
    if template is not None:
        texts = ((text,) for text in filled(template, list(texts), tokenizer, length))
    return Encoded(_encode_texts(texts, tokenizer, length), {"labels": [example.label for example in given]})


def _encode_texts(
    texts: Iterable[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[Row]:
    left = iter(texts)
    while some := list(islice(left, _TEXTS_AT_ONCE)):
        encoded = tokenizer(*map(list, zip(*some, strict=True)), truncation=True, max_length=max_length)
        yield from _rows(encoded)


def _blocks(lines: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[Row]:
    """All lines as one stream of tokens, cut into blocks between a first and a last special token."""
    unknown_token = tokenizer.unk_token
    texts = [line.replace(_RARE_WORD, unknown_token) for line in lines if line.strip()]
    chunks = (texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(texts), _TEXTS_AT_ONCE))
    ids: Iterator[int] = chain.from_iterable(
        chain.from_iterable(tokenizer(chunk, add_special_tokens=False, truncation=False)["input_ids"])
        for chunk in chunks
    )
    has_types = "token_type_ids" in tokenizer.model_input_names
    room = max_length - 2
    block: list[int] = []
    for token in chain(ids, (None,)):
        if block and (token is None or len(block) == room):
            row = [tokenizer.cls_token_id, *block, tokenizer.sep_token_id]
            yield {"input_ids": row} | ({"token_type_ids": [0] * len(row)} if has_types else {})
            block = []
        if token is not None:
            block.append(token)


def _encode_questions(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> EncodedQuestions:
    if not tokenizer.is_fast:
        raise ValueError(f"SQuAD needs a fast tokenizer, and {type(tokenizer).__name__} gives no offsets")
    rows: list[Row] = []
    question_of: list[int] = []
    spans: list[np.ndarray] = []
    starts: list[int] = []
    ends: list[int] = []
    asked = _shortened([each.question for each in questions], tokenizer, max_length)
    for first in range(0, len(questions), _TEXTS_AT_ONCE):
        part = slice(first, first + _TEXTS_AT_ONCE)
        encoded = tokenizer(
            asked[part],
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
    """:func:`encode` for several runs on the same examples: the second time they are not encoded again.

    Examples are told apart by being the same object, tokenizers by their names. Holds what it gave.
    """

    def __init__(self) -> None:
        # The examples too: while they are held, no others get their identity.
        self._known: dict[tuple[Any, ...], tuple[Examples, Encoded]] = {}

    def __call__(
        self,
        examples: Examples,
        task: str | Task,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        template: str | None = None,
    ) -> Encoded:
        key = id(examples), find_task(task).name, tokenizer.name_or_path, max_length, template
        if key not in self._known:
            self._known[key] = examples, encode(examples, task, tokenizer, max_length, template)
        return self._known[key][1]


def _shortened(texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[str]:
    """Questions cut to 64 tokens, or half the length where that is less, so that paragraphs find room."""
    limit = min(_QUESTION_TOKENS, max_length // 2 - 2)
    if not texts:
        return texts
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    return [
        text if len(offsets) <= limit else text[: offsets[limit - 1][1]]
        for text, offsets in zip(texts, encoded["offset_mapping"], strict=True)
    ]


def _answer_tokens(covered: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """The first and last token of the characters from ``start`` to ``end``; (0, 0) if not all are there."""
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
