"""Mutants that change nothing that a caller can observe, with the reason."""

from __future__ import annotations

# By the mutant's id. Ids of generated mutants change with the line that they are planted in.
EQUIVALENT: dict[str, str] = {}
