"""Records of the commands, which name the machine that they were made on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def stamped(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of this kind with this machine as its field ``environment``."""
    from sparsebert import results
    from sparsebert.bench.environment import detect

    return results.stamp(kind, {**fields, "environment": detect().record()})
