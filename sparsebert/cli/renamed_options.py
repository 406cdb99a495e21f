"""Former names of options, which keep working for one release after a renaming."""

from __future__ import annotations

import sys
from collections.abc import Sequence

# Command -> former name -> name.
RENAMED = {
    "train": {
        "--every": "--mask-interval",
        "--first": "--first-sparsity",
        "--of": "--magnitudes-of",
        "--share": "--step-relative-to",
        "--within": "--shuffle-within",
        "--draw": "--draw-by",
    }
}


def with_current_names(arguments: Sequence[str]) -> list[str]:
    """Return the command line with former option names replaced; each prints one line on stderr."""
    names = RENAMED.get(arguments[0], {}) if arguments else {}
    current = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in names:
            print(f"sparsebert: {name} is deprecated; use {names[name]}", file=sys.stderr)
            argument = names[name] + equals + value
        current.append(argument)
    return current
