"""Models compiled by nn_pruning (Lagunas et al. 2021, "Block Pruning For Faster Transformers").

Compilation deletes the features of ``pruned_heads`` from the matrices, and transformers 5 refuses to load the
smaller matrices. Here the tensors of a model are read by name, and the deleted features become pruned rows
and columns of the original matrices.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsebert.bert import canonical_key, encoder_matrix
from sparsebert.interop.checkpoint_files import (
    SCORES,
    WEIGHT,
    read_config,
    read_weights,
    require_encoder_matrices,
)
from sparsebert.tickets.ticket import Ticket

# Dimension of a weight that enumerates the features of all heads.
_HEAD_DIM = {"query": 0, "key": 0, "value": 0, "attention_output": 1}


def is_nn_pruning_model(folder: str | os.PathLike[str]) -> bool:
    """Return whether the config.json of a model's folder shows that nn_pruning compiled it."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        return False
    config = read_config(folder)
    return bool(config.get("pruned_heads")) or config.get("layer_norm_type") == "no_norm"


def from_nn_pruning(folder: str | os.PathLike[str]) -> Ticket:
    """Read the zeros of a compiled model as a ticket. Its biases are not part of the ticket.

    Args:
        folder: The model's folder.

    Raises:
        ValueError: In one line, for pruned heads that do not match the matrices, checkpoints from training
            (not compiled), and files that are damaged or hold other objects than tensors.
        FileNotFoundError: If the folder lacks a file.
    """
    folder = Path(folder)
    config, state = read_config(folder), read_weights(folder)
    training_entry = next((name for name in state if "mask_module" in name or name.endswith(SCORES)), None)
    if training_entry:
        raise ValueError(
            f"{folder} holds a checkpoint from training ({training_entry}); compile it with nn_pruning first"
        )
    heads, width, pruned_heads = _heads(config, folder)
    masks: dict[str, Tensor] = {}
    for name, weight in state.items():
        key = canonical_key(name.removesuffix(WEIGHT))
        matrix = encoder_matrix(key) if name.endswith(WEIGHT) else None
        if matrix is None:
            continue
        layer, kind = matrix
        mask = weight != 0
        if pruned := pruned_heads.get(int(layer.rpartition(".")[2])):
            if not all(0 <= head < heads for head in pruned):
                raise ValueError(f"{folder}: {layer} has {heads} heads, got pruned_heads {sorted(pruned)}")
            kept = torch.ones(heads, dtype=torch.bool)
            kept[list(pruned)] = False
            mask = _with_pruned_heads(mask, kind, kept.repeat_interleave(width // heads), key, folder)
        masks[key] = mask
    require_encoder_matrices(masks, folder)
    return Ticket(masks, metadata={"method": "nn_pruning", "source": folder.name})


def _heads(config: Mapping[str, Any], folder: Path) -> tuple[int, int, dict[int, set[int]]]:
    """Return the number of heads, the hidden size, and the pruned heads by layer number."""
    try:
        return (
            int(config["num_attention_heads"]),
            int(config["hidden_size"]),
            {
                int(layer): {int(head) for head in heads}
                for layer, heads in config.get("pruned_heads", {}).items()
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(
            f"{folder}: config.json must give num_attention_heads, hidden_size and pruned_heads by layer"
        ) from None


def _with_pruned_heads(mask: Tensor, kind: str, kept: Tensor, key: str, folder: Path) -> Tensor:
    """Return the mask of the original matrix from the mask of the compiled one.

    Args:
        mask: bool [out, in] of the compiled matrix.
        kind: Kind of the matrix, as :func:`sparsebert.bert.encoder_matrix` returns it.
        kept: bool [features of all heads], True for the features of kept heads.
        key: Path of the matrix, for messages.
        folder: The model's folder, for messages.
    """
    dim = _HEAD_DIM.get(kind)
    if dim is None or mask.shape[dim] == len(kept):
        return mask
    if mask.shape[dim] != int(kept.sum()):
        raise ValueError(
            f"{folder}: {key} has {mask.shape[dim]} head features, but pruned_heads keeps {int(kept.sum())}"
        )
    shape = list(mask.shape)
    shape[dim] = len(kept)
    return torch.zeros(shape, dtype=torch.bool).index_copy_(dim, kept.nonzero().flatten(), mask)
