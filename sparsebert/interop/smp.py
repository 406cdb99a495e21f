"""Packed ``.npy`` masks of Static Model Pruning (SMP; Jiang et al. 2023, "Pruning Pre-trained Language Models
Without Fine-Tuning").

The file holds only one bit per weight of the encoder matrices, without names or shapes. Matrices are sorted
by name (``layer.1`` before ``layer.10`` before ``layer.2``). Each is row-major, and the first bit of a byte
is the highest (``numpy.packbits``).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sparsebert.atomic import replacing
from sparsebert.bert import resolve, structure
from sparsebert.interop.npy_files import read_array
from sparsebert.interop.torch_prune import refuse_removed_modules
from sparsebert.tickets.bits import pack_bits, packed_bytes, unpack_bits
from sparsebert.tickets.provenance import describe_model
from sparsebert.tickets.ticket import Ticket


def from_smp(path: str | os.PathLike[str], model: nn.Module) -> Ticket:
    """Read a packed ``.npy`` of SMP.

    Args:
        path: The file.
        model: A model of the same size as the model of the file.

    Raises:
        ValueError: In one line, for another kind of array, a size that does not match the model's, or a
            model of an unsupported family.
        FileNotFoundError: If ``path`` does not exist.
    """
    path = Path(path)
    keys = sorted(structure(model).linears)
    shapes = [tuple(torch.as_tensor(resolve(model, key).weight).shape) for key in keys]
    sizes = [rows * columns for rows, columns in shapes]
    total = sum(sizes)
    packed = _packed_bits(path)
    if len(packed) != packed_bytes([total]):
        raise ValueError(
            f"{path} holds {len(packed)} bytes; the {len(keys)} encoder matrices of {type(model).__name__} "
            f"need {packed_bytes([total])}"
        )
    parts = unpack_bits(packed, [total], str(path)).split(sizes)
    masks = {key: part.view(shape).clone() for key, part, shape in zip(keys, parts, shapes, strict=True)}
    metadata = {"method": "SMP", "source": path.name, "model": describe_model(model)}
    return Ticket({key: masks[key] for key in structure(model).linears}, metadata=metadata)


def to_smp(ticket: Ticket, path: str | os.PathLike[str], model: nn.Module) -> None:
    """Write a ticket as a packed ``.npy`` of SMP.

    An existing file stays in place until the new one is complete.

    Raises:
        ValueError: For a ticket that does not fit the model, or one with masks that the file cannot express:
            of matrices outside the encoder (a pooler), biases or removed modules. Nothing is written.
    """
    ticket.check(model)
    keys = sorted(structure(model).linears)
    if different := sorted(ticket.masks.keys() ^ set(keys)):
        verb = "leaves out" if different[0] in keys else "also masks"
        raise ValueError(f"an SMP file holds exactly the encoder matrices; the ticket {verb} {different[0]}")
    refuse_removed_modules(ticket, "an SMP file")
    if ticket.bias_masks:
        raise ValueError(
            f"an SMP file cannot express bias masks; the ticket masks the bias of {min(ticket.bias_masks)}"
        )
    flat = torch.cat([ticket.masks[key].flatten() for key in keys])
    packed = pack_bits(flat).numpy()
    with replacing(Path(path), packed.nbytes) as temporary, open(temporary, "wb") as file:
        np.save(file, packed, allow_pickle=False)


def _packed_bits(path: Path) -> np.ndarray:
    """Return the file's vector of bytes, uint8 [bytes]. Raises ValueError for any other content."""
    packed = read_array(path)
    if packed.dtype != np.uint8 or packed.ndim != 1:
        content = f"{packed.dtype} {list(packed.shape)}"
        raise ValueError(f"{path} must be a .npy file with one row of uint8, got {content}")
    return np.asarray(packed)
