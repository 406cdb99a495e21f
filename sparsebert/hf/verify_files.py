"""Verify that a folder's files hold the tensors of its config, before loading them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from sparsebert.bert import canonical_key
from sparsebert.hf.config import StoredLayer
from sparsebert.nn.checkpoint_form import BITS, VALUES
from sparsebert.tickets.bits import packed_bytes
from sparsebert_kernels.errors import first_line

# Names of dtypes as safetensors writes them.
_BYTES, _INDICES, _FLOATS = ("U8",), ("I64",), ("F32", "BF16", "F16", "F64")


@dataclass(frozen=True)
class Expected:
    """A tensor that a file has to hold; any of the dtypes will do."""

    shape: list[int]
    dtypes: tuple[str, ...]


def of_layer(key: str, layer: StoredLayer) -> dict[str, Expected]:
    """The tensors of a sparse layer, by name."""
    tensors = {
        f"{key}.{BITS}": Expected([packed_bytes(layer.shape)], _BYTES),
        f"{key}.{VALUES}": Expected([layer.kept], _FLOATS),
    }
    return tensors | ({f"{key}.bias": Expected([layer.shape[0]], _FLOATS)} if layer.bias else {})


def of_module(key: str, module: nn.Module) -> dict[str, Expected]:
    """The tensors of a dense layer, by name."""
    return {
        f"{key}.{name}": Expected(list(tensor.shape), _FLOATS if tensor.is_floating_point() else _INDICES)
        for name, tensor in module.state_dict().items()
    }


def require_tensors(files: Iterable[str], expected: Mapping[str, Expected]) -> None:
    """Raise ValueError, in one line, for files that are missing, cut off or damaged, and for a tensor that is
    missing there or is another than the config says."""
    present: dict[str, tuple[str, list[int]]] = {}
    for file in files:
        present |= _tensors(Path(file))
    for name, tensor in expected.items():
        if name not in present:
            raise ValueError(f"config.json names a layer whose {name} is in no file")
        dtype, shape = present[name]
        if shape != tensor.shape or dtype not in tensor.dtypes:
            wanted = f"{' or '.join(tensor.dtypes)} {tensor.shape}"
            raise ValueError(f"{name} is {dtype} {shape} in the file, {wanted} by config.json")


def _tensors(file: Path) -> dict[str, tuple[str, list[int]]]:
    """Dtypes and shapes of the tensors in a file, by their names without the base model's prefix."""
    if not file.exists():
        raise ValueError(f"{file} is missing: other files of the folder name it")
    try:
        with safe_open(file, framework="pt") as opened:
            return {
                canonical_key(name): (opened.get_slice(name).get_dtype(), opened.get_slice(name).get_shape())
                for name in opened.keys()  # noqa: SIM118
            }
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is cut off or no safetensors file: {first_line(error)}") from None
