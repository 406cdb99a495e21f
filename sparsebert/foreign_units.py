"""Head and MLP masks of bert-experiments (Prasanna et al. 2020): head_mask.npy and mlp_mask.npy."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sparsebert.bert import structure
from sparsebert.pruning.unit_masks import UnitMasks
from sparsebert.ticket import Ticket

_MLPS = "mlp_mask.npy"


def is_head_mask(path: str | os.PathLike[str]) -> bool:
    """Whether a .npy file holds [layers, heads]: SMP's hold one row."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).ndim == 2
    except (ValueError, OSError, EOFError, SyntaxError):
        return False


def from_head_mask(path: str | os.PathLike[str], model: nn.Module) -> Ticket:
    """Read a head mask, [layers, heads] of 0 and 1, and ``mlp_mask.npy`` [layers] beside it, if there.

    Masked MLPs are removed whole, as their ``prune_mlps`` does. Raises ValueError in one line for masks of
    other values, or of another size than the model; FileNotFoundError if there is none.
    """
    path = Path(path)
    found = structure(model)
    layers = len(found.heads)
    heads = _mask(path, (layers, found.num_heads))
    beside = path.with_name(_MLPS)
    mlps = _mask(beside, (layers,)) if beside.exists() else torch.ones(layers, dtype=torch.bool)
    return UnitMasks(heads, mlps).ticket(model, {"method": "bert-experiments", "source": path.name})


def _mask(path: Path, shape: tuple[int, ...]) -> Tensor:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        raise ValueError(f"{path} is no usable .npy file: {str(error).splitlines()[0]}") from None
    if values.shape != shape:
        raise ValueError(f"{path}: a mask of {list(values.shape)}, where the model has {list(shape)}")
    if values.dtype.kind not in "bfiu" or not np.isin(values, (0, 1)).all():
        raise ValueError(f"{path} holds values other than 0 and 1")
    return torch.from_numpy(np.array(values, dtype=bool))
