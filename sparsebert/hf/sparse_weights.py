"""The files that hold a sparse model's weights, and the dense ones that transformers writes first."""

from __future__ import annotations

import json
import re
from pathlib import Path

from torch import Tensor

from sparsebert.checkpoints.weight_files import SPARSE_INDEX, SPARSE_WEIGHTS, files_of, read_safetensors

_STEM, _DENSE_STEM = "sparsebert", "model"
_ANY = re.compile(rf"({_STEM}|{_DENSE_STEM})(-\d{{5}}-of-\d{{5}})?\.safetensors(\.index\.json)?")


def is_weights(name: str) -> bool:
    """Whether a file of this name holds weights, dense or sparse, a part of them, or their index."""
    return _ANY.fullmatch(name) is not None


def rename_dense(folder: Path) -> str | None:
    """Rename the weight files that transformers wrote; return the file that holds or lists the weights.

    Returns:
        ``SPARSE_WEIGHTS``, ``SPARSE_INDEX``, or None for a folder without weights.
    """
    files = [file for file in folder.iterdir() if is_weights(file.name)]
    for file in files:
        file.rename(folder / _sparse_name(file.name))
    if not (folder / SPARSE_INDEX).exists():
        return SPARSE_WEIGHTS if files else None
    index = json.loads((folder / SPARSE_INDEX).read_text(encoding="utf-8"))
    index["weight_map"] = {tensor: _sparse_name(name) for tensor, name in index["weight_map"].items()}
    write_json(folder / SPARSE_INDEX, index)
    return SPARSE_INDEX


def read_sparse_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a sparse model's folder by name; {} for a folder without such weights."""
    tensors: dict[str, Tensor] = {}
    for file in files_of(folder, SPARSE_WEIGHTS):
        tensors |= read_safetensors(file)
    return tensors


def write_json(file: Path, contents: object) -> None:
    """Write JSON as transformers does."""
    file.write_text(json.dumps(contents, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sparse_name(name: str) -> str:
    return _STEM + name.removeprefix(_DENSE_STEM)
