"""The encoder matrices of a checkpoint's folder, by key, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sparsebert.bert import encoder_matrix, is_bert_name
from sparsebert.checkpoints.plain_tensors import require_plain
from sparsebert.checkpoints.tensor_names import places
from sparsebert.checkpoints.weight_files import WEIGHT


def encoder_weights(state: Mapping[str, Tensor], folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of the encoder matrices by key, and the other tensors by name.

    Names of the other tensors below the base model are without prefix too.

    Args:
        state: The tensors of a folder, by the names of its files.
        folder: The folder, for messages.

    Raises:
        ValueError: In one line, for weights that do not hold the values that they claim, and for weights of
            several encoders or none.
    """
    matrices: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    try:
        placed = places(state, _is_matrix, is_bert_name)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    for name, place in placed.items():
        if place.in_base and _is_matrix(place.name):
            key = place.name.removesuffix(WEIGHT)
            require_plain(state[name], name, folder)
            matrices[key] = state[name]
        else:
            others[place.name] = state[name]
    if not matrices:
        raise ValueError(f"{folder} holds no encoder matrices of a BERT, RoBERTa, DistilBERT or ELECTRA")
    return matrices, others


def _is_matrix(name: str) -> bool:
    return name.endswith(WEIGHT) and encoder_matrix(name.removesuffix(WEIGHT)) is not None
