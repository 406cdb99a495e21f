"""``mask.pt`` of BERT-Tickets (Chen et al. 2020, "The Lottery Ticket Hypothesis for Pre-trained BERT
Networks").

The file is a state dict with the buffers of ``torch.nn.utils.prune``: ``<module>.weight_mask`` and
``<module>.bias_mask``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sparsebert.atomic import replacing
from sparsebert.bert import canonical_key, encoder_matrix, is_bert_name
from sparsebert.checkpoints.plain_tensors import flat_tensors, require_plain
from sparsebert.checkpoints.pruned_pairs import has_pairs, merge_pairs
from sparsebert.checkpoints.safe_pickle import restricted_load
from sparsebert.checkpoints.tensor_names import SeveralEncodersError, places
from sparsebert.checkpoints.weight_files import read_names, read_safetensors, read_weights
from sparsebert.interop.encoder_weights import encoder_weights
from sparsebert.interop.torch_prune import refuse_removed_modules
from sparsebert.tickets.apply import require_shapes
from sparsebert.tickets.file import brief
from sparsebert.tickets.ticket import Ticket

_WEIGHT_MASK, _BIAS_MASK = ".weight_mask", ".bias_mask"


def from_bert_tickets(path: str | os.PathLike[str], model: nn.Module | None = None) -> Ticket:
    """Read the masks of a ``mask.pt``, or of a saved state of any model pruned by ``torch.nn.utils.prune``.

    Prefixes of wrappers and training code are stripped from the names, and tables in the table are read too.
    In the folders of BERT-Tickets, ``mask.pt`` is one round ahead of the ``model.pt`` beside it, so it is
    10 % sparser.

    Args:
        path: The file.
        model: The model that the masks belong to. Shapes are compared with it before any value is read.

    Raises:
        ValueError: In one line, for a file that is truncated, holds objects other than tensors (a pickled
            model, code), lacks masks, holds mask values other than 0 and 1, masks that do not hold the values
            that they claim, or masks of another model.
        FileNotFoundError: If ``path`` does not exist.
    """
    path = Path(path)
    if holds_masks(path):
        return _ticket(read_safetensors(path), path, model)
    state = restricted_load(path)
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} must hold a dict of masks, got a {type(state).__name__}")
    _require_tensors(state, path)
    return _ticket(flat_tensors(state), path, model)


def holds_masks(path: Path) -> bool:
    """Return whether a file is a safetensors file with masks in place of a ticket."""
    try:
        with safe_open(path, framework="pt") as file:
            return any(name.endswith(_WEIGHT_MASK) for name in file.keys())  # noqa: SIM118
    except Exception:  # Another kind of file, or a damaged one.
        return False


def is_pruned_folder(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder's weights were saved while ``torch.nn.utils.prune`` was live."""
    try:
        return has_pairs(read_names(Path(folder)))
    except (OSError, ValueError):  # Loading says what is wrong.
        return False


def from_pruned_folder(folder: str | os.PathLike[str]) -> Ticket:
    """Read the masks in the folder of a model that was saved while ``torch.nn.utils.prune`` was live.

    Encoder matrices without a mask count as kept whole.

    Raises:
        ValueError: As :func:`from_bert_tickets`.
        FileNotFoundError: If the folder holds no weights.
    """
    folder = Path(folder)
    state = read_weights(folder)
    ticket = _ticket(state, folder, None)
    matrices, _ = encoder_weights(merge_pairs(state, folder), folder)
    whole = {key: torch.ones_like(weight, dtype=torch.bool) for key, weight in matrices.items()}
    return Ticket(whole | ticket.masks, bias_masks=ticket.bias_masks, metadata=ticket.metadata)


def _ticket(tensors: Mapping[str, Tensor], path: Path, model: nn.Module | None) -> Ticket:
    keys = _keys(tensors)
    masks: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not name.endswith((_WEIGHT_MASK, _BIAS_MASK)):
            continue
        require_plain(value, name, path)
        kind = masks if name.endswith(_WEIGHT_MASK) else biases
        if keys[name] in kind:
            raise ValueError(f"{path} holds two masks for {keys[name]}")
        kind[keys[name]] = value
    if not masks:
        raise ValueError(f"{path} holds no masks: no entry ends in {_WEIGHT_MASK}")
    try:
        if model is not None:
            require_shapes(model, masks, biases)
        return Ticket(
            {key: _as_bool(f"{key}{_WEIGHT_MASK}", value) for key, value in masks.items()},
            bias_masks={key: _as_bool(f"{key}{_BIAS_MASK}", value) for key, value in biases.items()},
            metadata={"method": "torch.nn.utils.prune", "source": path.name},
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def to_bert_tickets(ticket: Ticket, path: str | os.PathLike[str], *, prefix: str = "bert") -> None:
    """Write a ``mask.pt`` for BERT-Tickets' transfer scripts: float32, named ``<prefix>.<key>.weight_mask``.

    These scripts look up every matrix, including the pooler's, and fail on a matrix without a mask. An
    existing file stays in place until the new one is complete.

    Raises:
        ValueError: For a ticket with removed modules, which the file cannot express.
    """
    refuse_removed_modules(ticket, "a mask.pt")
    state = {f"{prefix}.{key}{_WEIGHT_MASK}": mask.float() for key, mask in ticket.masks.items()}
    state |= {f"{prefix}.{key}{_BIAS_MASK}": mask.float() for key, mask in ticket.bias_masks.items()}
    with replacing(Path(path), sum(mask.nbytes for mask in state.values())) as temporary:
        torch.save(state, temporary)


def _keys(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the key of each tensor's module. In a state of several encoders, keys are full paths."""
    paths = {name: name.rpartition(".")[0] for name in tensors}
    try:
        placed = places(paths.values(), lambda path: encoder_matrix(path) is not None, is_bert_name)
    except SeveralEncodersError:
        return {name: canonical_key(path) for name, path in paths.items()}
    return {name: canonical_key(placed[path].name) for name, path in paths.items()}


def _require_tensors(state: Mapping[Any, Any], path: Path) -> None:
    """Raise ValueError for a mask that is not a tensor."""
    for name, value in state.items():
        is_mask = isinstance(name, str) and name.endswith((_WEIGHT_MASK, _BIAS_MASK))
        if is_mask and not isinstance(value, Tensor):
            raise ValueError(f"{path}: {brief(name)} must be a dense tensor, got {brief(value)}")


def _as_bool(name: str, mask: Tensor) -> Tensor:
    if not torch.all((mask == 0) | (mask == 1)):
        raise ValueError(f"{brief(name)} holds values other than 0 and 1")
    return mask.bool()
