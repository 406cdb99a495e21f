"""The one wording for a name that is not known, with the nearest known name offered."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error to raise when ``name`` is not one of the ``known`` names of this ``kind``."""
    options = sorted(known)
    nearest = difflib.get_close_matches(str(name), options, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return ValueError(f"unknown {kind} {name!r}; known: {', '.join(options) or 'none'}{hint}")
