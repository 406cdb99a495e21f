"""The texts of a healing: three disjoint parts, and batches in which nothing is padded."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from sparsebert.healing.texts import Row, batches_of_one_length, encode, training_steps


@pytest.fixture
def rows() -> list[Row]:
    random = np.random.default_rng(0)
    return [Row(tuple(random.integers(0, 99, size))) for size in random.integers(2, 30, 300)]


class TestParts:
    def test_they_are_disjoint_and_complete(self, texts: list[str], tokenizer: Any) -> None:
        parts = encode([*texts, *texts], tokenizer, 32, 0)
        everything = (*parts.train, *parts.validation, *parts.judge)
        assert len(set(everything)) == len(everything) == len(set(texts))

    def test_texts_that_differ_beyond_the_cut_count_once(self, texts: list[str], tokenizer: Any) -> None:
        longer = [f"{text} {text} {text} {text}" for text in texts]
        assert len(encode([*longer, *(f"{text} w1" for text in longer)], tokenizer, 12, 0).train) <= 160

    def test_pairs_are_read_as_the_tokenizer_joins_them(self, texts: list[str], tokenizer: Any) -> None:
        pairs = list(zip(texts, reversed(texts), strict=True))
        parts = encode(pairs, tokenizer, 32, 0)
        rows = {(row.ids, row.segments) for row in (*parts.train, *parts.validation, *parts.judge)}
        joined = [tokenizer(*pair, truncation=True, max_length=32) for pair in pairs]
        assert rows == {(tuple(each["input_ids"]), tuple(each["token_type_ids"])) for each in joined}
        assert all(set(row.segments or ()) == {0, 1} for row in parts.train)

    def test_the_split_depends_on_the_seed(self, texts: list[str], tokenizer: Any) -> None:
        first, again, other = (encode(texts, tokenizer, 32, seed) for seed in (0, 0, 1))
        assert first == again != other


class TestSteps:
    def test_a_batch_holds_texts_of_one_length(self, rows: list[Row]) -> None:
        for step in itertools.islice(training_steps(rows, 512, 0), 40):
            for texts in step:
                assert len({len(rows[text]) for text in texts}) == 1

    def test_a_step_has_the_tokens_that_were_asked_for(self, rows: list[Row]) -> None:
        passes = sum(map(len, rows)) // 512
        for step in itertools.islice(training_steps(rows, 512, 0), passes - 1):
            assert 512 <= sum(len(rows[text]) for texts in step for text in texts) < 512 * 1.6

    def test_a_pass_reads_every_text_once(self, rows: list[Row]) -> None:
        seen: Counter[int] = Counter()
        for step in training_steps(rows, 512, 0):
            seen.update(text for texts in step for text in texts)
            if sum(seen.values()) >= len(rows):
                break
        assert seen == Counter(range(len(rows)))

    def test_the_order_depends_on_seed_and_pass(self, rows: list[Row]) -> None:
        first, again, other = (
            list(itertools.islice(training_steps(rows, 512, seed), 30)) for seed in (0, 0, 1)
        )
        assert first == again != other
        assert first[:5] != first[9:14]


def test_held_out_texts_come_in_batches_of_one_length(rows: list[Row]) -> None:
    batches = list(batches_of_one_length(rows, 100))
    assert sorted(itertools.chain(*batches)) == list(range(len(rows)))
    assert all(len({len(rows[text]) for text in texts}) == 1 for texts in batches)
