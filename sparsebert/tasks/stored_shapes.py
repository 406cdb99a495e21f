"""Weight files compared with their config.json before loading: neither may claim what the other lacks.

transformers allocates every tensor in the shape of its config.json, and fills those that do not fit with
random values before it refuses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsebert.bert import canonical_key, encoder_matrix
from sparsebert.checkpoints.plain_tensors import flat_tensors, require_plain
from sparsebert.checkpoints.safe_pickle import refuse_compressed, restricted_load
from sparsebert.checkpoints.weight_files import read_header, weight_files
from sparsebert.tasks.renamed_weights import folder_of, names_in, outline_of

# Names of floating-point dtypes in safetensors files and of torch.
_FLOATS = ("F32", "BF16", "F16", "F64", "float32", "bfloat16", "float16", "float64")
# Fields of config.json with the number of layers, with other sizes, and their largest values.
_LAYERS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")
_SIZES = (
    *("hidden_size", "dim", "d_model", "intermediate_size", "hidden_dim", "embedding_size", "vocab_size"),
    *("max_position_embeddings", "num_attention_heads", "n_heads"),
)
_MOST_LAYERS, _MOST_LABELS, _LARGEST = 1000, 10**6, 2**31 - 1


def require_sizes(described: Mapping[str, Any], name: str) -> None:
    """Raise ValueError for sizes in a config.json that no model has, before a model of them is made."""
    for fields, least, most in (
        (_LAYERS, 1, _MOST_LAYERS),
        (_SIZES, 1, _LARGEST),
        (("type_vocab_size",), 0, _LARGEST),
        (("num_labels",), 0, _MOST_LABELS),
    ):
        for field in fields:
            value = described.get(field)
            if type(value) is int and not least <= value <= most:
                raise ValueError(f"{name}: {field} in its config.json must be {least} to {most}, got {value}")


def require_stored_shapes(cls: Any, name: str, options: Mapping[str, Any]) -> None:
    """Compare shapes and dtypes in the files of a folder with those of a model without weights.

    Args:
        cls: A class of transformers, or one of its ``Auto`` classes.
        name: Hub id or folder of the model.
        options: Options of ``from_pretrained``.

    Raises:
        ValueError: In one line, for a tensor of another shape than config.json says, of a dtype that does not
            hold weights, or one that does not hold the values that it claims.
    """
    try:
        files = weight_files(folder_of(name))
    except (OSError, ValueError):  # Loading says what is missing.
        return
    stored: dict[str, tuple[str, list[int]]] = {}
    for file in files:
        stored |= _header(file) if file.suffix == ".safetensors" else _pickled(file)
    if not stored:
        return
    outline = outline_of(cls, name, options)
    expected = outline.state_dict()
    # Matrices of sparse and compacted models, and those without their pruned heads, have other shapes.
    config = outline.config
    other_shapes = any(getattr(config, field, None) for field in ("quantization_config", "pruned_heads"))
    try:
        names = names_in(outline, stored)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    for tensor, new in names.items():
        is_matrix = encoder_matrix(canonical_key(new).rpartition(".")[0]) is not None
        if new not in expected or (is_matrix and other_shapes):
            continue
        (dtype, shape), needed = stored[tensor], list(expected[new].shape)
        if shape != needed:
            raise ValueError(
                f"{name}: its weights are not of the shapes in its config.json: {tensor} is {shape}, "
                f"expected {needed}"
            )
        if expected[new].is_floating_point() and dtype not in _FLOATS:
            raise ValueError(f"{name}: {tensor} is {dtype} in its file; expected {', '.join(_FLOATS[:4])}")


def _header(file: Path) -> dict[str, tuple[str, list[int]]]:
    try:
        return read_header(file)
    except (OSError, ValueError):  # Missing or damaged: loading says so.
        return {}


def _pickled(file: Path) -> dict[str, tuple[str, list[int]]]:
    if not file.is_file():
        return {}
    refuse_compressed(file)
    try:
        state = restricted_load(file)
    except ValueError:  # Damaged: loading says so.
        return {}
    tensors = flat_tensors(state) if isinstance(state, Mapping) else {}
    for name, tensor in tensors.items():
        require_plain(tensor, name, file)
    return {
        name: (str(each.dtype).removeprefix("torch."), list(each.shape)) for name, each in tensors.items()
    }
