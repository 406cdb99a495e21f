"""Mutants that tests need not find, with the reason, by id.

Ids of generated mutants change with the line that they are planted in.
"""

from __future__ import annotations

# They change nothing that a caller can observe.
EQUIVALENT: dict[str, str] = {
    "cpu-strided-input": "the kernels read x at token * stride + column only: overlapping rows give the same "
    "results with and without the copy",
    "super_tickets-flag-0616587dbe": "the repr of a private method object, which no message quotes",
}

# They change what only a machine of another kind can observe.
SURVIVORS: dict[str, str] = {}
