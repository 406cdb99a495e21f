"""Batches of examples of about the same length: far less padding, the same examples in an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

# Examples are sorted within random groups of so many batches: enough of them for batches of one length,
# few enough for batches that differ from epoch to epoch.
_BATCHES_IN_A_GROUP = 50


class LengthGrouped(Sampler[int]):
    """Indices of examples in random order, but those of a batch have about the same length.

    ``examples``: dicts with ``input_ids``; ``batch_size``: examples of an optimizer step. The order of an
    epoch follows from ``seed`` and the epoch's number alone, so that a run which is resumed sees the same
    batches. transformers' own sampler draws from the global random state instead, and hands out the batches
    of a group from the longest to the shortest; here they are shuffled.
    """

    def __init__(self, examples: Any, batch_size: int, seed: int) -> None:
        known = getattr(examples, "lengths", None)
        if known is None:
            known = [len(examples[index]["input_ids"]) for index in range(len(examples))]
        self._lengths = np.asarray(known)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is; the training loop says so before each."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng((self._seed, self._epoch))
        order = random.permutation(len(self))
        group = self._batch_size * _BATCHES_IN_A_GROUP
        groups = [order[begin : begin + group] for begin in range(0, len(order), group)]
        order = np.concatenate([each[np.argsort(self._lengths[each], kind="stable")] for each in groups])
        # What is left over for a batch that is not full comes last.
        full = len(order) // self._batch_size * self._batch_size
        batches = random.permutation(order[:full].reshape(-1, self._batch_size))
        return iter([*batches.ravel().tolist(), *order[full:].tolist()])
