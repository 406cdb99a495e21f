"""Reading of a checkpoint's folder without a model: its config.json, and its tensors by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sparsebert.interop.safe_pickle import restricted_load
from sparsebert.json_object import read_json_object
from sparsebert_kernels.errors import first_line

WEIGHT, SCORES = ".weight", ".mask_scores"
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def read_config(folder: Path) -> dict[str, Any]:
    """Return the folder's config.json. Raises ValueError in one line if it does not hold an object."""
    return read_json_object(folder / "config.json")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the folder's tensors by name.

    Raises:
        ValueError: In one line, for a file that is damaged or holds more than tensors.
        FileNotFoundError: If the folder holds no weights.
    """
    path = next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} holds no weights; expected {' or '.join(_WEIGHT_FILES)}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a usable safetensors file: {first_line(error)}") from None
    state = restricted_load(path)
    if not isinstance(state, dict):
        raise ValueError(f"{path} must hold a dict of tensors, got a {type(state).__name__}")
    return {
        name: value
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
    }


def require_encoder_matrices(masks: dict[str, Tensor], folder: Path) -> None:
    """Raise ValueError if a checkpoint held no matrix of a supported encoder."""
    if not masks:
        raise ValueError(f"{folder} holds no encoder matrices of a BERT, RoBERTa, DistilBERT or ELECTRA")
