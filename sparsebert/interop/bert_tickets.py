"""Tickets of other projects, in and out: BERT-Tickets, Static Model Pruning (SMP, ACL 2023), torch.

Files of heads and MLPs are in :mod:`sparsebert.interop.bert_experiments`, checkpoints in
:mod:`sparsebert.interop.movement_pruning`.

Models pruned by ``torch.nn.utils.prune`` are read by ``Ticket.from_torch_prune``, plain models with zeros
in their weights by ``Ticket.from_model`` and made by ``Ticket.apply_``. No code from a file is ever run:
pickles are read with torch's restricted loader, arrays without pickle, or they are refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.prune import custom_from_mask

from sparsebert.atomic import replacing
from sparsebert.bert import canonical_key, resolve, structure
from sparsebert.interop.bert_experiments import from_head_mask, from_super_tickets, is_head_mask
from sparsebert.tickets.bits import pack_bits, packed_bytes, unpack_bits
from sparsebert.tickets.file import brief
from sparsebert.tickets.provenance import describe_model
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.errors import first_line

_WEIGHT_MASK, _BIAS_MASK = ".weight_mask", ".bias_mask"
_NPY_MAGIC = b"\x93NUMPY"
_ZIP_MAGIC, _PICKLE_MAGIC = b"PK\x03\x04", b"\x80"


def read_ticket(
    path: str | os.PathLike[str], model: nn.Module | None = None, *, task: str | None = None
) -> Ticket:
    """Read a ticket file of this project, of BERT-Tickets, SMP, bert-experiments or Super Tickets, told apart
    by what they hold.

    ``model``: the model that a .npy or .json file belongs to, whose shapes it needs; a ticket of any kind is
    checked against it. ``task``: as for :func:`from_super_tickets`, and for no other kind of file. Raises
    ValueError in one line for anything else, FileNotFoundError if there is nothing.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder: a ticket is one file (Ticket.from_model reads a model's zeros)"
        )
    with open(path, "rb") as file:
        start = file.read(9)
    # No text holds a NUL, and the length that a ticket file begins with always does.
    is_text = start.lstrip().startswith(b"{") and b"\0" not in start
    if task is not None and not is_text:
        raise ValueError(f"{path} holds one ticket: a task is for Super Tickets' lists of several")
    if start.startswith(_NPY_MAGIC):
        if model is None:
            raise ValueError(
                f"{path} is an array of mask bits, without shapes: it needs the model it belongs to"
            )
        return from_head_mask(path, model) if is_head_mask(path) else from_smp(path, model)
    if is_text:
        if model is None:
            raise ValueError(f"{path} lists heads or MLPs by number: it needs the model it belongs to")
        return from_super_tickets(path, model, task)
    # A ticket file begins with the length of its header, whose lowest byte may be a pickle's first.
    foreign = start.startswith((_ZIP_MAGIC, _PICKLE_MAGIC)) and not start.endswith(b"{")
    ticket = from_bert_tickets(path) if foreign else Ticket.load(path)
    if model is not None:
        ticket.check(model)
    return ticket


def from_bert_tickets(path: str | os.PathLike[str]) -> Ticket:
    """Read the masks of a ``mask.pt`` of BERT-Tickets (Chen et al. 2020), or of any state dict of a model
    pruned with ``torch.nn.utils.prune``: its ``<module>.weight_mask`` and ``<module>.bias_mask`` entries.

    In a BERT-Tickets folder mask.pt is one round ahead of the model.pt beside it: 10 % sparser.
    Raises ValueError in one line for a file that is cut off, holds other things than tensors (a pickled
    model, code), no masks, or masks of other values than 0 and 1; FileNotFoundError if there is none.
    """
    path = Path(path)
    state = restricted_load(path)
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a table of masks")
    masks: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(name, str) or not name.endswith((_WEIGHT_MASK, _BIAS_MASK)):
            continue
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise ValueError(f"{path}: {brief(name)} is no dense tensor")
        if not torch.all((value == 0) | (value == 1)):
            raise ValueError(f"{path}: {brief(name)} holds values other than 0 and 1")
        kind = masks if name.endswith(_WEIGHT_MASK) else biases
        key = canonical_key(name.rpartition(".")[0])
        if key in kind:
            raise ValueError(f"{path}: two masks for {key}")
        kind[key] = value.bool()
    if not masks:
        raise ValueError(f"{path} holds no masks: its entries should end in {_WEIGHT_MASK}")
    try:
        return Ticket(
            masks, bias_masks=biases, metadata={"method": "torch.nn.utils.prune", "source": path.name}
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def to_bert_tickets(ticket: Ticket, path: str | os.PathLike[str], *, prefix: str = "bert") -> None:
    """Write a ``mask.pt`` for BERT-Tickets' transfer scripts: float32, named ``<prefix>.<key>.weight_mask``.

    Their scripts take every matrix from it, the pooler's too: a matrix without a mask there is an error
    of theirs. Raises ValueError for removed modules, which it cannot say. What was at ``path`` stays until
    the new file is complete.
    """
    _refuse_removed(ticket, "a mask.pt")
    state = {f"{prefix}.{key}{_WEIGHT_MASK}": mask.float() for key, mask in ticket.masks.items()}
    state |= {f"{prefix}.{key}{_BIAS_MASK}": mask.float() for key, mask in ticket.bias_masks.items()}
    with replacing(Path(path)) as temporary:
        torch.save(state, temporary)


def from_smp(path: str | os.PathLike[str], model: nn.Module) -> Ticket:
    """Read a packed ``.npy`` of SMP for a model of the size it was made for.

    It holds one bit a weight of the encoder matrices in the order of their names (``layer.1`` before
    ``layer.10`` before ``layer.2``), each in row-major order, the first bit highest (``numpy.packbits``),
    and nothing else: no names, no shapes. Raises ValueError in one line if it is no such array, of
    another size than the model's, or for a model of another family; FileNotFoundError if there is none.
    """
    path = Path(path)
    keys = sorted(structure(model).linears)
    shapes = [tuple(torch.as_tensor(resolve(model, key).weight).shape) for key in keys]
    sizes = [rows * columns for rows, columns in shapes]
    total = sum(sizes)
    with open(path, "rb") as file:
        try:
            # Mapped first: a header may claim more than the file holds, or than memory does.
            packed = np.load(path, mmap_mode="r", allow_pickle=False) if file.read(6) == _NPY_MAGIC else None
        except (ValueError, OSError, EOFError, SyntaxError) as error:
            raise ValueError(f"{path} is no usable .npy file: {first_line(error)}") from None
    if packed is None or packed.dtype != np.uint8 or packed.ndim != 1:
        found = "something else" if packed is None else f"{packed.dtype} {list(packed.shape)}"
        raise ValueError(f"{path}: a .npy file with one row of uint8 is expected, not {found}")
    if len(packed) != packed_bytes([total]):
        raise ValueError(
            f"{path}: {len(packed)} bytes where the {len(keys)} encoder matrices of {type(model).__name__} "
            f"need {packed_bytes([total])}"
        )
    parts = unpack_bits(np.asarray(packed), [total], str(path)).split(sizes)
    masks = {key: part.view(shape).clone() for key, part, shape in zip(keys, parts, shapes, strict=True)}
    metadata = {"method": "SMP", "source": path.name, "model": describe_model(model)}
    return Ticket({key: masks[key] for key in structure(model).linears}, metadata=metadata)


def to_smp(ticket: Ticket, path: str | os.PathLike[str], model: nn.Module) -> None:
    """Write a ticket of a model as SMP's packed ``.npy`` (see :func:`from_smp`).

    Raises ValueError, with nothing written, if the ticket does not fit the model or holds what the file
    has no room for: other matrices than the encoder's (a pooler), biases, removed modules.
    What was at ``path`` stays until the new file is complete.
    """
    ticket.check(model)
    keys = sorted(structure(model).linears)
    if wrong := sorted(ticket.masks.keys() ^ set(keys)):
        what = "leaves out" if wrong[0] in keys else "also masks"
        raise ValueError(
            f"an SMP file holds the encoder matrices and no others; the ticket {what} {wrong[0]}"
        )
    _refuse_removed(ticket, "an SMP file")
    if ticket.bias_masks:
        raise ValueError(f"an SMP file holds no masks of biases; the ticket masks {min(ticket.bias_masks)}'s")
    flat = torch.cat([ticket.masks[key].flatten() for key in keys])
    with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
        np.save(file, pack_bits(flat).numpy(), allow_pickle=False)


def to_torch_prune_(ticket: Ticket, model: nn.Module) -> nn.Module:
    """Prune a model in place with ``torch.nn.utils.prune``, as other libraries expect it; returns the model.

    A model that is pruned that way already keeps what both keep. Raises ValueError, with the model
    unchanged, if the ticket does not fit, or for removed modules, which it cannot say.
    """
    _refuse_removed(ticket, "torch.nn.utils.prune")
    ticket.check(model)
    for name, masks in (("weight", ticket.masks), ("bias", ticket.bias_masks)):
        for key, mask in masks.items():
            module = resolve(model, key)
            custom_from_mask(module, name, mask.to(getattr(module, name).device))
    return model


def _refuse_removed(ticket: Ticket, target: str) -> None:
    if ticket.removed:
        raise ValueError(f"{target} cannot say that whole modules are removed: {ticket.removed[0]}")


def restricted_load(path: Path) -> Any:
    """What torch.save wrote, if it is tensors and plain containers; no code of the file is run."""
    with open(path, "rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except UnpicklingError:
            raise ValueError(
                f"{path} is refused: it is damaged or holds more than tensors (a pickled model, perhaps), "
                "and loading that could run its author's code; only masks in a table of tensors are read"
            ) from None
        except Exception as error:  # of the unpickler and the zip reader: too many kinds to name
            raise ValueError(f"{path} is cut off or no file of torch.save: {first_line(error)}") from None
