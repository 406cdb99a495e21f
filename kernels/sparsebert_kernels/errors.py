"""The error for an unknown name, which suggests the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: object, names: Iterable[str]) -> ValueError:
    """Return the error to raise for a ``name`` that is not among the ``names`` of this ``kind``."""
    options = sorted(names)
    nearest = difflib.get_close_matches(str(name), options, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return ValueError(f"unknown {kind} {name!r}; known: {', '.join(options) or 'none'}{hint}")
