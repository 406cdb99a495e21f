"""The files that hold a sparse model's weights.

Their names are not those of transformers, which would take the tensors of sparse layers for unexpected ones
and make up random weights.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

# The file of the weights or, if they are in several files, of the index.
WEIGHTS = "sparsebert.safetensors"
INDEX = f"{WEIGHTS}.index.json"

_STEM, _DENSE_STEM = "sparsebert", "model"
_ANY = re.compile(rf"({_STEM}|{_DENSE_STEM})(-\d{{5}}-of-\d{{5}})?\.safetensors(\.index\.json)?")


def is_weights(name: str) -> bool:
    """Whether a file of this name holds weights, dense or sparse, a part of them, or their index."""
    return _ANY.fullmatch(name) is not None


def rename_dense(folder: Path) -> str | None:
    """Rename the weight files that transformers wrote; return ``WEIGHTS``, ``INDEX``, or None without any."""
    files = [file for file in folder.iterdir() if is_weights(file.name)]
    for file in files:
        file.rename(folder / _sparse_name(file.name))
    if not (folder / INDEX).exists():
        return WEIGHTS if files else None
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    index["weight_map"] = {tensor: _sparse_name(name) for tensor, name in index["weight_map"].items()}
    write_json(folder / INDEX, index)
    return INDEX


def weight_files(folder: Path) -> list[Path]:
    """Return the files with a sparse model's weights; [] for a folder without any."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        return []
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a sparse model's folder by name; {} for a folder without such weights."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        tensors |= load_file(file)
    return tensors


def write_json(file: Path, contents: object) -> None:
    """Write JSON as transformers does."""
    file.write_text(json.dumps(contents, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sparse_name(name: str) -> str:
    return _STEM + name.removeprefix(_DENSE_STEM)
