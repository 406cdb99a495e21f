"""Checkpoints of the Trainer that were written to their end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparsebert.atomic import replacing, write_text

_MARK = "complete.json"


@dataclass(frozen=True)
class Checkpoint:
    """A folder ``checkpoint-<step>`` with a mark that was written after all else.

    ``seconds``: training time of the round up to it, over all the sessions that led there.
    """

    path: Path
    step: int
    seconds: float

    @classmethod
    def latest(cls, folder: Path) -> Checkpoint | None:
        """The newest complete one in the folder; what a killed process left incomplete is deleted."""
        found = []
        for path in folder.glob("checkpoint-*"):
            if (path / _MARK).is_file():
                found.append(cls(path, **json.loads((path / _MARK).read_text())))
            else:
                shutil.rmtree(path)
        return max(found, key=lambda each: each.step, default=None)

    def mark(self) -> None:
        """Say that the folder is complete."""
        write_text(self.path / _MARK, json.dumps({"step": self.step, "seconds": self.seconds}))

    def copy_to(self, path: Path, *, seconds: float, change: Callable[[Path], object] | None = None) -> None:
        """A complete copy at ``path``, whole or not at all; ``change`` may edit it before it counts."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            shutil.copytree(self.path, unfinished)
            if change is not None:
                change(unfinished)
            Checkpoint(unfinished, self.step, seconds).mark()
