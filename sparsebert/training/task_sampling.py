"""Alternating batches of several tasks; each batch holds examples of a single task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from torch.utils.data import Sampler

Collate = Callable[[list[Any]], dict[str, Any]]


class TaskSampler(Sampler[int]):
    """Samples indices into the concatenated examples of all tasks so that each batch has a single task.

    The next batch belongs to the task that is furthest behind its share of the batches so far; on a tie, to
    the first such task. With equal shares, tasks alternate. The examples of a task come in random order, pass
    after pass, and a batch at the end of a pass is filled up from the next pass. The order depends only on
    the seed and the epoch's number, so a resumed run sees the same batches. The number of batches in an epoch
    is the number of all examples divided by the batch size, rounded up: with shares by size, an epoch is
    about one pass over each task.

    Args:
        sizes: Number of examples of each task.
        shares: Shares of the batches, positive, in any unit.
        batch_size: Examples of a batch.
        seed: Seed of the order.
    """

    def __init__(self, sizes: Sequence[int], shares: Sequence[Fraction], batch_size: int, seed: int) -> None:
        self._sizes = sizes
        self._shares = [Fraction(share, sum(shares)) for share in shares]
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration. The training loop calls this before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return math.ceil(sum(self._sizes) / self._batch_size) * self._batch_size

    def __iter__(self) -> Iterator[int]:
        streams = [self._stream(task) for task in range(len(self._sizes))]
        for task in self.batch_tasks():
            yield from (next(streams[task]) for _ in range(self._batch_size))

    def batch_tasks(self) -> Iterator[int]:
        """Yield the task of each batch of an epoch."""
        batches = [0] * len(self._shares)
        for number in range(1, len(self) // self._batch_size + 1):
            behind = [share * number - count for share, count in zip(self._shares, batches, strict=True)]
            task = behind.index(max(behind))
            batches[task] += 1
            yield task

    def _stream(self, task: int) -> Iterator[int]:
        random = np.random.default_rng((self._seed, self._epoch, task))
        first = sum(self._sizes[:task])
        while True:
            yield from (first + random.permutation(self._sizes[task])).tolist()


class TaskMixture:
    """The examples of several tasks as one dataset of pairs (task, example).

    Args:
        examples: Task -> its examples.
        proportions: Shares of the batches, see :func:`proportions_of`.

    Raises:
        ValueError: A task has no examples, or the proportions are invalid.
    """

    def __init__(self, examples: Mapping[str, Any], proportions: str) -> None:
        for name, each in examples.items():
            if not len(each):
                raise ValueError(f"task {name} needs at least one example to train on, got 0")
        self._examples = list(examples.values())
        self._ends = np.cumsum([len(each) for each in self._examples])
        self._shares = proportions_of(proportions, [len(each) for each in self._examples])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[int, Any]:
        task = int(np.searchsorted(self._ends, index, side="right"))
        return task, self._examples[task][index - int(self._ends[task]) + len(self._examples[task])]

    def sampler(self, batch_size: int, seed: int) -> TaskSampler:
        """Return the sampler of the training order."""
        return TaskSampler([len(each) for each in self._examples], self._shares, batch_size, seed)


def collate_one_task(collates: Sequence[Collate]) -> Collate:
    """Return a function that collates pairs (task, example) of a single task.

    The task's function in ``collates`` makes the batch; then ``task`` is added to it.
    """

    def collate(pairs: list[tuple[int, Any]]) -> dict[str, Any]:
        tasks = {task for task, _ in pairs}
        if len(tasks) > 1:
            raise ValueError(f"a batch must hold examples of a single task, got tasks {sorted(tasks)}")
        (task,) = tasks
        return {"task": task, **collates[task]([example for _, example in pairs])}

    return collate


def proportions_of(text: str, sizes: Sequence[int] | None = None) -> list[Fraction]:
    """Parse the shares of the tasks.

    Args:
        text: "equal", "size" (by number of examples), or a positive number for each task, "2,1".
        sizes: Number of examples of each task; None to check the text alone.

    Returns:
        The shares, in any unit.

    Raises:
        ValueError: The text has another form, or its number of shares is not the number of tasks.
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
            f"proportions must be 'equal', 'size' or a positive number for each task, got {text!r}"
        )
    if sizes is not None and len(shares) != len(sizes):
        raise ValueError(f"proportions must name {len(sizes)} tasks, got {len(shares)} numbers: {text!r}")
    return shares
