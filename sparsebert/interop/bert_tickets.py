"""``mask.pt`` of BERT-Tickets (Chen et al. 2020, "The Lottery Ticket Hypothesis for Pre-trained BERT
Networks").

The file is a state dict with the buffers of ``torch.nn.utils.prune``: ``<module>.weight_mask`` and
``<module>.bias_mask``.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from sparsebert.atomic import replacing
from sparsebert.bert import canonical_key
from sparsebert.interop.safe_pickle import restricted_load
from sparsebert.interop.torch_prune import refuse_removed_modules
from sparsebert.tickets.file import brief
from sparsebert.tickets.ticket import Ticket

_WEIGHT_MASK, _BIAS_MASK = ".weight_mask", ".bias_mask"


def from_bert_tickets(path: str | os.PathLike[str]) -> Ticket:
    """Read the masks of a ``mask.pt``, or of any state dict of a model pruned by ``torch.nn.utils.prune``.

    In the folders of BERT-Tickets, ``mask.pt`` is one round ahead of the ``model.pt`` beside it, so it is
    10 % sparser.

    Raises:
        ValueError: In one line, for a file that is truncated, holds objects other than tensors (a pickled
            model, code), lacks masks, or holds mask values other than 0 and 1.
        FileNotFoundError: If ``path`` does not exist.
    """
    path = Path(path)
    state = restricted_load(path)
    if not isinstance(state, dict):
        raise ValueError(f"{path} must hold a dict of masks, got a {type(state).__name__}")
    masks: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(name, str) or not name.endswith((_WEIGHT_MASK, _BIAS_MASK)):
            continue
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise ValueError(f"{path}: {brief(name)} must be a dense tensor, got {brief(value)}")
        if not torch.all((value == 0) | (value == 1)):
            raise ValueError(f"{path}: {brief(name)} holds values other than 0 and 1")
        kind = masks if name.endswith(_WEIGHT_MASK) else biases
        key = canonical_key(name.rpartition(".")[0])
        if key in kind:
            raise ValueError(f"{path} holds two masks for {key}")
        kind[key] = value.bool()
    if not masks:
        raise ValueError(f"{path} holds no masks: no entry ends in {_WEIGHT_MASK}")
    try:
        return Ticket(
            masks, bias_masks=biases, metadata={"method": "torch.nn.utils.prune", "source": path.name}
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
