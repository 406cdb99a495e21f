"""The file that holds what a one-shot run has finished, so that a killed run goes on after it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsebert.atomic import replacing

_RUN, _ERRORS, _NOTES = "run", "errors", "notes"


class ProgressFile:
    """Finished parts of a run.

    Without a path nothing is kept: ``tensors``, ``errors`` and ``notes`` stay empty.

    Args:
        path: The file; None keeps nothing.
        run: Description of the run, JSON values: the file of another run is refused.

    Attributes:
        tensors: Weights, biases and masks of finished matrices, and whatever else a method stores, by name.
        errors: Error of each finished matrix, by key.
        notes: JSON values by name, such as the densities that were allocated.

    Raises:
        ValueError: The file exists and belongs to another run, or is not such a file.
    """

    def __init__(self, path: Path | None = None, run: Mapping[str, Any] | None = None) -> None:
        self._path = path
        self._run = json.dumps(run or {}, sort_keys=True, default=str)
        self.tensors: dict[str, Tensor] = {}
        self.errors: dict[str, float] = {}
        self.notes: dict[str, Any] = {}
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError:
            raise ValueError(f"{path} is not the checkpoint of a one-shot run: delete it") from None
        if metadata.get(_RUN) != self._run:
            raise ValueError(
                f"{path} belongs to a run with other options, data or weights: delete it, or choose another "
                "file"
            )
        self.tensors, self.errors = tensors, json.loads(metadata[_ERRORS])
        self.notes = json.loads(metadata.get(_NOTES, "{}"))

    def has(self, key: str) -> bool:
        """Whether a matrix is finished."""
        return key in self.errors

    def add(
        self,
        tensors: Mapping[str, Tensor] | None = None,
        errors: Mapping[str, float] | None = None,
        *,
        instead: bool = False,
        **notes: Any,
    ) -> None:
        """Add finished parts, ``instead`` of all tensors so far, and write the file, whole or not at all."""
        if self._path is None:
            return
        added = {name: tensor.detach().cpu().contiguous() for name, tensor in (tensors or {}).items()}
        self.tensors = added if instead else self.tensors | added
        self.errors |= errors or {}
        self.notes |= notes
        metadata = {_RUN: self._run, _ERRORS: json.dumps(self.errors), _NOTES: json.dumps(self.notes)}
        with replacing(self._path, sum(tensor.nbytes for tensor in self.tensors.values())) as unfinished:
            save_file(self.tensors, unfinished, metadata=metadata)
