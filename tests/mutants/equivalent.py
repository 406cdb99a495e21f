"""Mutants that tests need not find, with the reason, by id.

Ids of generated mutants change with the line that they are planted in.
"""

from __future__ import annotations

# They change nothing that a caller can observe.
EQUIVALENT: dict[str, str] = {
    "cpu-strided-input": "the kernels read x at token * stride + column only: overlapping rows give the same "
    "results with and without the copy",
}

# They change what only a machine of another kind can observe.
SURVIVORS: dict[str, str] = {}
