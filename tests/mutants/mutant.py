"""A mutant: one deliberate fault in one source file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


class StaleMutantError(ValueError):
    """The text that the mutant replaces does not occur exactly once."""


@dataclass(frozen=True)
class Mutant:
    """One replacement in the file ``path``, relative to the root of the repository.

    ``old`` occurs once in the file, or starts at the beginning of ``line`` where that is given.
    """

    id: str
    path: str
    old: str
    new: str
    fault: str
    line: int | None = None

    @property
    def package(self) -> str:
        """The source folder that the fault is planted in."""
        return str(Path(self.path).parent)

    @property
    def is_native(self) -> bool:
        return self.path.endswith((".cpp", ".h"))

    @property
    def fingerprint(self) -> str:
        """Digest of the replacement: results of an earlier run are valid for the same one only."""
        text = "\0".join((self.path, self.old, self.new))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def position(self, source: str) -> int:
        """Return the offset of ``old`` in the file's text.

        Raises:
            StaleMutantError: ``old`` is missing or ambiguous.
        """
        if self.line is not None:
            start = sum(len(line) + 1 for line in source.split("\n")[: self.line - 1])
            if not source.startswith(self.old, start):
                raise StaleMutantError(f"{self.id}: {self.path}:{self.line} does not read {self.old!r}")
            return start
        count = source.count(self.old)
        if count != 1:
            raise StaleMutantError(f"{self.id}: {self.path} has {self.old!r} {count} times, expected once")
        return source.index(self.old)

    def apply(self, source: str) -> str:
        """Return the file's text with the fault in it."""
        start = self.position(source)
        return source[:start] + self.new + source[start + len(self.old) :]

    def location(self, source: str) -> str:
        return f"{self.path}:{source.count(chr(10), 0, self.position(source)) + 1}"


def read_source(root: Path, path: str) -> str:
    """Return the text of a source file.

    Raises:
        StaleMutantError: There is no such file.
    """
    try:
        return (root / path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StaleMutantError(f"{path} does not exist") from None
