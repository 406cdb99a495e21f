"""A candidate for a generated mutant: one replaced span of a source file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """Replacement of ``source[start:end]`` by ``text``, made by ``rule`` in ``function``."""

    start: int
    end: int
    text: str
    rule: str
    function: str

    def lines(self, source: str) -> tuple[int, str, str]:
        """Return the first line's number and the whole lines before and after the replacement."""
        begin = source.rfind("\n", 0, self.start) + 1
        stop = source.find("\n", self.end)
        stop = len(source) if stop < 0 else stop
        old = source[begin:stop]
        new = source[begin : self.start] + self.text + source[self.end : stop]
        return source.count("\n", 0, begin) + 1, old, new
