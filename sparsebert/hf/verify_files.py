"""Verify that a folder's files hold the tensors of its config, before loading them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from sparsebert.bert import canonical_key, is_bert_like, is_bert_name
from sparsebert.checkpoints.weight_files import read_header
from sparsebert.hf.config import StoredLayer
from sparsebert.nn.checkpoint_form import BITS, VALUES
from sparsebert.tickets.bits import packed_bytes

# Dtype names of safetensors.
_BYTES, _INDICES, _FLOATS = ("U8",), ("I64",), ("F32", "BF16", "F16", "F64")
# Some classes have a pooler and others of the same family have none.
_POOLER = "pooler."


@dataclass(frozen=True)
class Expected:
    """A tensor that a file must hold.

    Attributes:
        label: Its name in messages, below the base model.
        shape: Its shape.
        dtypes: Its permitted dtypes.
    """

    label: str
    shape: list[int]
    dtypes: tuple[str, ...]


def of_layer(path: str, key: str, layer: StoredLayer) -> dict[str, Expected]:
    """Return the tensors of the sparse layer of this path and key, by name."""
    tensors = {
        BITS: Expected(f"{key}.{BITS}", [packed_bytes(layer.shape)], _BYTES),
        VALUES: Expected(f"{key}.{VALUES}", [layer.kept], _FLOATS),
    }
    if layer.bias:
        tensors["bias"] = Expected(f"{key}.bias", [layer.shape[0]], _FLOATS)
    return {f"{path}.{name}": tensor for name, tensor in tensors.items()}


def of_module(path: str, key: str, module: nn.Module) -> dict[str, Expected]:
    """Return the tensors of the dense layer of this path and key, by name."""
    return {
        f"{path}.{name}": Expected(
            f"{key}.{name}", list(tensor.shape), _FLOATS if tensor.is_floating_point() else _INDICES
        )
        for name, tensor in module.state_dict().items()
    }


def read_headers(files: Iterable[str], rename: Callable[[str], str]) -> dict[str, tuple[str, list[int]]]:
    """Return dtype and shape of the tensors in the files.

    Args:
        files: The safetensors files.
        rename: Function from a tensor's name on disk to the name in the result.

    Raises:
        ValueError: A file is missing, truncated or damaged.
    """
    tensors: dict[str, tuple[str, list[int]]] = {}
    for file in files:
        try:
            tensors |= read_header(Path(file))
        except FileNotFoundError:
            raise ValueError(f"{file} is missing; get a new copy of the folder") from None
    return {rename(name): tensors[name] for name in sorted(tensors)}


def require_tensors(present: Mapping[str, tuple[str, list[int]]], expected: Mapping[str, Expected]) -> None:
    """Check that the files hold the expected tensors.

    Args:
        present: Dtype and shape of the tensors in the files, by their names in the model.
        expected: The tensors to expect, by the same names.

    Raises:
        ValueError: A tensor is missing or has another shape or dtype than config.json says. The message has
            one line.
    """
    for name, tensor in expected.items():
        if name not in present:
            raise ValueError(
                f"the model needs {tensor.label}, but no file holds it; get a new copy of the folder"
            )
        _require(*present[name], tensor)


def require_dense_tensors(
    present: Mapping[str, tuple[str, list[int]]], model: nn.Module, sparse: Collection[str]
) -> None:
    """Check the tensors beside the sparse layers: embeddings, norms, biases, the pooler and the head.

    Args:
        present: As for :func:`require_tensors`.
        model: The model to load, in the shapes of its config.json.
        sparse: Full paths of the sparse layers.

    Raises:
        ValueError: A tensor has another shape or dtype than the model's, or the encoder lacks one. The
            message has one line.
    """
    bert_like = is_bert_like(model)
    for name, tensor in model.state_dict().items():
        if name.rpartition(".")[0] in sparse:
            continue
        label = canonical_key(name)
        if name in present:
            if tensor.is_floating_point():
                _require(*present[name], Expected(label, list(tensor.shape), _FLOATS))
        elif bert_like and is_bert_name(label) and not label.startswith(_POOLER):
            raise ValueError(f"the model needs {label}, but no file holds it; get a new copy of the folder")


def read_bits(files: Iterable[str], keys: Iterable[str]) -> dict[str, Tensor]:
    """Return the mask bits of the layers of these keys that the files hold."""
    wanted = {f"{key}.{BITS}": key for key in keys}
    bits = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                key = wanted.get(name) or wanted.get(canonical_key(name))
                if key is not None:
                    bits[key] = opened.get_tensor(name)
    return bits


def _require(dtype: str, shape: list[int], expected: Expected) -> None:
    if shape != expected.shape or dtype not in expected.dtypes:
        described = f"{' or '.join(expected.dtypes)} {expected.shape}"
        raise ValueError(f"{expected.label} is {dtype} {shape} in the file, but {described} in config.json")
