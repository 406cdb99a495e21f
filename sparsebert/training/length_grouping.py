"""Batches of examples of similar length, which need far less padding. An epoch keeps all its examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

# Examples are sorted by length within random groups of this many batches: large enough that the lengths in a
# batch are similar, small enough that batches differ from epoch to epoch.
_BATCHES_IN_A_GROUP = 50


class LengthGroupedSampler(Sampler[int]):
    """Samples examples in random order, with similar lengths within each batch.

    The order of an epoch depends only on the seed and the epoch's number, so a resumed run sees the same
    batches. The sampler of transformers draws from the global random state instead, and yields the batches of
    a group from longest to shortest; this sampler shuffles them.

    Args:
        examples: A dataset of dicts with ``input_ids``. Its attribute ``lengths``, if present, holds the
            lengths.
        batch_size: Examples of an optimizer step.
        seed: Seed of the order.
    """

    def __init__(self, examples: Any, batch_size: int, seed: int) -> None:
        lengths = getattr(examples, "lengths", None)
        if lengths is None:
            lengths = [len(examples[index]["input_ids"]) for index in range(len(examples))]
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration. The training loop calls this before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng((self._seed, self._epoch))
        order = random.permutation(len(self))
        group = self._batch_size * _BATCHES_IN_A_GROUP
        groups = [order[begin : begin + group] for begin in range(0, len(order), group)]
        order = np.concatenate([each[np.argsort(self._lengths[each], kind="stable")] for each in groups])
        # The last, incomplete batch stays at the end.
        full = len(order) // self._batch_size * self._batch_size
        batches = random.permutation(order[:full].reshape(-1, self._batch_size))
        return iter([*batches.ravel().tolist(), *order[full:].tolist()])
