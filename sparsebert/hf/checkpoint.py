"""Whether the files of a folder hold what its config says, found out before anything is loaded from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sparsebert.bert import canonical_key
from sparsebert.hf.config import StoredLayer
from sparsebert.stored import BITS, VALUES, stored_bytes


def require_stored(files: Iterable[str], layers: Mapping[str, StoredLayer]) -> None:
    """Raise ValueError, in one line, for files that are cut off or damaged, and for a layer that is missing
    there or of another size than its config says."""
    found: dict[str, list[int]] = {}
    for file in files:
        found |= _shapes(Path(file))
    for key, layer in layers.items():
        for name, expected in ((BITS, [stored_bytes(layer.shape)]), (VALUES, [layer.kept])):
            shape = found.get(canonical_key(f"{key}.{name}"))
            if shape is None:
                raise ValueError(f"config.json names a sparse layer {key}, whose {name} are in no file")
            if shape != expected:
                raise ValueError(f"{key}.{name} are {shape} in the file, {expected} by config.json")


def _shapes(file: Path) -> dict[str, list[int]]:
    """Shapes of the tensors in a file, by their names without the base model's prefix."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {
                canonical_key(name): opened.get_slice(name).get_shape()
                for name in opened.keys()  # noqa: SIM118
            }
    except (SafetensorError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"{file} is cut off or no safetensors file: {reason}") from None
