"""Questions as token ids: a long paragraph becomes several overlapping windows, each with the question."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsebert.tasks.encoded import TEXTS_AT_ONCE, Encoded, Row, require_offsets, rows_of
from sparsebert.tasks.examples import Question
from sparsebert.tasks.registry import Task
from sparsebert.tasks.text_format import TextFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# As in run_squad.py of BERT: the maximum tokens of a question.
_QUESTION_TOKENS = 64
# As in run_qa.py of Hugging Face: tokens that two windows of a paragraph share, where no stride is given.
_WINDOW_OVERLAP = 128


@dataclass(frozen=True)
class _Window:
    """A question and a part of its paragraph.

    Attributes:
        row: The tokens.
        spans: int32 [tokens, 2], characters of the paragraph that each token covers; (0, 0) outside it.
        start: Tokens of the paragraph before the window.
        context: bool [tokens], tokens of the paragraph.
    """

    row: Row
    spans: np.ndarray
    start: int
    context: np.ndarray


class EncodedQuestions(Encoded):
    """Windows of a question and its paragraph; a long paragraph has several overlapping windows.

    The targets are the positions of the first and the last token of the first accepted answer, or 0 (the
    first special token) if the window does not hold the whole answer, or there is none.

    Attributes:
        questions: The encoded questions.
        question_of: int64 [windows], index of each window's question.
        text_format: How answers are read.
    """

    def __init__(
        self,
        windows: Sequence[_Window],
        targets: Mapping[str, Sequence[int]],
        questions: Sequence[Question],
        question_of: Sequence[int],
        text_format: TextFormat,
    ) -> None:
        super().__init__([window.row for window in windows], targets)
        self.questions = questions
        self.question_of = np.array(question_of, np.int64)
        self.text_format = text_format
        self._spans = np.concatenate([np.empty((0, 2), np.int32), *(each.spans for each in windows)])
        self._starts = np.array([each.start for each in windows], np.int64)
        # The paragraph's tokens stand side by side in a window.
        self._counts = np.array([each.context.sum() for each in windows], np.int64)
        self._firsts = np.array([each.context.argmax() for each in windows], np.int64)

    def spans(self, window: int) -> np.ndarray:
        """Return the range of the context's characters that each token covers.

        Returns:
            int32 [tokens, 2], start and end; (0, 0) for tokens outside the context.
        """
        end = int(self._ends[window])
        return self._spans[end - int(self.lengths[window]) : end]

    def with_max_context(self, window: int) -> np.ndarray:
        """Return the tokens of the paragraph that have their maximum context in this window.

        A token's context in a window is the number of the paragraph's tokens to its left or to its right,
        whichever is smaller, plus a hundredth of the window's tokens of the paragraph; of equal ones, the
        first counts (``_check_is_max_context`` in run_squad.py of BERT).

        Returns:
            bool [tokens].
        """
        question = self.question_of[window]
        first, last = np.searchsorted(self.question_of, [question, question + 1])
        starts, counts = self._starts[first:last, None], self._counts[first:last, None]
        count = int(self._counts[window])
        positions = self._starts[window] + np.arange(count)
        left, right = positions - starts, starts + counts - 1 - positions
        context = np.where((left >= 0) & (right >= 0), np.minimum(left, right) + 0.01 * counts, -np.inf)
        kept = np.zeros(int(self.lengths[window]), bool)
        begin = int(self._firsts[window])
        kept[begin : begin + count] = context.argmax(axis=0) == window - first
        return kept


def encode_questions(
    questions: Sequence[Question], task: Task, tokenizer: PreTrainedTokenizerBase, text_format: TextFormat
) -> EncodedQuestions:
    """Encode questions with their paragraphs.

    Args:
        questions: The questions.
        task: Their task.
        tokenizer: The model's tokenizer.
        text_format: Maximum length, and the stride of the windows.

    Raises:
        ValueError: The tokenizer is slow, or the length leaves no room for a paragraph.
    """
    require_offsets(tokenizer, task)
    max_length = text_format.length(task)
    windows: list[_Window] = []
    question_of: list[int] = []
    starts: list[int] = []
    ends: list[int] = []
    for first in range(0, len(questions), TEXTS_AT_ONCE):
        part = questions[first : first + TEXTS_AT_ONCE]
        for number, each in enumerate(_windows(part, tokenizer, max_length, text_format.doc_stride)):
            for window in each:
                answers = part[number].answers
                start, end = _answer_tokens(window.spans, *answers[0]) if answers else (0, 0)
                starts.append(start)
                ends.append(end)
            windows += each
            question_of += [first + number] * len(each)
    targets = {"start_positions": starts, "end_positions": ends}
    return EncodedQuestions(windows, targets, questions, question_of, text_format)


def _windows(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, max_length: int, doc_stride: int | None
) -> Iterator[list[_Window]]:
    """Yield the windows of each question."""
    texts = _shortened([each.question for each in questions], tokenizer, max_length)
    special = int(tokenizer.num_special_tokens_to_add(pair=True))
    tokens = tokenizer(texts, add_special_tokens=False)["input_ids"]
    rooms = [max_length - special - len(each) for each in tokens]
    overlaps = [
        min(_WINDOW_OVERLAP, max_length // 4) if doc_stride is None else max(0, room - doc_stride)
        for room in rooms
    ]
    if any(room <= overlap for room, overlap in zip(rooms, overlaps, strict=True)):
        raise ValueError(
            f"max_length={max_length} leaves no room for a paragraph beside its question; use a larger one"
        )
    # A call of the tokenizer has one overlap; with a stride, it depends on the length of the question.
    groups: dict[int, list[int]] = defaultdict(list)
    for index, overlap in enumerate(overlaps):
        groups[overlap].append(index)
    windows: dict[int, list[_Window]] = defaultdict(list)
    for overlap, indices in groups.items():
        encoded = tokenizer(
            [texts[index] for index in indices],
            [questions[index].context for index in indices],
            truncation="only_second",
            max_length=max_length,
            stride=overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for number, row in enumerate(rows_of(encoded)):
            index = indices[encoded["overflow_to_sample_mapping"][number]]
            context = np.array([part == 1 for part in encoded.sequence_ids(number)])
            spans = np.where(context[:, None], np.array(encoded["offset_mapping"][number]), 0)
            start = len(windows[index]) * (rooms[index] - overlap)
            windows[index].append(_Window(row, spans.astype(np.int32), start, context))
    for index in range(len(questions)):
        yield windows[index]


def _shortened(texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[str]:
    """Return questions truncated to 64 tokens or half the length, to leave room for the paragraph."""
    limit = max(1, min(_QUESTION_TOKENS, max_length // 2 - 2))
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    return [
        text if len(offsets) <= limit else text[: offsets[limit - 1][1]]
        for text, offsets in zip(texts, encoded["offset_mapping"], strict=True)
    ]


def _answer_tokens(spans: np.ndarray, answer: str, start: int) -> tuple[int, int]:
    """Return the first and last token that cover an answer that begins at a character of the paragraph.

    The result is (0, 0) if the tokens do not cover all of its characters.
    """
    end = start + len(answer)
    inside = np.flatnonzero((spans[:, 1] > start) & (spans[:, 0] < end) & (spans[:, 1] > spans[:, 0]))
    if not len(inside):
        return 0, 0
    first, last = int(inside[0]), int(inside[-1])
    whole = spans[first, 0] <= start and spans[last, 1] >= end
    return (first, last) if whole else (0, 0)
