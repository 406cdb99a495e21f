"""Error messages: unknown names with a suggestion, and another library's error in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# More names are not listed by an error.
_MOST_LISTED = 32


def first_line(error: BaseException | str) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def one_line(error: BaseException | str, most: int = 200) -> str:
    """Return an error's whole message in one line, cut off after ``most`` characters, or the type's name."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."


def unknown(kind: str, name: object, names: Iterable[str]) -> ValueError:
    """Return the error to raise for a ``name`` that is not among the ``names`` of this ``kind``.

    It lists the names, or the nearest ones and how many there are if a line cannot hold all.
    """
    options = sorted(names)
    if len(options) > _MOST_LISTED:
        nearest = difflib.get_close_matches(str(name), options, n=3, cutoff=0.0)
        return ValueError(f"unknown {kind} {name!r}; nearest of {len(options)}: {', '.join(nearest)}")
    nearest = difflib.get_close_matches(str(name), options, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return ValueError(f"unknown {kind} {name!r}; known: {', '.join(options) or 'none'}{hint}")
