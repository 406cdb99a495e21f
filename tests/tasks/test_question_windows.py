"""Windows of long paragraphs, and the choice of an answer, against BERT's run_squad.py written anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsebert.tasks import EncodedQuestions, Question, TextFormat, best_answers, encode, load
from sparsebert.tasks.squad import answers_or_none
from tests.tasks.questions import WORDS, question

Span = tuple[int, int]


def windows_by_the_rules(tokens: int, room: int, stride: int) -> list[Span]:
    """Start and length of each window of a paragraph: the next one starts a stride later, until the end."""
    spans, start = [], 0
    while True:
        length = min(room, tokens - start)
        spans.append((start, length))
        if start + length == tokens:
            return spans
        start += min(length, stride)


def has_most_context(spans: list[Span], current: int, token: int) -> bool:
    scores = {
        number: min(token - start, start + length - 1 - token) + 0.01 * length
        for number, (start, length) in enumerate(spans)
        if start <= token < start + length
    }
    return max(scores, key=lambda number: scores[number]) == current


def answer_by_the_rules(
    encoded: EncodedQuestions,
    index: int,
    spans: list[Span],
    starts: list[np.ndarray],
    ends: list[np.ndarray],
    *,
    max_context: bool,
) -> tuple[str, float]:
    """The best answer of a question, and the score of none minus its score."""
    windows = np.flatnonzero(encoded.question_of == index).tolist()
    best, text, null = -np.inf, "", np.inf
    for number, window in enumerate(windows):
        covered = encoded.spans(window)
        offset = int(np.flatnonzero(covered[:, 1] > covered[:, 0])[0])
        length = int(encoded.lengths[window])
        null = min(null, float(starts[window][0] + ends[window][0]))
        first_best = sorted(range(length), key=lambda at: -starts[window][at])[:20]
        last_best = sorted(range(length), key=lambda at: -ends[window][at])[:20]
        start, count = spans[number]
        for first in first_best:
            for last in last_best:
                inside = all(offset <= at < offset + count for at in (first, last))
                if not inside or not first <= last < first + 30:
                    continue
                if max_context and not has_most_context(spans, number, start + first - offset):
                    continue
                score = float(starts[window][first] + ends[window][last])
                if score > best:
                    best = score
                    text = encoded.questions[index].context[covered[first, 0] : covered[last, 1]]
    return text, null - best


def logits(encoded: EncodedQuestions, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    draw = np.random.default_rng(seed)
    starts, ends = (
        [draw.normal(size=length).astype(np.float32) for length in encoded.lengths] for _ in range(2)
    )
    return starts, ends


def require_the_rules(tokenizer: Any, asked: list[Question], text_format: TextFormat, step: int) -> int:
    """Compare windows, contexts and answers with the rules; give back the number of long paragraphs."""
    encoded = encode(asked, "squad", tokenizer, text_format)
    assert isinstance(encoded, EncodedQuestions)
    starts, ends = logits(encoded, 0)
    ours = answers_or_none(encoded, starts, ends)
    several = 0
    for index, each in enumerate(asked):
        windows = np.flatnonzero(encoded.question_of == index).tolist()
        tokens = tokenizer(each.context, add_special_tokens=False)["input_ids"]
        asks = tokenizer(each.question, add_special_tokens=False)["input_ids"]
        room = int(text_format.max_length or 384) - min(len(asks), 64) - 3
        spans = windows_by_the_rules(len(tokens), room, step)
        assert len(spans) == len(windows)
        for number, (window, (start, length)) in enumerate(zip(windows, spans, strict=True)):
            offset = min(len(asks), 64) + 2
            assert encoded[window]["input_ids"][offset : offset + length] == tokens[start : start + length]
            kept = [offset + at for at in range(length) if has_most_context(spans, number, start + at)]
            assert np.flatnonzero(encoded.with_max_context(window)).tolist() == kept
        text, difference = answer_by_the_rules(
            encoded, index, spans, starts, ends, max_context=bool(text_format.max_context)
        )
        assert ours[index].best == text
        assert ours[index].null_score_diff == pytest.approx(difference)
        several += len(spans) > 1
    return several


class TestDocStride:
    @pytest.mark.parametrize("stride", [1, 3, 7, 11, 40])
    @pytest.mark.parametrize("max_context", [None, True])
    def test_hand_made_paragraphs(self, tokenizer: Any, stride: int, max_context: bool | None) -> None:
        asked = [
            question("cat", 4, WORDS * times, "the cat " * asks) for times, asks in ((1, 1), (3, 2), (4, 3))
        ]
        text_format = TextFormat(24, doc_stride=stride, max_context=max_context)
        assert require_the_rules(tokenizer, asked, text_format, stride) == 2

    @pytest.mark.real_data
    @pytest.mark.parametrize(("length", "stride", "several"), [(384, 128, 3), (160, 48, 20)])
    def test_real_paragraphs(self, data_folder: Path, length: int, stride: int, several: int) -> None:
        """The windows of BERT on SQuAD have 384 tokens, and the next ones begin 128 later."""
        from transformers import BertTokenizer

        tokenizer = BertTokenizer(str(data_folder / "bert-vocab" / "vocab.txt"))
        asked: Any = load("squad", data_folder, train=False).validation["validation"]
        longest = sorted(asked, key=lambda each: -len(each.context))[:90:6]
        text_format = TextFormat(length, doc_stride=stride, max_context=True)
        assert require_the_rules(tokenizer, [*longest, *asked[:20]], text_format, stride) >= several

    def test_a_stride_is_a_step_and_not_an_overlap(self, tokenizer: Any) -> None:
        asked = [question("cat", 4, WORDS * 5)]
        steps = [len(encode(asked, "squad", tokenizer, TextFormat(32, doc_stride=step))) for step in (4, 16)]
        assert steps == [7, 3]

    def test_a_stride_beyond_the_window_leaves_nothing_out(self, tokenizer: Any) -> None:
        encoded = encode([question("cat", 4, WORDS * 5)], "squad", tokenizer, TextFormat(32, doc_stride=999))
        assert isinstance(encoded, EncodedQuestions)
        covered = np.concatenate([encoded.spans(window) for window in range(len(encoded))])
        assert len({tuple(span) for span in covered.tolist()} - {(0, 0)}) == 50

    def test_it_must_be_positive(self) -> None:
        with pytest.raises(ValueError, match="doc_stride must be a positive number of tokens, got 0"):
            TextFormat(doc_stride=0)

    @pytest.mark.parametrize("doc_stride", [None, 1])
    def test_a_length_without_room_for_a_paragraph_is_refused(
        self, tokenizer: Any, doc_stride: int | None
    ) -> None:
        question = Question("1", "the cat sat", "a dog ran on", (("dog", 2),))
        shortest = 6 if doc_stride is None else 5
        assert len(encode([question], "squad", tokenizer, TextFormat(shortest, doc_stride=doc_stride)))
        with pytest.raises(ValueError, match=f"max_length={shortest - 1} leaves no room for"):
            encode([question], "squad", tokenizer, TextFormat(shortest - 1, doc_stride=doc_stride))

    @pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
    def test_a_threshold_that_decides_nothing_is_refused(self, threshold: float) -> None:
        with pytest.raises(ValueError, match=f"null_score_diff_threshold must be .* got {threshold}"):
            TextFormat(null_score_diff_threshold=threshold)


class TestMaxContext:
    @pytest.mark.parametrize(("max_context", "text"), [(None, "in"), (True, "sat")])
    def test_no_answer_starts_at_the_edge_of_a_window_that_the_next_one_shows_better(
        self, tokenizer: Any, max_context: bool | None, text: str
    ) -> None:
        text_format = TextFormat(32, doc_stride=16, max_context=max_context)
        encoded = encode([question("cat", 4, WORDS * 5)], "squad", tokenizer, text_format)
        assert isinstance(encoded, EncodedQuestions)
        starts, ends = ([np.zeros(int(each)) for each in encoded.lengths] for _ in range(2))
        # The last token of the first window, and one in the middle of the second.
        starts[0][30] = ends[0][30] = 5
        starts[1][20] = ends[1][20] = 4
        assert best_answers(encoded, starts, ends) == [text]


class TestNoAnswer:
    def encoded(self, tokenizer: Any, threshold: float | None = None) -> EncodedQuestions:
        asked = [question("", 0), question("cat", 4, WORDS * 3)]
        text_format = TextFormat(24, null_score_diff_threshold=threshold)
        encoded = encode(asked, "squad2", tokenizer, text_format)
        assert isinstance(encoded, EncodedQuestions)
        return encoded

    def test_a_question_without_an_answer_points_at_the_first_token(self, tokenizer: Any) -> None:
        item = self.encoded(tokenizer)[0]
        assert item["start_positions"] == item["end_positions"] == 0

    @pytest.mark.parametrize(("threshold", "text"), [(None, ""), (0.9, ""), (1.0, "cat"), (5.0, "cat")])
    def test_none_is_given_where_its_score_exceeds_the_best_by_more_than_the_threshold(
        self, tokenizer: Any, threshold: float | None, text: str
    ) -> None:
        encoded = self.encoded(tokenizer, threshold)
        starts, ends = ([np.zeros(int(each)) for each in encoded.lengths] for _ in range(2))
        starts[0][0], ends[0][0] = 3, 4
        starts[0][5], ends[0][5] = 3, 3
        first, _ = answers_or_none(encoded, starts, ends)
        assert first == (text, "cat", 1.0)

    def test_the_lowest_score_of_none_among_the_windows_counts(self, tokenizer: Any) -> None:
        encoded = self.encoded(tokenizer)
        assert encoded.question_of.tolist() == [0, 1, 1]
        starts, ends = ([np.zeros(int(each)) for each in encoded.lengths] for _ in range(2))
        starts[1][0], starts[2][0] = 9, -2
        assert answers_or_none(encoded, starts, ends)[1].null_score_diff == -2
