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
# Weights of sparse folders have a name of their own: transformers would take the tensors of sparse layers for
# unexpected ones, and make up random weights.
SPARSE_WEIGHTS = "sparsebert.safetensors"
_SAFETENSORS, _PICKLE = "model.safetensors", "pytorch_model.bin"
_INDEX = ".index.json"
SPARSE_INDEX = f"{SPARSE_WEIGHTS}{_INDEX}"


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


def read_names(folder: Path) -> set[str]:
    """Return the names of the folder's tensors, as in :func:`read_weights`, without the values if possible.

    Raises:
        ValueError: As :func:`read_weights`.
        FileNotFoundError: As :func:`read_weights`.
    """
    names: set[str] = set()
    for path in weight_files(folder):
        names |= (read_header(path) if path.suffix == ".safetensors" else _pickled(path)).keys()
    return names


def weight_files(folder: Path) -> list[Path]:
    """Return the files of the folder's weights; safetensors before pickles, one file before several.

    Raises:
        ValueError: In one line, for an index that does not list files of the folder.
        FileNotFoundError: If the folder holds no weights.
    """
    for name in (SPARSE_WEIGHTS, _SAFETENSORS, _PICKLE):
        if files := files_of(folder, name):
            return files
    raise FileNotFoundError(f"{folder} holds no weights; expected {_SAFETENSORS} or {_PICKLE}")


def files_of(folder: Path, name: str) -> list[Path]:
    """Return the file of this name, or those that its index lists; [] if the folder has neither.

    Raises:
        ValueError: In one line, for an index that does not list files of the folder.
    """
    if (folder / name).is_file():
        return [folder / name]
    index = folder / f"{name}{_INDEX}"
    if not index.is_file():
        return []
    files = read_json_object(index).get("weight_map")
    if not isinstance(files, Mapping) or not all(
        isinstance(file, str) and Path(file).name == file for file in files.values()
    ):
        raise ValueError(f"{index} must map tensors to files of its folder (weight_map)")
    return [index.with_name(file) for file in sorted(set(files.values()))]


def read_header(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Return dtype and shape of the tensors in a safetensors file by name.

    Raises:
        ValueError: In one line, for a file that is truncated or damaged.
        FileNotFoundError: If ``path`` does not exist.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (each.get_dtype(), each.get_shape()) for name, each in slices.items()}
    except FileNotFoundError:
        raise
    except Exception as error:  # As in read_safetensors.
        raise ValueError(f"{path} is truncated or not a safetensors file: {first_line(error)}") from None


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
