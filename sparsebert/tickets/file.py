"""The ticket file: packed masks and their provenance in one safetensors container.

Every mask is one U8 entry, ``<key>.weight`` or ``<key>.bias``, packed as ``sparsebert.tickets.bits`` says.
The entries are sorted by name. The header's ``__metadata__`` holds two strings: ``sparsebert.ticket``, a JSON
object with the format version, the shapes in model order and the provenance, and ``sparsebert.sha256``, the
digest of that JSON and of the bits.

The reader compares every statement of the header with the file's size and with the only layout that the
shapes allow before it reads a byte of a mask. A broken or hostile file therefore costs an error message and
no memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from sparsebert.atomic import replacing
from sparsebert.json_object import JsonNumberError, load_json
from sparsebert.tickets.bits import pack_bits, packed_bytes, unpack_bits

FORMAT_VERSION = 1
_DESCRIPTION = "sparsebert.ticket"
_DIGEST = "sparsebert.sha256"
_FIELDS = {"version", "masks", "bias_masks", "removed", "metadata", "sparsity", "layer_sparsity"}
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 2**20
MAX_WEIGHTS = 2**32
_KEY = re.compile(r"[\w-]+(\.[\w-]+)*")
_MAX_KEY_LENGTH = 256
_MAX_SHOWN = 80


@dataclass(frozen=True)
class TicketContents:
    """The contents of a ticket file: bool masks [out, in] and [out] by key, and the ticket's properties."""

    masks: Mapping[str, Tensor]
    bias_masks: Mapping[str, Tensor]
    removed: tuple[str, ...]
    metadata: dict[str, Any]
    sparsity: float
    layer_sparsity: dict[str, float]


def is_key(name: object) -> bool:
    """Whether a name is a valid module path: dotted words of letters, digits, ``_`` and ``-``."""
    return isinstance(name, str) and len(name) <= _MAX_KEY_LENGTH and _KEY.fullmatch(name) is not None


def brief(value: object) -> str:
    """Return the repr of a value of unknown size, truncated to fit into a message."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def write(path: str | os.PathLike[str], contents: TicketContents) -> None:
    """Write a ticket file atomically.

    Raises:
        ValueError: The metadata makes the header larger than 1 MiB.
        OSError: The file cannot be written.
    """
    description = json.dumps(
        {
            "version": FORMAT_VERSION,
            "masks": {key: list(mask.shape) for key, mask in contents.masks.items()},
            "bias_masks": {key: list(mask.shape) for key, mask in contents.bias_masks.items()},
            "removed": list(contents.removed),
            "metadata": contents.metadata,
            "sparsity": contents.sparsity,
            "layer_sparsity": contents.layer_sparsity,
        },
        allow_nan=False,
    )
    masks = _named(contents.masks, contents.bias_masks)
    entries = _entries({name: tuple(mask.shape) for name, mask in masks.items()})
    payload = b"".join(pack_bits(masks[name]).numpy().tobytes() for name in entries)
    strings = {_DESCRIPTION: description, _DIGEST: _digest(description, payload)}
    header = json.dumps({"__metadata__": strings, **entries}).encode()
    header += b" " * (-len(header) % _LENGTH_BYTES)
    if len(header) > _MAX_HEADER_BYTES:
        raise ValueError(
            f"the ticket's metadata is too large: {len(header)} bytes of header, at most 1 MiB is allowed"
        )
    size = _LENGTH_BYTES + len(header) + len(payload)
    with replacing(Path(path), size) as temporary, open(temporary, "wb") as file:
        file.write(len(header).to_bytes(_LENGTH_BYTES, "little") + header)
        file.write(payload)


def read(path: str | os.PathLike[str]) -> TicketContents:
    """Read a file that :func:`write` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a complete ticket file of a known version. The message is one line that
            names the file.
    """
    path = os.fspath(path)
    # Checked before opening: opening a pipe would wait for its writer.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{os.fspath(path)} is not a regular file")
    with open(path, "rb") as file:
        try:
            return _read(file)
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
            raise ValueError(f"{os.fspath(path)} is not a usable ticket file: {reason}") from None


def _read(file: BinaryIO) -> TicketContents:
    file_size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if length > file_size - _LENGTH_BYTES:
        raise ValueError(f"its header is truncated at {file_size} bytes")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"its header has {length} bytes, at most {_MAX_HEADER_BYTES} are allowed")
    header = _json_object(file.read(length).decode(), "header")
    description, digest = _strings(header.pop("__metadata__", None))
    fields = _description(description)
    shapes = _named(_shapes(fields["masks"], 2), _shapes(fields["bias_masks"], 1))
    if sum(math.prod(shape) for shape in shapes.values()) > MAX_WEIGHTS:
        raise ValueError(f"its masks have more than {MAX_WEIGHTS} weights in total")
    entries = _entries(shapes)
    _compare(header, entries)
    size = sum(packed_bytes(shape) for shape in shapes.values())
    if file_size != _LENGTH_BYTES + length + size:
        raise ValueError(f"it has {file_size} bytes, its masks need {_LENGTH_BYTES + length + size}")
    payload = file.read(size)
    if _digest(description, payload) != digest:
        raise ValueError("it is damaged: its contents do not match their digest")
    bits = np.frombuffer(payload, np.uint8)
    masks = {
        name: unpack_bits(bits[slice(*entry["data_offsets"])], shapes[name], name)
        for name, entry in entries.items()
    }
    return TicketContents(
        masks={key: masks[f"{key}.weight"] for key in fields["masks"]},
        bias_masks={key: masks[f"{key}.bias"] for key in fields["bias_masks"]},
        removed=tuple(fields["removed"]),
        metadata=fields["metadata"],
        sparsity=fields["sparsity"],
        layer_sparsity=fields["layer_sparsity"],
    )


def _strings(metadata: Any) -> tuple[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its __metadata__ is not a table of strings")
    if _DESCRIPTION not in metadata or _DIGEST not in metadata:
        raise ValueError("it is a safetensors file without a ticket in its metadata")
    return metadata[_DESCRIPTION], metadata[_DIGEST]


def _description(text: str) -> dict[str, Any]:
    fields = _json_object(text, "description")
    version = fields.get("version")
    if type(version) is not int or version < 1:
        raise ValueError(
            f"its format version must be a number from 1 to {FORMAT_VERSION}, got {brief(version)}"
        )
    if version > FORMAT_VERSION:
        raise ValueError(
            f"it was written by a newer sparsebert (format {brief(version)}, "
            f"this one reads up to {FORMAT_VERSION}): update sparsebert"
        )
    if wrong := fields.keys() ^ _FIELDS:
        problem = "lacks the" if min(wrong) in _FIELDS else "has an unknown"
        raise ValueError(f"its description {problem} field {brief(min(wrong))}")
    types = {"masks": dict, "bias_masks": dict, "removed": list, "metadata": dict, "layer_sparsity": dict}
    for name, expected in types.items():
        if not isinstance(fields[name], expected):
            raise ValueError(f"its {name} must be a JSON {'array' if expected is list else 'object'}")
    for value in (fields["sparsity"], *fields["layer_sparsity"].values()):
        if isinstance(value, int):
            raise ValueError(f"a sparsity must be a number with a decimal point, got {brief(value)}")
    return fields


def _shapes(table: dict[str, Any], dimensions: int) -> dict[str, tuple[int, ...]]:
    for key, shape in table.items():
        if not is_key(key):
            raise ValueError(f"{brief(key)} is not a module path")
        if (
            not isinstance(shape, list)
            or len(shape) != dimensions
            or not all(type(size) is int and 1 <= size <= MAX_WEIGHTS for size in shape)
        ):
            raise ValueError(f"{key} must have a shape of {dimensions} positive sizes, got {brief(shape)}")
    return {key: tuple(shape) for key, shape in table.items()}


def _compare(header: dict[str, Any], entries: dict[str, Any]) -> None:
    if wrong := header.keys() ^ entries.keys():
        name = min(wrong)
        problem = "has a shape without bits" if name in entries else "has bits without a shape"
        raise ValueError(f"{brief(name)} {problem}")
    for name, entry in entries.items():
        # As text: in Python 1 == 1.0 == True.
        if json.dumps(header[name], sort_keys=True) != json.dumps(entry, sort_keys=True):
            raise ValueError(f"{name} has the entry {brief(header[name])}, its shape needs {entry}")


def _entries(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, Any]]:
    """Return the only header that these shapes allow: name -> safetensors entry, in file order."""
    entries: dict[str, dict[str, Any]] = {}
    start = 0
    for name in sorted(shapes):
        size = packed_bytes(shapes[name])
        entries[name] = {"dtype": "U8", "shape": [size], "data_offsets": [start, start + size]}
        start += size
    return entries


def _named(weights: Mapping[str, Any], biases: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{key}.weight": item for key, item in weights.items()} | {
        f"{key}.bias": item for key, item in biases.items()
    }


def _digest(description: str, payload: bytes) -> str:
    digest = hashlib.sha256(description.encode())
    digest.update(payload)
    return digest.hexdigest()


def _json_object(text: str, what: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError(f"its {what} repeats a name")
        return table

    try:
        loaded = load_json(text, once)
    except json.JSONDecodeError as error:
        raise ValueError(f"its {what} is not JSON ({error.msg} at character {error.pos})") from None
    except JsonNumberError as error:
        raise ValueError(f"its {what} contains {error.number}") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"its {what} is not a JSON object")
    return loaded
