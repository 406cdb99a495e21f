"""Wording of errors: an unknown name with the nearest known one, and the first line of another error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error to raise when ``name`` is not one of the ``known`` names of this ``kind``."""
    options = sorted(known)
    nearest = difflib.get_close_matches(str(name), options, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return ValueError(f"unknown {kind} {name!r}; known: {', '.join(options) or 'none'}{hint}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type where it has no message."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
