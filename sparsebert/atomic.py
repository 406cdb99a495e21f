"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write a file or a folder to; at the end it takes the place of ``path``.

    On an error, what was written goes away and ``path`` stays as it was. A process that is killed leaves at
    most a name that starts with a dot and ends with ``.tmp``: see :func:`sweep`.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        yield unfinished
        for file in [unfinished] if unfinished.is_file() else unfinished.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(unfinished, path)
        _sync(path.parent)
    except BaseException:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.unlink(missing_ok=True)
        raise


def sweep(folder: Path) -> None:
    """Delete what killed processes left unfinished in the folder; only for the one that holds its lock."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
