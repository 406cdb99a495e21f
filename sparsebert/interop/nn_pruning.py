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

from torch import Tensor

from sparsebert.bert import encoder_matrix
from sparsebert.checkpoints.pruned_heads import HEAD_DIM, kept_features, pruned_heads_of, with_pruned_heads
from sparsebert.checkpoints.weight_files import SCORES, read_config, read_weights
from sparsebert.interop.encoder_weights import encoder_weights
from sparsebert.tickets.ticket import Ticket


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
    config, (matrices, others) = read_config(folder), encoder_weights(read_weights(folder), folder)
    training_entry = next((name for name in others if "mask_module" in name or name.endswith(SCORES)), None)
    if training_entry:
        raise ValueError(
            f"{folder} holds a checkpoint from training ({training_entry}); compile it with nn_pruning first"
        )
    heads, width, pruned_heads = _heads(config, folder)
    masks: dict[str, Tensor] = {}
    for key, weight in matrices.items():
        layer, kind = encoder_matrix(key) or ("", "")
        pruned = pruned_heads.get(int(layer.rpartition(".")[2]), set())
        masks[key] = weight != 0
        if not pruned or kind not in HEAD_DIM:
            continue
        if (size := weight.shape[1 - HEAD_DIM[kind]]) != width:
            raise ValueError(f"{folder}: hidden_size in config.json is {width}, that of {key} is {size}")
        place = layer
        try:
            kept = kept_features(pruned, heads, width)
            place = key
            masks[key] = with_pruned_heads(masks[key], kind, kept, width)
        except ValueError as error:
            raise ValueError(f"{folder}: {place} {error}") from None
    return Ticket(masks, metadata={"method": "nn_pruning", "source": folder.name})


def _heads(config: Mapping[str, Any], folder: Path) -> tuple[int, int, dict[int, set[int]]]:
    """Return the number of heads, the hidden size, and the pruned heads by layer number."""
    try:
        # DistilBERT has names of its own.
        heads, width = (
            int(config[name] if name in config else config[short])
            for name, short in (("num_attention_heads", "n_heads"), ("hidden_size", "dim"))
        )
        return heads, width, pruned_heads_of(config)
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{folder}: config.json must give num_attention_heads, hidden_size and pruned_heads by layer"
        ) from None
