"""Result records in JSON Lines files, one line a record; ``benchmarks/README.md`` documents the fields."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sparsebert.atomic import locked, replacing
from sparsebert.file_types import is_stream, require_regular, write_problem
from sparsebert.json_object import load_json

SCHEMA = 1

Record = dict[str, Any]


def stamp(kind: str, fields: Mapping[str, Any]) -> Record:
    """Return a record of this kind ("bench", "layer", ...) with schema version and UTC time."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"schema": SCHEMA, "kind": kind, "timestamp": now, **fields}


def append(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> None:
    """Append ``records`` to a file, all of them or none; earlier rows keep their bytes.

    Raises:
        ValueError: The file cannot be written, or a record has a value that JSON cannot express.
        OSError: As :func:`sparsebert.atomic.replacing`.
    """
    target = Path(path)
    if problem := write_problem(target):
        raise ValueError(f"cannot write {target}: {problem}")
    try:
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot write {target}: a record is not plain JSON ({error})") from None
    # Two processes that append to one file both keep their rows. The lock is that of the real folder: paths
    # through different links name the same file.
    with locked(Path(os.path.realpath(target)).parent, wait=True):
        earlier = b"" if is_stream(target) or not target.exists() else target.read_bytes()
        if earlier and not earlier.endswith(b"\n"):
            earlier += b"\n"
        content = earlier + lines.encode()
        with replacing(target, len(content)) as temporary:
            temporary.write_bytes(content)


def read(path: str | os.PathLike[str], kind: str | None = None) -> list[Record]:
    """Read the records of a file, oldest first; with ``kind``, only the records of this kind.

    Raises:
        ValueError: The file cannot be read, or a line is not a record or has a newer schema. The message
            names file and line.
    """
    source = Path(path)
    require_regular(source)
    try:
        # Split at line feeds alone: JSON strings may contain other line separators of Unicode.
        lines = source.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ValueError(f"cannot read results from {source}: {reason}") from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = load_json(line)
        except ValueError as error:
            raise ValueError(f"{source}:{number} is not JSON: {error}") from None
        if not _is_stamped(record):
            raise ValueError(
                f"{source}:{number} is not a result record: it needs 'schema' (a number) and 'kind' (a name)"
            )
        if record["schema"] > SCHEMA:
            raise ValueError(
                f"{source}:{number} has schema {record['schema']}; this version reads up to {SCHEMA}: "
                "update sparsebert"
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
