"""Atomic writes: a file or folder appears complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import resource
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sparsebert.file_types import descriptor, is_stream, write_problem

_TEMPORARY = re.compile(r"\..+\.tmp")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# safetensors and tokenizers report "(os error 28)"; shutil.copytree lists its errors as "[Errno 28]".
_NUMBERED = re.compile(r"(?:os error |Errno )(\d+)")
# Messages about a full disk without a number: two of torch, one of numpy.
_UNNUMBERED = re.compile(r"file write failed|unexpected pos \d+ vs|\d+ requested and \d+ written")


class DiskFullError(OSError):
    """A file could not be completed. The message names the file, the space that it needs and the free space.

    Args:
        path: The file or folder.
        number: Error number: ENOSPC, EDQUOT or EFBIG.
        needed: Bytes that the content needs.
        free: Bytes that were free before.
        at_least: Whether the content may need more.
    """

    def __init__(self, path: Path, number: int, needed: int, free: int, *, at_least: bool = False) -> None:
        need = f"{'more than ' * at_least}{format_bytes(needed)} needed"
        room = f"{format_bytes(free)} free"
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if limit != resource.RLIM_INFINITY and (number == errno.EFBIG or free > needed):
            number = errno.EFBIG  # torch does not tell a limit from a full disk
            room = f"{format_bytes(limit)} allowed by the limit of file sizes (ulimit -f)"
        super().__init__(f"cannot write {path}: {os.strerror(number)}: {need}, {room}")
        self.errno = number


@contextlib.contextmanager
def replacing(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary path; the file or folder written there replaces ``path`` on exit.

    The content is flushed to disk before it is renamed. If ``path`` is a link, its target is replaced. A
    replaced file keeps its permissions and, where the system allows it, its owner; a new one gets the
    permissions that the umask allows. A character device or open file (``/dev/null``, ``/dev/stdout``,
    ``/dev/fd/3``) is written to in place.

    If the block raises, the temporary path is deleted and ``path`` stays as it was. A killed process leaves
    the temporary path behind; the next call for the same ``path`` deletes it, as does :func:`sweep`.

    Args:
        path: The file or folder to replace.
        needed: Size of the content in bytes if it is known, for the message about a full disk.

    Raises:
        FileNotFoundError: The parent folder of ``path`` does not exist.
        IsADirectoryError: The block wrote a file, but ``path`` is a folder.
        NotADirectoryError: The block wrote a folder, but ``path`` is a file or device.
        DiskFullError: The disk is full.
        OSError: ``path`` is a pipe, a socket, a block device or a loop of links, or is not writable.
    """
    if problem := write_problem(path):
        error = FileNotFoundError if "does not exist" in problem else OSError
        raise error(f"cannot write {path}: {problem}")
    in_place = is_stream(path)
    target = path if in_place else Path(os.path.realpath(path))
    home = Path(tempfile.gettempdir()) if in_place else target.parent
    # Measured first: after an error, libraries may still hold the file, which takes space until it is closed.
    written, free = 0, _free(home)
    try:
        with _private_folder(home, target.name) as folder:
            temporary = folder / target.name
            try:
                yield temporary
                if in_place:
                    _copy_into(temporary, path)
                else:
                    _install(temporary, target)
            except Exception:
                written = size_on_disk(temporary)
                raise
    except Exception as error:
        if (number := _full_disk(error)) is None:
            raise
        size = written if needed is None else needed
        raise DiskFullError(path, number, size, free, at_least=needed is None) from error


@contextlib.contextmanager
def disk_errors(path: Path, needed: int) -> Iterator[None]:
    """Turn the errors of all libraries about a full disk into :class:`DiskFullError`.

    Args:
        path: File or folder that the block writes to.
        needed: Bytes that the block writes.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if (number := _full_disk(error)) is None:
            raise
        raise DiskFullError(path, number, needed, _free(path)) from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to the file ``path`` in UTF-8, atomically (:func:`replacing`)."""
    content = text.encode()
    with replacing(path, len(content)) as temporary:
        temporary.write_bytes(content)


def sweep(folder: Path, name: str | None = None) -> None:
    """Delete the temporary files and folders that killed processes left in ``folder``.

    Those of running processes are locked and stay.

    Args:
        folder: The folder.
        name: Name of the file or folder whose temporary files to delete; None for all.
    """
    pattern = _TEMPORARY if name is None else re.compile(rf"\.{re.escape(name[:40])}\.[0-9a-f]+\.tmp")
    for path in [each for each in folder.iterdir() if pattern.fullmatch(each.name)]:
        # Fails if another process holds the lock, has deleted the path, or owns it as another user.
        with contextlib.suppress(OSError), locked(path):
            _delete(path)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock a file or folder. The system releases the lock when the process is killed.

    Args:
        path: The file or folder.
        wait: Wait for another process that holds the lock.

    Raises:
        BlockingIOError: Another process holds the lock.
        OSError: The path does not exist or is a link, or the file system has no locks.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def size_on_disk(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def format_bytes(count: int) -> str:
    """Return a number of bytes with a unit, such as "1.5 MB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"


@contextlib.contextmanager
def _private_folder(home: Path, name: str) -> Iterator[Path]:
    """Yield a new folder in ``home``, locked against :func:`sweep`, and delete it on exit."""
    sweep(home, name)
    with contextlib.ExitStack() as stack:
        while True:
            # The name is truncated: with the suffix, a long one would exceed the file system's 255 bytes.
            folder = home / f".{name[:40]}.{secrets.token_hex(6)}.tmp"
            folder.mkdir(0o700)
            try:
                stack.enter_context(locked(folder))
            except (BlockingIOError, FileNotFoundError):
                continue  # Another process swept the folder before it was locked.
            except OSError:
                break  # A file system without locks, on which no process sweeps either.
            if folder.exists():
                break
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def _install(temporary: Path, target: Path) -> None:
    """Flush the temporary file or folder, and rename it to ``target``."""
    _allow_readers(temporary)
    if temporary.is_file():
        if target.is_dir():
            raise IsADirectoryError(f"cannot write {target}: it is a folder")
        if target.exists():
            _copy_permissions(target, temporary)
    elif target.is_file():
        raise NotADirectoryError(f"cannot write the folder {target}: it is a file")
    for file in [temporary] if temporary.is_file() else temporary.rglob("*"):
        if file.is_file():
            _sync(file)
    if target.is_dir():
        _replace_folder(temporary, target)
    else:
        os.replace(temporary, target)
    _sync(target.parent)


def _allow_readers(temporary: Path) -> None:
    """Give new files the permissions of the umask: those of safetensors are readable by their owner only."""
    sample = temporary.with_name(".permissions")
    sample.touch()
    for file in [temporary] if temporary.is_file() else temporary.rglob("*.safetensors"):
        file.chmod(stat.S_IMODE(sample.stat().st_mode))


def _replace_folder(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``, whose old content is deleted only after that, with the parent of ``new``.

    A rename cannot replace a folder that holds files, so the old one is renamed first. If the second rename
    fails, it gets its name back.
    """
    _copy_permissions(path, new)
    old = new.with_name(".replaced")
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise


def _copy_permissions(source: Path, target: Path) -> None:
    """Copy owner and mode; the owner only where the system allows it."""
    status = source.stat()
    with contextlib.suppress(OSError):
        os.chown(target, status.st_uid, status.st_gid)
    target.chmod(stat.S_IMODE(status.st_mode))  # Last, because a change of the owner clears bits of the mode.


def _copy_into(content: Path, path: Path) -> None:
    """Write the bytes of a file to a device, or to a file that this process holds open."""
    if content.is_dir():
        raise NotADirectoryError(f"cannot write the folder {path}: it is a device or an open file")
    sys.stdout.flush()
    number = descriptor(path)
    handle = os.open(path, os.O_WRONLY | os.O_NOCTTY) if number is None else os.dup(number)
    with open(content, "rb") as source, open(handle, "wb") as target:
        shutil.copyfileobj(source, target)


def _full_disk(error: Exception) -> int | None:
    """Return the number of an error about a full disk; None for another error."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _FULL else None
    for number in map(int, _NUMBERED.findall(str(error))):
        if number in _FULL:
            return number
    return errno.ENOSPC if _UNNUMBERED.search(str(error)) else None


def _free(path: Path) -> int:
    """Return the free bytes of the file system of a path, which need not exist."""
    real = Path(os.path.realpath(path))
    return shutil.disk_usage(next(each for each in (real, *real.parents) if each.is_dir())).free


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
