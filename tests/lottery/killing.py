"""Kills in mid-run: an exception that nothing in the loop catches is as good as a kill for files."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any


class Killed(BaseException):
    """The death of a process."""


def dying(collate: Callable[[Any], Any], batch: int | None) -> Callable[[Any], Any]:
    """Return a ``collate`` that dies while it makes this batch, counted from 1; None for one that lives."""
    numbers = count(1)

    def collate_or_die(examples: Any) -> Any:
        if next(numbers) == batch:
            raise Killed
        return collate(examples)

    return collate_or_die
