"""Head and MLP lists of Super Tickets (Liang et al. 2021, "Super Tickets in Pre-Trained Language Models").

``heads_to_mask.json``, {task: {layer: [heads]}}, lists the pruned heads, and ``ffn_to_mask.json``,
{task: [layers]}, the layers with a pruned MLP. Both files are in the same folder. A layer without its MLP
returns LN(input).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.atomic import write_text
from sparsebert.bert import structure
from sparsebert.interop.head_mlp_tickets import whole_units
from sparsebert.json_object import read_json_object
from sparsebert.pruning.head_mlp_masks import UnitMasks
from sparsebert.tickets.file import brief
from sparsebert.tickets.ticket import Ticket

_HEAD_FILE, _MLP_FILE = "heads_to_mask.json", "ffn_to_mask.json"
_MAX_BYTES = 1 << 20


def from_super_tickets(path: str | os.PathLike[str], model: nn.Module, task: str | None = None) -> Ticket:
    """Read ``heads_to_mask.json`` or ``ffn_to_mask.json``, and the other file if it is in the same folder.

    Args:
        path: One of the two files.
        model: The model that the lists belong to.
        task: The id of the task whose lists to read; required if the files hold several tasks.

    Raises:
        ValueError: In one line, for another kind of file, layers or heads that the model lacks, and lists
            of several tasks without ``task``.
        FileNotFoundError: If ``path`` does not exist.
    """
    path = Path(path)
    encoder = structure(model)
    heads = torch.ones(len(encoder.heads), encoder.num_heads, dtype=torch.bool)
    mlps = torch.ones(len(encoder.heads), dtype=torch.bool)
    mlp_file = path if path.name == _MLP_FILE else path.with_name(_MLP_FILE)
    head_file = path.with_name(_HEAD_FILE) if path.name == _MLP_FILE else path
    if head_file == path or head_file.exists():
        layers = _lists_of_task(head_file, task)
        if not isinstance(layers, dict):
            raise ValueError(f"{head_file} must hold lists of heads by layer, got {brief(layers)}")
        for layer, pruned in layers.items():
            row = heads[_index(head_file, "layer", layer, len(heads))]
            row[_indices(head_file, "head", pruned, len(row))] = False
    if mlp_file == path or mlp_file.exists():
        mlps[_indices(mlp_file, "layer", _lists_of_task(mlp_file, task), len(mlps))] = False
    fields = {} if task is None else {"task": task}
    return UnitMasks(heads, mlps).ticket(model, {"method": "super-tickets", "source": path.name, **fields})


def to_super_tickets(ticket: Ticket, path: str | os.PathLike[str], model: nn.Module) -> None:
    """Write a ticket of whole heads and MLPs as the lists of task 0: the heads, and ``ffn_to_mask.json``.

    Raises:
        ValueError: With nothing written, for a ticket that the files cannot express (see
            :func:`sparsebert.interop.head_mlp_tickets.whole_units`) or another file name.
    """
    path = Path(path)
    if path.name != _HEAD_FILE:
        raise ValueError(
            f"the file must be named {_HEAD_FILE}, as the code of Super Tickets expects ({_MLP_FILE} is "
            f"written beside it), got {path}"
        )
    masks = whole_units(ticket, model)
    heads = {layer: _pruned(kept) for layer, kept in enumerate(masks.heads) if not kept.all()}
    for file, lists in ((path, heads), (path.with_name(_MLP_FILE), _pruned(masks.mlps))):
        write_text(file, json.dumps({"0": lists}))


def _pruned(kept: Tensor) -> list[int]:
    return [int(index) for index in (~kept).nonzero().flatten()]


def _lists_of_task(path: Path, task: str | None) -> Any:
    """Return the lists of a task from a file, or the lists of its only task if ``task`` is None."""
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise ValueError(f"{path} is too large for lists of heads or MLPs: {size} bytes")
    table = read_json_object(path)
    if not table:
        raise ValueError(f"{path} must hold a table of tasks, got an empty one")
    if task is None and len(table) > 1:
        raise ValueError(
            f"{path} holds the lists of tasks {', '.join(table)}; choose one with `sparsebert convert --task`"
        )
    task = next(iter(table)) if task is None else task
    if task not in table:
        raise ValueError(f"{path} holds no lists of task {task}; its tasks: {', '.join(table)}")
    return table[task]


def _indices(path: Path, kind: str, values: Any, count: int) -> list[int]:
    if not isinstance(values, list):
        raise ValueError(f"{path} must hold a list of {kind}s, got {brief(values)}")
    return [_index(path, kind, value, count) for value in values]


def _index(path: Path, kind: str, value: Any, count: int) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        index = int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: a {kind} must be a whole number, got {brief(value)}") from None
    if not 0 <= index < count or (isinstance(value, float) and value != index):
        raise ValueError(f"{path}: the model has {kind}s 0 to {count - 1}, got {kind} {brief(value)}")
    return index
