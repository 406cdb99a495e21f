"""A few hundred examples of a task as batches: pairs stay pairs, and labels are there only if asked for."""

from __future__ import annotations

from typing import Any

import torch

from sparsebert.tasks import Example, Question, TextFormat, find_task
from sparsebert.tasks.example_batches import example_batches

WORDS = ["the", "cat", "sat", "on", "the", "mat", "in", "the", "rain"]
PAIRS = [
    Example((" ".join(WORDS[: 1 + index % 7]), " ".join(WORDS[index % 3 : 4])), index % 2)
    for index in range(40)
]


def rows_of(batches: list[dict[str, Any]]) -> list[tuple[int, ...]]:
    return [
        tuple(ids[mask.bool()].tolist())
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_pairs_stay_pairs_without_labels_and_similar_lengths_share_a_batch(tokenizer: Any) -> None:
    batches = example_batches(PAIRS, find_task("rte"), tokenizer, TextFormat(), batch_size=8)
    assert [len(batch["input_ids"]) for batch in batches] == [8] * 5
    assert all(batch.keys() == {"input_ids", "attention_mask", "token_type_ids"} for batch in batches)
    rows = rows_of(batches)
    assert [len(row) for row in rows] == sorted(map(len, rows))
    assert sorted(rows) == sorted(tuple(tokenizer(*pair.texts)["input_ids"]) for pair in PAIRS)
    assert all(batch["token_type_ids"].any() for batch in batches)


def test_a_draw_has_no_example_twice_and_depends_on_the_seed(tokenizer: Any) -> None:
    texts = [Example((" ".join(WORDS[i % 9 :] + WORDS[: i // 9 % 9]),), i % 2) for i in range(80)]

    def drawn(seed: int) -> list[tuple[int, ...]]:
        batches = example_batches(texts, find_task("sst2"), tokenizer, TextFormat(), count=30, seed=seed)
        return rows_of(batches)

    assert drawn(0) == drawn(0) != drawn(1)
    assert len(drawn(0)) == len(set(drawn(0))) == 30
    assert len(rows_of(example_batches(texts, find_task("sst2"), tokenizer, TextFormat(), count=999))) == 80


def test_labels_are_the_outputs_of_the_model(tokenizer: Any) -> None:
    task = find_task("rte")
    own = example_batches(PAIRS, task, tokenizer, TextFormat(), labels=True)
    theirs = example_batches(PAIRS, task, tokenizer, TextFormat(), labels=True, outputs=(1, 0))
    for one, other in zip(own, theirs, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
        assert torch.equal(one["labels"], 1 - other["labels"])


def test_running_text_is_drawn_in_blocks_and_masked_only_for_its_loss(tokenizer: Any) -> None:
    lines = [" ".join(WORDS[i % 5 :]) for i in range(50)]
    task = find_task("wikitext-2")
    (plain,) = example_batches(lines, task, tokenizer, TextFormat(10), count=12)
    assert plain["input_ids"].shape == (12, 10)
    assert not (plain["input_ids"] == tokenizer.mask_token_id).any()
    (masked,) = example_batches(lines, task, tokenizer, TextFormat(10), count=12, labels=True)
    assert (masked["input_ids"] == tokenizer.mask_token_id).any()
    assert "labels" in masked


def test_questions_are_drawn_in_windows(tokenizer: Any) -> None:
    context = " ".join(WORDS * 40)
    questions = [Question(str(i), "the cat sat", context, (("cat", 4),)) for i in range(6)]
    (batch,) = example_batches(
        questions, find_task("squad"), tokenizer, TextFormat(160), count=5, labels=True
    )
    assert len(batch["input_ids"]) == 5
    assert {"start_positions", "end_positions"} <= batch.keys()
