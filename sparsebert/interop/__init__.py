"""Tickets and checkpoints of other projects.

:func:`read_ticket` reads a ticket file of any supported format. :func:`read_checkpoint` reads a checkpoint
that transformers cannot load.

| module | project | files |
|---|---|---|
| ``bert_tickets`` | BERT-Tickets (Chen et al. 2020) | ``mask.pt`` |
| ``smp`` | Static Model Pruning (Jiang et al. 2023) | ``.npy``, packed bits |
| ``bert_experiments`` | bert-experiments (Prasanna et al. 2020) | ``head_mask.npy``, ``mlp_mask.npy`` |
| ``super_tickets`` | Super Tickets (Liang et al. 2021) | ``heads_to_mask.json``, ``ffn_to_mask.json`` |
| ``movement_pruning`` | movement pruning (Sanh et al. 2020) | a checkpoint's folder |
| ``nn_pruning`` | nn_pruning (Lagunas et al. 2021) | a compiled model's folder |
| ``torch_prune`` | ``torch.nn.utils.prune`` | a model in memory |

Code in a file is never run: pickles go through torch's restricted loader
(``sparsebert.checkpoints.safe_pickle``), and arrays are read without pickle.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebert.file_types import require_regular

if TYPE_CHECKING:
    from torch import nn

    from sparsebert.tickets.ticket import Ticket

# First bytes of NumPy's .npy format, of zip archives and of pickles.
_NPY_MAGIC = b"\x93NUMPY"
_ZIP_MAGIC, _PICKLE_MAGIC = b"PK\x03\x04", b"\x80"


def read_ticket(
    path: str | os.PathLike[str], model: nn.Module | None = None, *, task: str | None = None
) -> Ticket:
    """Read a ticket file of this project, BERT-Tickets, SMP, bert-experiments or Super Tickets.

    The format is detected from the content of the file, not from its name.

    Args:
        path: The ticket file.
        model: The model that the ticket belongs to. Required for ``.npy`` and ``.json`` files, which hold no
            shapes; a ticket of any format is checked against it.
        task: As for :func:`sparsebert.interop.super_tickets.from_super_tickets`; invalid for any other file.

    Raises:
        ValueError: In one line, for unsupported content, a missing model, or a ticket of another model.
        FileNotFoundError: If ``path`` does not exist.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder, not a ticket file; Ticket.from_model reads the zeros of a saved model"
        )
    require_regular(path)
    with open(path, "rb") as file:
        start = file.read(9)
    # A ticket file begins with the length of its header, which always holds a NUL byte; text never does.
    is_json = start.lstrip().startswith(b"{") and b"\0" not in start
    if task is not None and not is_json:
        raise ValueError(f"{path} holds one ticket; a task applies only to the JSON files of Super Tickets")
    if is_json:
        from sparsebert.interop.super_tickets import from_super_tickets

        return from_super_tickets(path, _required(model, path, "lists heads or MLPs by number"), task)
    if start.startswith(_NPY_MAGIC):
        return _from_array(path, _required(model, path, "holds an array without matrix names or shapes"))
    # The lowest byte of a ticket file's header length may equal a pickle's first byte; then the header's "{"
    # in ninth place tells them apart.
    from sparsebert.interop.bert_tickets import from_bert_tickets, holds_masks

    if (start.startswith((_ZIP_MAGIC, _PICKLE_MAGIC)) and not start.endswith(b"{")) or holds_masks(path):
        ticket = from_bert_tickets(path, model)
    else:
        from sparsebert.tickets.ticket import Ticket

        ticket = Ticket.load(path)
    if model is not None:
        ticket.check(model)
    return ticket


def is_foreign_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Return whether :func:`read_checkpoint` reads a folder, according to its config.json and its names."""
    from sparsebert.interop.bert_tickets import is_pruned_folder
    from sparsebert.interop.movement_pruning import is_movement_checkpoint
    from sparsebert.interop.nn_pruning import is_nn_pruning_model

    return is_nn_pruning_model(folder) or is_movement_checkpoint(folder) or is_pruned_folder(folder)


def read_checkpoint(
    folder: str | os.PathLike[str], *, method: str | None = None, threshold: float | None = None
) -> Ticket:
    """Read the ticket of a checkpoint of nn_pruning, movement pruning or a live ``torch.nn.utils.prune``.

    Args:
        folder: The checkpoint's folder.
        method: As for :func:`sparsebert.interop.movement_pruning.from_movement`.
        threshold: As for :func:`sparsebert.interop.movement_pruning.from_movement`.

    Raises:
        ValueError: As the functions that read the three kinds.
        FileNotFoundError: If the folder lacks a file.
    """
    from sparsebert.interop.bert_tickets import from_pruned_folder, is_pruned_folder
    from sparsebert.interop.movement_pruning import from_movement, is_movement_checkpoint
    from sparsebert.interop.nn_pruning import from_nn_pruning, is_nn_pruning_model

    if is_nn_pruning_model(folder):
        for option, value in (("method", method), ("threshold", threshold)):
            if value is not None:
                raise ValueError(f"{folder} holds a model of nn_pruning, which takes no {option}: omit it")
        return from_nn_pruning(folder)
    if method is None and not is_movement_checkpoint(folder) and is_pruned_folder(folder):
        return from_pruned_folder(folder)
    return from_movement(folder, method=method, threshold=threshold)


def _required(model: nn.Module | None, path: Path, reason: str) -> nn.Module:
    if model is None:
        raise ValueError(f"{path} {reason}; pass the model that the ticket belongs to")
    return model


def _from_array(path: Path, model: nn.Module) -> Ticket:
    from sparsebert.interop.bert_experiments import from_head_mask, is_head_mask
    from sparsebert.interop.smp import from_smp

    return from_head_mask(path, model) if is_head_mask(path) else from_smp(path, model)
