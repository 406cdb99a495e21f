"""Verify that a folder's files hold the tensors of its config, before loading them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from sparsebert.bert import canonical_key, is_bert_like, is_bert_name
from sparsebert.hf.config import StoredLayer
from sparsebert.nn.checkpoint_form import BITS, VALUES
from sparsebert.tickets.bits import packed_bytes
from sparsebert_kernels.errors import first_line

# Dtype names of safetensors.
_BYTES, _INDICES, _FLOATS = ("U8",), ("I64",), ("F32", "BF16", "F16", "F64")
# Some classes have a pooler and others of the same family have none.
_POOLER = "pooler."


@dataclass(frozen=True)
class Expected:
    """The shape of a tensor that a file must hold, and its permitted dtypes."""

    shape: list[int]
    dtypes: tuple[str, ...]


def of_layer(key: str, layer: StoredLayer) -> dict[str, Expected]:
    """Return the tensors of a sparse layer, by name."""
    tensors = {
        f"{key}.{BITS}": Expected([packed_bytes(layer.shape)], _BYTES),
        f"{key}.{VALUES}": Expected([layer.kept], _FLOATS),
    }
    return tensors | ({f"{key}.bias": Expected([layer.shape[0]], _FLOATS)} if layer.bias else {})


def of_module(key: str, module: nn.Module) -> dict[str, Expected]:
    """Return the tensors of a dense layer, by name."""
    return {
        f"{key}.{name}": Expected(list(tensor.shape), _FLOATS if tensor.is_floating_point() else _INDICES)
        for name, tensor in module.state_dict().items()
    }


def require_tensors(files: Iterable[str], expected: Mapping[str, Expected]) -> None:
    """Check that the files hold the expected tensors.

    Raises:
        ValueError: A file is missing, truncated or damaged, or a tensor is missing or has another shape or
            dtype than config.json says. The message has one line.
    """
    present: dict[str, tuple[str, list[int]]] = {}
    for file in files:
        present |= _tensors(Path(file))
    for name, tensor in expected.items():
        if name not in present:
            raise ValueError(f"the model needs {name}, but no file holds it; get a new copy of the folder")
        _require(name, *present[name], tensor)


def require_dense_tensors(files: Iterable[str], model: nn.Module, sparse: Collection[str]) -> None:
    """Check the tensors beside the sparse layers: embeddings, norms, biases, the pooler and the head.

    Args:
        files: The files.
        model: The model to load, in the shapes of its config.json.
        sparse: Keys of the sparse layers.

    Raises:
        ValueError: A tensor has another shape or dtype than the model's, or the encoder lacks one. The
            message has one line.
    """
    present: dict[str, tuple[str, list[int]]] = {}
    for file in files:
        present |= _tensors(Path(file))
    bert_like = is_bert_like(model)
    for name, tensor in model.state_dict().items():
        key = canonical_key(name)
        if key.rpartition(".")[0] in sparse:
            continue
        if key in present:
            expected = Expected(list(tensor.shape), _FLOATS if tensor.is_floating_point() else _INDICES)
            _require(key, *present[key], expected)
        elif bert_like and is_bert_name(key) and not key.startswith(_POOLER):
            raise ValueError(f"the model needs {key}, but no file holds it; get a new copy of the folder")


def _require(name: str, dtype: str, shape: list[int], expected: Expected) -> None:
    if shape != expected.shape or dtype not in expected.dtypes:
        described = f"{' or '.join(expected.dtypes)} {expected.shape}"
        raise ValueError(f"{name} is {dtype} {shape} in the file, but {described} in config.json")


def _tensors(file: Path) -> dict[str, tuple[str, list[int]]]:
    """Return dtype and shape of each tensor in a file, by name without the base model's prefix."""
    if not file.exists():
        raise ValueError(f"{file} is missing; get a new copy of the folder")
    try:
        with safe_open(file, framework="pt") as opened:
            return {
                canonical_key(name): (opened.get_slice(name).get_dtype(), opened.get_slice(name).get_shape())
                for name in opened.keys()  # noqa: SIM118
            }
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is truncated or not a safetensors file: {first_line(error)}") from None
