"""Results on disk: JSON lines, one row a result. `benchmarks/README.md` documents the fields."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

SCHEMA = 1

Record = dict[str, Any]


def stamp(kind: str, fields: Mapping[str, Any]) -> Record:
    """A record of this kind ("bench", "layer", "environment", ...), with schema version and UTC time."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"schema": SCHEMA, "kind": kind, "timestamp": now, **fields}


def append(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Add `records` to the file, all of them or none; rows that are there already are kept as they are.

    Raises ValueError where the folder does not exist or a value is no JSON.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise ValueError(f"cannot write {target}: the folder {target.parent} does not exist")
    try:
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot write {target}: a record is no plain JSON ({error})") from None
    with _locked(target.parent):
        earlier = target.read_bytes() if target.exists() else b""
        if earlier and not earlier.endswith(b"\n"):
            earlier += b"\n"
        _replace(target, earlier + lines.encode())


def read(path: str | os.PathLike[str], kind: str | None = None) -> list[Record]:
    """The records of a file (of one kind, where `kind` is given), oldest first.

    Raises ValueError naming file and line for what is no record, or one of a newer schema.
    """
    source = Path(path)
    try:
        # By line feeds alone: JSON's strings may hold what Unicode knows as other ends of lines.
        lines = source.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = "no text in UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ValueError(f"cannot read results from {source}: {reason}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{source}:{number} is no JSON: {error}") from None
        if not _is_stamped(record):
            raise ValueError(
                f"{source}:{number} is no result record: it lacks 'schema' (a number) and 'kind' (a name)"
            )
        if record["schema"] > SCHEMA:
            raise ValueError(
                f"{source}:{number} has schema {record['schema']}; this version reads up to {SCHEMA}"
            )
        if kind is None or record["kind"] == kind:
            records.append(record)
    return records


def _is_stamped(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("schema"), int)
        and isinstance(record.get("kind"), str)
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's advisory lock, so that two benchmarks writing one file both keep their rows."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(target: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, target.stat().st_mode & 0o777 if target.exists() else 0o644)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
