"""Reading of a checkpoint's folder without a model: its config.json, and its tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from sparsebert.checkpoints.plain_tensors import flat_tensors
from sparsebert.checkpoints.safe_pickle import restricted_load
from sparsebert.json_object import read_json_object
from sparsebert_kernels.errors import first_line

WEIGHT, SCORES = ".weight", ".mask_scores"
# Weights of sparse folders have a name of their own, so that nobody else takes them for dense ones.
_SPARSE, _SAFETENSORS, _PICKLE = "sparsebert.safetensors", "model.safetensors", "pytorch_model.bin"


def read_config(folder: Path) -> dict[str, Any]:
    """Return the folder's config.json. Raises ValueError in one line if it does not hold an object."""
    return read_json_object(folder / "config.json")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the folder's tensors by name; names of nested tables are joined by dots.

    Raises:
        ValueError: In one line, for a file that is damaged or holds more than tensors.
        FileNotFoundError: If the folder holds no weights, or lacks one of several files.
    """
    state: dict[str, Tensor] = {}
    for path in weight_files(folder):
        state |= read_safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    return state


def weight_files(folder: Path) -> list[Path]:
    """Return the files of the folder's weights; safetensors before pickles, one file before several.

    Raises:
        ValueError: In one line, for an index that does not list files of the folder.
        FileNotFoundError: If the folder holds no weights.
    """
    for name in (_SPARSE, _SAFETENSORS, _PICKLE):
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            return _listed(index)
    raise FileNotFoundError(f"{folder} holds no weights; expected {_SAFETENSORS} or {_PICKLE}")


def _listed(index: Path) -> list[Path]:
    files = read_json_object(index).get("weight_map")
    if not isinstance(files, Mapping) or not all(
        isinstance(file, str) and Path(file).name == file for file in files.values()
    ):
        raise ValueError(f"{index} must map tensors to files of its folder (weight_map)")
    return [index.with_name(file) for file in sorted(set(files.values()))]


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name. Raises ValueError in one line if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except Exception as error:  # A dtype that torch lacks raises another kind than a damaged header.
        raise ValueError(f"{path} is not a usable safetensors file: {first_line(error)}") from None


def _pickled(path: Path) -> dict[str, Tensor]:
    state = restricted_load(path)
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} must hold a dict of tensors, got a {type(state).__name__}")
    return flat_tensors(state)
