"""Batches of examples of about the same length."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("transformers")

from sparsebert.training.length_grouping import LengthGroupedSampler

LENGTHS = np.random.default_rng(0).integers(5, 60, 4000)
EXAMPLES = [{"input_ids": [0] * int(length)} for length in LENGTHS]


def padded_share(order: list[int]) -> float:
    batches = LENGTHS[order].reshape(-1, 32)
    return 1 - float(batches.sum() / (batches.max(1) * 32).sum())


def test_every_example_once_and_hardly_any_padding() -> None:
    order = list(LengthGroupedSampler(EXAMPLES, 32, seed=0))
    assert sorted(order) == list(range(4000))
    assert padded_share(order) < 0.05 < 0.3 < padded_share(list(range(4000)))


def test_the_order_follows_from_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = LengthGroupedSampler(EXAMPLES, 32, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 1) == order(1, 1)
    assert len({tuple(order(seed, epoch)) for seed, epoch in ((5, 0), (5, 1), (9, 0))}) == 3
