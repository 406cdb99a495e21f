"""Batches of several tasks: each pass of a task holds all of its examples, pass after pass."""

from __future__ import annotations

from fractions import Fraction

from sparsebert.training.task_sampling import TaskSampler


def test_a_small_task_starts_another_pass() -> None:
    sampler = TaskSampler([4, 12], [Fraction(1), Fraction(1)], batch_size=4, seed=0)
    indices = list(sampler)
    assert len(indices) == len(sampler) == 16
    batches = [sorted(indices[start : start + 4]) for start in range(0, 16, 4)]
    assert batches[0] == batches[2] == [0, 1, 2, 3]
    assert all(4 <= index < 16 for batch in (batches[1], batches[3]) for index in batch)
    assert len(set(batches[1] + batches[3])) == 8
