"""Heads and whole MLPs as other projects write them: arrays of bert-experiments, lists of Super Tickets.

bert-experiments (Prasanna et al. 2020): ``head_mask.npy`` [layers, heads] and ``mlp_mask.npy`` [layers], 1
for what stays. Super Tickets (Liang et al. 2021): ``heads_to_mask.json``, {task: {layer: [heads]}}, and
``ffn_to_mask.json``, {task: [layers]}, of what goes. Both let the output of a layer without its MLP be
LN(input), and both keep their two files side by side here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsebert.atomic import replacing, write_text
from sparsebert.bert import structure
from sparsebert.pruning.head_mlp_masks import UnitMasks
from sparsebert.tickets.file import brief
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.errors import first_line

_MLPS = "mlp_mask.npy"
_HEADS_JSON, _MLPS_JSON = "heads_to_mask.json", "ffn_to_mask.json"
_MOST_BYTES = 1 << 20


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


def to_head_mask(ticket: Ticket, path: str | os.PathLike[str], model: nn.Module) -> None:
    """Write a ticket of whole heads and MLPs as a head mask, float64, and ``mlp_mask.npy`` beside it.

    Raises ValueError, with nothing written, as :meth:`UnitMasks.of` does, for what the files cannot say, and
    for a path of another kind.
    """
    path = Path(path)
    if path.suffix != ".npy" or path.name == _MLPS:
        raise ValueError(f"{path}: the file of heads ends in .npy, and {_MLPS} goes beside it")
    masks = _sayable(ticket, model)
    for file, mask in ((path, masks.heads), (path.with_name(_MLPS), masks.mlps)):
        with replacing(file) as temporary, open(temporary, "wb") as out:
            np.save(out, mask.numpy().astype(np.float64), allow_pickle=False)


def from_super_tickets(path: str | os.PathLike[str], model: nn.Module, task: str | None = None) -> Ticket:
    """Read ``heads_to_mask.json`` or ``ffn_to_mask.json``, and the other one if it lies beside it.

    ``task``: the id whose lists are meant, where the files hold those of several. Raises ValueError in one
    line for a file that is no such table, for layers or heads that the model does not have, and for lists of
    several tasks that none is chosen of; FileNotFoundError if there is no file.
    """
    path = Path(path)
    found = structure(model)
    heads = torch.ones(len(found.heads), found.num_heads, dtype=torch.bool)
    mlps = torch.ones(len(found.heads), dtype=torch.bool)
    mlps_file = path if path.name == _MLPS_JSON else path.with_name(_MLPS_JSON)
    heads_file = path.with_name(_HEADS_JSON) if path.name == _MLPS_JSON else path
    if heads_file == path or heads_file.exists():
        layers = _of_task(heads_file, task)
        if not isinstance(layers, dict):
            raise ValueError(f"{heads_file}: lists of heads by layer are expected, not {brief(layers)}")
        for layer, pruned in layers.items():
            row = heads[_index(heads_file, "layer", layer, len(heads))]
            row[_indices(heads_file, "head", pruned, len(row))] = False
    if mlps_file == path or mlps_file.exists():
        mlps[_indices(mlps_file, "layer", _of_task(mlps_file, task), len(mlps))] = False
    of_task = {} if task is None else {"task": task}
    return UnitMasks(heads, mlps).ticket(model, {"method": "super-tickets", "source": path.name, **of_task})


def to_super_tickets(ticket: Ticket, path: str | os.PathLike[str], model: nn.Module) -> None:
    """Write a ticket of whole heads and MLPs as lists of task 0, and ``ffn_to_mask.json`` beside them.

    Raises ValueError, with nothing written, as :func:`to_head_mask` does.
    """
    path = Path(path)
    if path.name != _HEADS_JSON:
        raise ValueError(f"{path}: their code looks for {_HEADS_JSON}, and {_MLPS_JSON} beside it")
    masks = _sayable(ticket, model)
    heads = {layer: _pruned(kept) for layer, kept in enumerate(masks.heads) if not kept.all()}
    for file, lists in ((path, heads), (path.with_name(_MLPS_JSON), _pruned(masks.mlps))):
        write_text(file, json.dumps({"0": lists}))


def _sayable(ticket: Ticket, model: nn.Module) -> UnitMasks:
    """The heads and MLPs to keep, if they say all that the ticket does."""
    masks = UnitMasks.of(ticket, model)
    layers = structure(model).neurons
    removed = {
        key for keys, kept in zip(layers, masks.mlps.tolist(), strict=True) if not kept for key in keys
    }
    others = sorted(ticket.masks.keys() - set(structure(model).linears))
    problem = ""
    if others:
        problem = f"masks {others[0]}"
    elif ticket.bias_masks:
        problem = f"masks biases of {min(ticket.bias_masks)}"
    elif left := removed.difference(ticket.removed):
        problem = f"keeps the bias of {min(left)}, but none of its weights"
    if problem:
        raise ValueError(f"files of heads and MLPs have no room for it: the ticket {problem}")
    return masks


def _pruned(kept: Tensor) -> list[int]:
    return [int(index) for index in (~kept).nonzero().flatten()]


def _of_task(path: Path, task: str | None) -> Any:
    """What a file of theirs holds for a task; for the only one where none is named."""
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} is no list of heads or MLPs: it has {path.stat().st_size} bytes")
    try:
        table = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no usable JSON file: {first_line(error)}") from None
    if not isinstance(table, dict) or not table:
        raise ValueError(f"{path}: a table of tasks is expected, not {brief(table)}")
    if task is None and len(table) > 1:
        raise ValueError(
            f"{path} holds the lists of tasks {', '.join(table)}: `sparsebert convert --task` makes a ticket "
            "of one of them"
        )
    chosen = next(iter(table)) if task is None else task
    if chosen not in table:
        raise ValueError(f"{path} holds no lists of task {chosen}; its tasks: {', '.join(table)}")
    return table[chosen]


def _indices(path: Path, what: str, values: Any, count: int) -> list[int]:
    if not isinstance(values, list):
        raise ValueError(f"{path}: a list of {what}s is expected, not {brief(values)}")
    return [_index(path, what, value, count) for value in values]


def _index(path: Path, what: str, value: Any, count: int) -> int:
    try:
        index = int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{path}: {brief(value)} is no number of a {what}") from None
    if not 0 <= index < count or (isinstance(value, float) and value != index):
        raise ValueError(f"{path}: {what} {brief(value)}, where the model has {what}s 0 to {count - 1}")
    return index


def _mask(path: Path, shape: tuple[int, ...]) -> Tensor:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        raise ValueError(f"{path} is no usable .npy file: {first_line(error)}") from None
    if values.shape != shape:
        raise ValueError(f"{path}: a mask of {list(values.shape)}, where the model has {list(shape)}")
    if values.dtype.kind not in "bfiu" or not np.isin(values, (0, 1)).all():
        raise ValueError(f"{path} holds values other than 0 and 1")
    return torch.from_numpy(np.array(values, dtype=bool))
