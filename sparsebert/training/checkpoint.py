"""Complete checkpoints of the Trainer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from sparsebert.atomic import replacing, size_on_disk, write_text

# Copies of each trained parameter in a checkpoint: its value and AdamW's two moments.
TRAINED_COPIES = 3
_MARK = "complete.json"


def checkpoint_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's checkpoint: its weights, and the moments of the trained ones."""
    return sum(each.nbytes * (TRAINED_COPIES if each.requires_grad else 1) for each in model.parameters())


@dataclass(frozen=True)
class Checkpoint:
    """A folder ``checkpoint-<step>`` that is complete once it holds its mark, the file written last.

    Attributes:
        path: The folder.
        step: Optimizer step of the checkpoint.
        seconds: Training time of the round up to this step, over all sessions.
    """

    path: Path
    step: int
    seconds: float

    @classmethod
    def latest(cls, folder: Path) -> Checkpoint | None:
        """Return the newest complete checkpoint, or None, and delete incomplete ones of a killed process."""
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
        """Write a complete copy, whole or not at all.

        Args:
            path: Folder of the copy.
            seconds: Training time to record in the copy.
            change: Edits the copy before it is marked.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, size_on_disk(self.path)) as unfinished:
            shutil.copytree(self.path, unfinished)
            if change is not None:
                change(unfinished)
            Checkpoint(unfinished, self.step, seconds).mark()
