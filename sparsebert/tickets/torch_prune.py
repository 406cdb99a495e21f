"""Masks of models pruned with ``torch.nn.utils.prune``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import canonical_key, is_bert_like, structure, weight_of
from sparsebert.conv1d import is_conv1d, oriented


def read_masks(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read the ``weight_mask`` and ``bias_mask`` buffers of a model; see ``Ticket.from_torch_prune``.

    Returns:
        Weight masks (bool [out, in]) and bias masks (bool [out]), by key, True = keep.

    Raises:
        ValueError: There are no such buffers, a layer other than ``nn.Linear`` has one, or one holds values
            other than 0 and 1.
    """
    masks: dict[str, Tensor] = {}
    bias_masks: dict[str, Tensor] = {}
    prefix = ""
    if is_bert_like(model):
        masks = {key: _keep_all(weight_of(model, key)) for key in structure(model).linears}
        prefix = f"{structure(model).prefix}."
    pruned = False
    for name, buffer in model.named_buffers():
        path, _, kind = name.rpartition(".")
        if kind not in ("weight_mask", "bias_mask"):
            continue
        module: Any = model.get_submodule(path)
        if not isinstance(module, nn.Linear) and not is_conv1d(module):
            raise ValueError(f"{path} is a {type(module).__name__}; only masks of nn.Linear can be read")
        if not torch.all((buffer == 0) | (buffer == 1)):
            raise ValueError(f"{name} holds values other than 0 and 1")
        pruned = True
        key = canonical_key(path.removeprefix(prefix))
        masks.setdefault(key, _keep_all(oriented(module, module.weight)))
        (masks if kind == "weight_mask" else bias_masks)[key] = oriented(module, buffer.bool())
    if not pruned:
        raise ValueError(f"no layer of {type(model).__name__} is pruned with torch.nn.utils.prune")
    return masks, bias_masks


def _keep_all(weight: Tensor) -> Tensor:
    return torch.ones_like(weight, dtype=torch.bool)
