"""Whether Triton's interpreter runs with the versions that are installed."""

from __future__ import annotations

import importlib.metadata
import re

# Before Triton 3.7, the interpreter makes Python scalars of arrays with one element, which NumPy 2.4 refuses.
FIRST_FIXED_TRITON = (3, 7)
FIRST_STRICT_NUMPY = (2, 4)


def why_broken() -> str | None:
    """Return why no kernel runs in the interpreter here, as text; None if they do."""
    try:
        triton, numpy = (importlib.metadata.version(name) for name in ("triton", "numpy"))
    except importlib.metadata.PackageNotFoundError as missing:
        return f"{missing.name} is not installed"
    if _release(triton) < FIRST_FIXED_TRITON and _release(numpy) >= FIRST_STRICT_NUMPY:
        return f"triton {triton} has an interpreter that needs numpy below 2.4, numpy {numpy} is installed"
    return None


def _release(version: str) -> tuple[int, ...]:
    """Return major and minor version."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
