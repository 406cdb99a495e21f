"""Head and MLP masks of bert-experiments (Prasanna et al. 2020, "When BERT Plays the Lottery, All Tickets Are
Winning").

``head_mask.npy`` is [layers, heads] and ``mlp_mask.npy`` is [layers]; 1 keeps, 0 prunes. Both files are in
the same folder. A layer without its MLP returns LN(input).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sparsebert.atomic import replacing
from sparsebert.bert import structure
from sparsebert.interop.head_mlp_tickets import whole_units
from sparsebert.interop.npy_files import read_array
from sparsebert.pruning.head_mlp_masks import UnitMasks
from sparsebert.tickets.ticket import Ticket

_MLP_FILE = "mlp_mask.npy"


def is_head_mask(path: str | os.PathLike[str]) -> bool:
    """Return whether a ``.npy`` file holds a matrix, [layers, heads]; SMP files hold a vector instead."""
    try:
        return read_array(Path(path)).ndim == 2
    except (ValueError, OSError):
        return False


def from_head_mask(path: str | os.PathLike[str], model: nn.Module) -> Ticket:
    """Read a head mask, and the ``mlp_mask.npy`` in the same folder if there is one.

    Masked MLPs are removed as whole modules, as in ``prune_mlps`` of bert-experiments.

    Args:
        path: The head mask, [layers, heads] of 0 and 1.
        model: The model that the masks belong to.

    Raises:
        ValueError: In one line, for values other than 0 and 1 or a size that does not match the model's.
        FileNotFoundError: If ``path`` does not exist.
    """
    path = Path(path)
    encoder = structure(model)
    layers = len(encoder.heads)
    heads = _mask(path, (layers, encoder.num_heads))
    mlp_file = path.with_name(_MLP_FILE)
    mlps = _mask(mlp_file, (layers,)) if mlp_file.exists() else torch.ones(layers, dtype=torch.bool)
    return UnitMasks(heads, mlps).ticket(model, {"method": "bert-experiments", "source": path.name})


def to_head_mask(ticket: Ticket, path: str | os.PathLike[str], model: nn.Module) -> None:
    """Write a ticket of whole heads and MLPs as a float64 head mask, and ``mlp_mask.npy`` in the same folder.

    Raises:
        ValueError: With nothing written, for a ticket that the files cannot express (see
            :func:`sparsebert.interop.head_mlp_tickets.whole_units`) or an unsuitable file name.
    """
    path = Path(path)
    if path.suffix != ".npy" or path.name == _MLP_FILE:
        raise ValueError(
            f"the head mask must be a .npy file with another name than {_MLP_FILE}, which is written beside "
            f"it, got {path}"
        )
    masks = whole_units(ticket, model)
    for file, mask in ((path, masks.heads), (path.with_name(_MLP_FILE), masks.mlps)):
        with replacing(file) as temporary, open(temporary, "wb") as out:
            np.save(out, mask.numpy().astype(np.float64), allow_pickle=False)


def _mask(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Return the array as a bool tensor. Raises ValueError for another shape or other values than 0 and 1."""
    values = read_array(path)
    if values.shape != shape:
        raise ValueError(f"{path} must have the model's shape {list(shape)}, got {list(values.shape)}")
    if values.dtype.kind not in "bfiu" or not np.isin(values, (0, 1)).all():
        raise ValueError(f"{path} holds values other than 0 and 1")
    return torch.from_numpy(np.array(values, dtype=bool))
