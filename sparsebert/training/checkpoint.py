"""Complete checkpoints of the Trainer."""

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
    """A folder ``checkpoint-<step>`` with a mark that is written last.

    Attributes:
        path: The folder.
        step: Optimizer step of the checkpoint.
        seconds: Training time of the round until then, over all sessions.
    """

    path: Path
    step: int
    seconds: float

    @classmethod
    def latest(cls, folder: Path) -> Checkpoint | None:
        """Return the newest complete checkpoint, and delete those that a killed process left incomplete."""
        complete = []
        for path in folder.glob("checkpoint-*"):
            if (path / _MARK).is_file():
                complete.append(cls(path, **json.loads((path / _MARK).read_text())))
            else:
                shutil.rmtree(path)
        return max(complete, key=lambda checkpoint: checkpoint.step, default=None)

    def mark(self) -> None:
        """Mark the folder as complete."""
        write_text(self.path / _MARK, json.dumps({"step": self.step, "seconds": self.seconds}))

    def copy_to(self, path: Path, *, seconds: float, change: Callable[[Path], object] | None = None) -> None:
        """Write a complete copy, whole or not at all. ``change`` may edit it before it is marked."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            shutil.copytree(self.path, unfinished)
            if change is not None:
                change(unfinished)
            Checkpoint(unfinished, self.step, seconds).mark()
