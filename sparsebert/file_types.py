"""Paths that are not regular files: links, devices, pipes and open files such as ``/dev/stdout``."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}
# A chain of links longer than this does not lead to an open file.
_MAX_LINKS = 8


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise ValueError for a folder, pipe, socket or device: reading it fails, or may never end.

    An open file (``/dev/stdin``, or ``/dev/fd/63`` as the shell names the output of a command), the empty
    device ``/dev/null`` and a missing file pass.
    """
    file = Path(path)
    if not file.exists() or file.is_file() or descriptor(file) is not None:
        return
    if not os.path.samefile(file, os.devnull):
        raise ValueError(f"{file} is {_kind(file)}; expected a regular file")


def write_problem(path: Path) -> str | None:
    """Return why no file or folder can be written to ``path``, or None. A link stands for its target."""
    if is_stream(path):
        return None if os.access(path, os.W_OK) else "no permission"
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        return "it is a loop of links"
    if not target.parent.is_dir():
        return f"the folder {target.parent if path.is_symlink() else path.parent} does not exist"
    if target.exists() and not (target.is_file() or target.is_dir()):
        return f"it is {_kind(target)}; name a regular file"
    if not all(os.access(each, os.W_OK) for each in (target.parent, target) if each.exists()):
        return "no permission"
    return None


def is_stream(path: Path) -> bool:
    """Return whether ``path`` is a character device or an open file, which are written to in place."""
    return descriptor(path) is not None or path.is_char_device()


def descriptor(path: Path) -> int | None:
    """Return the file descriptor that ``path`` stands for (1 for ``/dev/stdout``), or None.

    Opening such a path would write to a file from its start, over what the process has already written there.
    """
    descriptors = os.path.realpath("/dev/fd")
    for _ in range(_MAX_LINKS):
        if path.name.isdecimal() and os.path.realpath(path.parent) == descriptors:
            return int(path.name) if path.exists() else None
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    return None


def _kind(path: Path) -> str:
    return _KINDS.get(stat.S_IFMT(path.stat().st_mode), "not a regular file")
