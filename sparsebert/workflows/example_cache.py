"""Examples of tasks that several runs of one process share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from sparsebert.tasks import Data, EncodedOnce, Task, TaskData
from sparsebert.workflows.assemble import load_once


class DataSource(Protocol):
    """Options that name the data of tasks; equal options name the same data."""

    def source(self, task: str, /) -> Data:
        """Return the origin of a task's examples."""

    def __hash__(self) -> int: ...


class ExampleCache:
    """Examples by task and origin: read and encoded once, and kept as long as the cache.

    Attributes:
        encode: :func:`sparsebert.tasks.encode` with a cache.
    """

    def __init__(self) -> None:
        self.encode = EncodedOnce()
        self._sources: dict[tuple[DataSource, str], Data] = {}
        # By name, the names of a label map, and origin.
        self._loaded: dict[tuple[str, tuple[str, ...], str | None], TaskData] = {}

    def source(self, options: DataSource, task: str) -> Data:
        """Return the origin of a task's examples, for the user's files the examples themselves."""
        key = options, task
        if key not in self._sources:
            self._sources[key] = options.source(task)
        return self._sources[key]

    def load(self, folders: Iterable[Path], task: Task, source: Data) -> Data:
        """Load the examples for the runs in these folders; return ``source`` if all runs are finished.

        Raises:
            ValueError: As :func:`sparsebert.tasks.load`.
        """
        if isinstance(source, TaskData):
            return source
        key = task.name, task.model_labels, None if source is None else str(source)
        if key not in self._loaded:
            loaded = load_once(folders, task, source)
            if not isinstance(loaded, TaskData):
                return loaded
            self._loaded[key] = loaded
        return self._loaded[key]
