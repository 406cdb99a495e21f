"""Atomic writes: a file or folder appears complete or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

_TEMPORARY = ".*.tmp"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; the file or folder written there replaces ``path`` on exit.

    The content is flushed to disk before it is renamed. A replaced file keeps its permissions; a new one gets
    those that the umask allows. If the block raises, the temporary path is deleted and ``path`` stays as it
    was. A killed process leaves the temporary path behind, for :func:`sweep` to delete.

    Raises:
        FileNotFoundError: The parent folder of ``path`` does not exist.
        IsADirectoryError: The block wrote a file, but ``path`` is a folder.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist")
    temporary = _temporary_beside(path)
    try:
        yield temporary
        if temporary.is_file():
            if path.is_dir():
                raise IsADirectoryError(f"cannot write {path}: it is a folder")
            if path.exists():
                temporary.chmod(path.stat().st_mode & 0o777)
        for file in [temporary] if temporary.is_file() else temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        if path.is_dir():
            _replace_folder(temporary, path)
        else:
            os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            _delete(temporary)
        raise


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to the file ``path`` in UTF-8, atomically (:func:`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sweep(folder: Path) -> None:
    """Delete the temporary files and folders that killed processes left in ``folder``.

    Call it only while holding the folder's lock: it also deletes the temporary files of running processes.
    """
    for path in folder.glob(_TEMPORARY):
        _delete(path)


def _replace_folder(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``, whose old content is deleted only after that.

    A rename cannot replace a folder that holds files, so the old one is renamed first. If the second rename
    fails, it gets its name back.
    """
    old = _temporary_beside(path)
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    _delete(old)


def _temporary_beside(path: Path) -> Path:
    # The name is truncated: with the suffix, a long one would exceed the file system's limit of 255 bytes.
    return path.with_name(_TEMPORARY.replace("*", f"{path.name[:40]}.{secrets.token_hex(6)}"))


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
