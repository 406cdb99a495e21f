"""Batches: padding that is not attended to, and masks that depend on the batch and nothing before it."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

from sparsebert.tasks import Example, Question, Tagged, collate, encode


class TestPadding:
    def test_shorter_examples_are_filled_up_and_masked(self, tokenizer: Any) -> None:
        encoded = encode([Example(("a dog",), 1), Example(("a dog ran on",), 0)], "sst2", tokenizer)
        batch = collate("sst2", tokenizer)([encoded[0], encoded[1]])
        assert batch["input_ids"].shape == (2, 6)
        assert batch["input_ids"][0, 4:].tolist() == [tokenizer.pad_token_id] * 2
        assert batch["attention_mask"].tolist() == [[1] * 4 + [0] * 2, [1] * 6]
        assert batch["labels"].tolist() == [1, 0]
        assert batch["labels"].dtype == torch.int64

    def test_scores_become_float32(self, tokenizer: Any) -> None:
        encoded = encode([Example(("a", "the"), 2.5)], "stsb", tokenizer)
        assert collate("stsb", tokenizer)([encoded[0]])["labels"].dtype == torch.float32

    def test_lengths_can_be_rounded_up(self, tokenizer: Any) -> None:
        encoded = encode([Example(("a dog",), 1)], "sst2", tokenizer)
        assert collate("sst2", tokenizer, pad_to_multiple_of=8)([encoded[0]])["input_ids"].shape == (1, 8)

    @pytest.mark.parametrize(
        ("task", "examples"),
        [
            ("squad", [Question("1", "the", "a dog ran on", (("dog", 2),)), Question("2", "a", "cat", ())]),
            ("conll2003", [Tagged(("a", "dog", "ran"), (0, 1, 0)), Tagged(("cat",), (1,))]),
        ],
    )
    def test_positions_of_answers_and_words_count_from_the_first_token(
        self, tokenizer: Any, task: str, examples: list[Any]
    ) -> None:
        left = copy.copy(tokenizer)
        left.padding_side = "left"  # as of Llama's and XLNet's tokenizers
        encoded = encode(examples, task, left)
        batch = collate(task, left)([encoded[0], encoded[1]])
        short = encoded[1]["input_ids"]
        assert batch["input_ids"][1, : len(short)].tolist() == short
        assert left.padding_side == "left"


class TestMasking:
    def batches(self, tokenizer: Any) -> list[list[dict[str, Any]]]:
        """Full blocks only, of text that does not repeat: some 7,000 words."""
        words = random.Random(0).choices(["the", "cat", "dog", "sat", "ran", "."], k=7000)
        encoded = encode([" ".join(words)], "wikitext-2", tokenizer)
        return [[encoded[i] for i in range(start, start + 6)] for start in range(0, len(encoded) - 6, 6)]

    def test_fifteen_percent_are_chosen_eighty_of_them_masked_ten_replaced(self, tokenizer: Any) -> None:
        batches = self.batches(tokenizer)
        collator = collate("wikitext-2", tokenizer)
        tokens = chosen = masked = kept = 0
        for batch in batches:
            before = torch.tensor([item["input_ids"] for item in batch])
            after = collator(batch)
            scored = after["labels"] != -100
            assert torch.equal(after["labels"][scored], before[scored])
            assert torch.equal(after["input_ids"][~scored], before[~scored])
            assert not scored[(before == 2) | (before == 3)].any()
            tokens += int((before > 4).sum())
            chosen += int(scored.sum())
            masked += int((after["input_ids"][scored] == tokenizer.mask_token_id).sum())
            kept += int((after["input_ids"][scored] == before[scored]).sum())
        # Four standard deviations of a binomial: 0.15 of the tokens, then shares of the chosen.
        assert abs(chosen / tokens - 0.15) < 4 * (0.15 * 0.85 / tokens) ** 0.5
        # A random token is the mask token, or the one that was there, once in 21 words each.
        assert abs(masked / chosen - (0.8 + 0.1 / len(tokenizer))) < 4 * (0.8 * 0.2 / chosen) ** 0.5
        assert abs(kept / chosen - (0.1 + 0.1 / len(tokenizer))) < 4 * (0.1 * 0.9 / chosen) ** 0.5

    def test_a_batch_is_masked_the_same_whatever_came_before_it(self, tokenizer: Any) -> None:
        batches = self.batches(tokenizer)
        first = collate("wikitext-2", tokenizer, seed=3)
        throughout = [first(batch) for batch in batches]
        torch.manual_seed(99)
        continued = collate("wikitext-2", tokenizer, seed=3)
        for index in range(len(batches) // 2, len(batches)):
            again = continued(batches[index])
            assert all(torch.equal(again[name], throughout[index][name]) for name in again)

    def test_another_seed_or_another_batch_is_masked_otherwise(self, tokenizer: Any) -> None:
        batch = self.batches(tokenizer)[0]
        plain = collate("wikitext-2", tokenizer)(batch)["labels"]
        assert not torch.equal(collate("wikitext-2", tokenizer, seed=1)(batch)["labels"], plain)
        # The same example among others, as in another epoch.
        assert not torch.equal(collate("wikitext-2", tokenizer)(batch[:4])["labels"], plain[:4])

    def test_the_examples_stay_as_they_were(self, tokenizer: Any) -> None:
        batch = self.batches(tokenizer)[0]
        before = [list(item["input_ids"]) for item in batch]
        collate("wikitext-2", tokenizer)(batch)
        assert [item["input_ids"] for item in batch] == before
