"""Batches of several tasks in turn, each of one task alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from torch.utils.data import Sampler

Collate = Callable[[list[Any]], dict[str, Any]]


class TaskTurns(Sampler[int]):
    """Indices into the examples of all tasks, one task after the other, so that a batch is of one task.

    The next batch is one of the task that is furthest behind its share of the batches so far (the first of
    several); equal shares take turns. A task's examples come in random order, pass after pass, and a batch
    at the end of a pass is filled up from the next. All of it follows from ``seed`` and the epoch's number
    alone, so a run which is resumed sees the same batches. An epoch has as many batches as all examples
    together would fill: with shares by size it is about one pass over each task.

    ``sizes``: examples of each task; ``shares``: of the batches, positive, in any unit.
    """

    def __init__(self, sizes: Sequence[int], shares: Sequence[Fraction], batch_size: int, seed: int) -> None:
        self._sizes = sizes
        self._shares = [Fraction(share, sum(shares)) for share in shares]
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is; the training loop says so before each."""
        self._epoch = epoch

    def __len__(self) -> int:
        return math.ceil(sum(self._sizes) / self._batch_size) * self._batch_size

    def __iter__(self) -> Iterator[int]:
        streams = [self._stream(task) for task in range(len(self._sizes))]
        for task in self.turns():
            yield from (next(streams[task]) for _ in range(self._batch_size))

    def turns(self) -> Iterator[int]:
        """The task of each batch of an epoch."""
        given = [0] * len(self._shares)
        for number in range(1, len(self) // self._batch_size + 1):
            behind = [share * number - had for share, had in zip(self._shares, given, strict=True)]
            task = behind.index(max(behind))
            given[task] += 1
            yield task

    def _stream(self, task: int) -> Iterator[int]:
        random = np.random.default_rng((self._seed, self._epoch, task))
        first = sum(self._sizes[:task])
        while True:
            yield from (first + random.permutation(self._sizes[task])).tolist()


class TaskMixture:
    """The examples of several tasks as one dataset, whose items are pairs of task and example.

    ``proportions``: how often each task has its turn (:func:`proportions_of`).
    Raises ValueError for a task without examples, and as :func:`proportions_of` does.
    """

    def __init__(self, examples: Mapping[str, Any], proportions: str) -> None:
        for name, each in examples.items():
            if not len(each):
                raise ValueError(f"there are no examples of {name} to train on")
        self._examples = list(examples.values())
        self._ends = np.cumsum([len(each) for each in self._examples])
        self._shares = proportions_of(proportions, [len(each) for each in self._examples])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[int, Any]:
        task = int(np.searchsorted(self._ends, index, side="right"))
        return task, self._examples[task][index - int(self._ends[task]) + len(self._examples[task])]

    def sampler(self, batch_size: int, seed: int) -> TaskTurns:
        """The order in which they are trained on."""
        return TaskTurns([len(each) for each in self._examples], self._shares, batch_size, seed)


def collate_one_task(collates: Sequence[Collate]) -> Collate:
    """Makes a batch of pairs of task and example, all of one task: that of the task's own function, and
    ``task``."""

    def collate(chosen: list[tuple[int, Any]]) -> dict[str, Any]:
        tasks = {task for task, _ in chosen}
        if len(tasks) > 1:
            raise ValueError(f"a batch holds examples of several tasks: {sorted(tasks)}")
        (task,) = tasks
        return {"task": task, **collates[task]([example for _, example in chosen])}

    return collate


def proportions_of(text: str, sizes: Sequence[int] | None = None) -> list[Fraction]:
    """Shares of the tasks: ``"equal"``, ``"size"`` (by their examples) or a number for each, ``"2,1"``.

    Without ``sizes`` the text is only checked. Raises ValueError for anything else, numbers that are not
    positive, and another number of them than there are tasks.
    """
    if text in ("equal", "size"):
        counts = sizes or []
        return [Fraction(1 if text == "equal" else count) for count in counts]
    try:
        shares = [Fraction(part.strip()) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        shares = []
    if not shares or min(shares) <= 0:
        raise ValueError(
            f"proportions must be 'equal', 'size' or a positive number for each task, not {text!r}"
        )
    if sizes is not None and len(shares) != len(sizes):
        raise ValueError(f"proportions {text!r} are {len(shares)} for {len(sizes)} tasks")
    return shares
