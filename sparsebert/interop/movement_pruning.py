"""Tickets off checkpoints that transformers cannot load: HF's movement pruning, and nn_pruning.

Both are read as tables of tensors, with no model built from them. Pickles go through torch's restricted
loader, or they are refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sparsebert.bert import canonical_key, encoder_matrix
from sparsebert.interop.bert_tickets import restricted_load
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.errors import first_line, unknown

_SCORES, _WEIGHT = ".mask_scores", ".weight"
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# Of a matrix, soft movement always keeps this share and one weight more.
_FLOOR = 0.005
# The ends that hard concrete gates are stretched to.
_LOW, _HIGH = -0.1, 1.1


def is_foreign_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Whether a model's folder is one that this module reads, by what its config.json says."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        return False
    config = _config(path.parent)
    return "pruning_method" in config or _of_nn_pruning(config)


def from_checkpoint(
    folder: str | os.PathLike[str], *, method: str | None = None, threshold: float | None = None
) -> Ticket:
    """The ticket of a folder for which :func:`is_foreign_checkpoint` holds; raises as the two below do."""
    if _of_nn_pruning(_config(Path(folder))):
        return from_nn_pruning(folder)
    return from_movement(folder, method=method, threshold=threshold)


def from_movement(
    folder: str | os.PathLike[str], *, method: str | None = None, threshold: float | None = None
) -> Ticket:
    """Read a checkpoint of HF's movement-pruning code (Sanh et al. 2020), before their bertarize.py.

    ``method``: "topK" (movement), "sigmoied_threshold" (soft movement), "threshold", "magnitude" or "l0";
    that of its config.json where none is given. ``threshold``: their ``final_threshold``, not in any file:
    the share of each matrix to keep for topK and magnitude, what scores must exceed for the others; l0 has
    none. Scores are ``mask_scores`` beside each weight.

    Masks are those that their binarizers compute, to the bit where no scores tie; of equal ones at the edge
    the first stay. Of l0 the ticket says which gates are not 0: their model multiplies the weights by them.

    Raises ValueError in one line for an unknown method, a missing or impossible threshold, scores that are
    missing, NaN or of another shape than their weight (blocks), and files that are damaged or hold more than
    tensors; FileNotFoundError where there are none.
    """
    folder = Path(folder)
    chosen = method or _config(folder).get("pruning_method")
    if not isinstance(chosen, str):
        raise ValueError(
            f"{folder}: its config.json names no pruning_method: name one of {', '.join(_BINARIZERS)}"
        )
    if chosen not in _BINARIZERS:
        raise unknown("pruning method", chosen, _BINARIZERS)
    if threshold is None and chosen != "l0":
        raise ValueError(
            f"{folder}: masks of {chosen} follow from the final threshold of its run, which no file holds: "
            "name it"
        )
    if chosen in ("topK", "magnitude", "sigmoied_threshold") and not 0 <= float(threshold or 0) <= 1:
        raise ValueError(f"the threshold of {chosen} must be in [0, 1], not {threshold}")
    state = _state(folder)
    masks: dict[str, Tensor] = {}
    for name, weight in state.items():
        key = canonical_key(name.removesuffix(_WEIGHT))
        if not name.endswith(_WEIGHT) or encoder_matrix(key) is None:
            continue
        scores = weight.abs() if chosen == "magnitude" else state.get(name.removesuffix(_WEIGHT) + _SCORES)
        if scores is None:
            raise ValueError(f"{folder} holds no mask_scores of {key}: {chosen} needs them")
        if scores.shape != weight.shape:
            found = "x".join(map(str, scores.shape))
            raise ValueError(
                f"{folder}: the scores of {key} are {found}, those of blocks: only weights' are read"
            )
        if scores.isnan().any():
            raise ValueError(f"{folder}: a score of {key} is NaN")
        masks[key] = _BINARIZERS[chosen](scores.float(), float(threshold or 0))
    if not masks:
        raise ValueError(f"{folder} holds no encoder matrices of a BERT, RoBERTa, DistilBERT or ELECTRA")
    options = {} if threshold is None else {"threshold": threshold}
    step = {"operation": "read", "method": chosen, **options}
    return Ticket(
        masks, metadata={"method": f"movement-pruning {chosen}", "source": folder.name, "history": [step]}
    )


def from_nn_pruning(folder: str | os.PathLike[str]) -> Ticket:
    """Read the zeros of a model that nn_pruning compiled (Lagunas et al. 2021).

    Heads that its config.json calls ``pruned_heads`` are missing in its matrices, which transformers 5 takes
    for damage: here they are pruned rows and columns of the whole ones. Its biases are no part of the ticket.
    Raises ValueError in one line for pruned heads that do not fit the matrices, for training checkpoints
    (not compiled), and for files that are damaged or hold more than tensors; FileNotFoundError where there
    are none.
    """
    folder = Path(folder)
    config, state = _config(folder), _state(folder)
    if wrong := next((name for name in state if "mask_module" in name or name.endswith(_SCORES)), None):
        raise ValueError(
            f"{folder} is a checkpoint from training, with {wrong}: compile it with nn_pruning first"
        )
    try:
        heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
        gone = {
            int(layer): {int(head) for head in of} for layer, of in config.get("pruned_heads", {}).items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"{folder}: its config.json does not say which heads there are") from None
    masks: dict[str, Tensor] = {}
    for name, weight in state.items():
        key = canonical_key(name.removesuffix(_WEIGHT))
        found = encoder_matrix(key) if name.endswith(_WEIGHT) else None
        if found is None:
            continue
        layer, kind = found
        mask = weight != 0
        if pruned := gone.get(int(layer.rpartition(".")[2])):
            kept = torch.ones(heads, dtype=torch.bool)
            if not all(0 <= head < heads for head in pruned):
                raise ValueError(f"{folder}: pruned heads {sorted(pruned)} of {layer}, which has {heads}")
            kept[list(pruned)] = False
            mask = _with_gone_heads(mask, kind, kept.repeat_interleave(width // heads), key, folder)
        masks[key] = mask
    if not masks:
        raise ValueError(f"{folder} holds no encoder matrices of a BERT, RoBERTa, DistilBERT or ELECTRA")
    return Ticket(masks, metadata={"method": "nn_pruning", "source": folder.name})


def _with_gone_heads(mask: Tensor, kind: str, kept: Tensor, key: str, folder: Path) -> Tensor:
    """The mask of a whole matrix, of that of what is left; ``kept``: bool [features of all heads]."""
    axis = {"query": 0, "key": 0, "value": 0, "attention_output": 1}.get(kind)
    if axis is None or mask.shape[axis] == len(kept):
        return mask
    if mask.shape[axis] != int(kept.sum()):
        raise ValueError(
            f"{folder}: {key} has {mask.shape[axis]} features of heads, not the {int(kept.sum())} left"
        )
    shape = list(mask.shape)
    shape[axis] = len(kept)
    return torch.zeros(shape, dtype=torch.bool).index_copy_(axis, kept.nonzero().flatten(), mask)


def _top(scores: Tensor, share: float) -> Tensor:
    # Their int(), of their product of floats: a count of the binarizer's is what is read, not the exact one.
    kept = int(share * scores.numel())
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().sort(descending=True, stable=True).indices[:kept]] = True
    return mask.view_as(scores)


def _above(scores: Tensor, compared: Tensor, threshold: float) -> Tensor:
    mask = compared > threshold
    entries = scores.numel()
    least = int(_FLOOR * entries) + 1
    if int(mask.count_nonzero()) < least:
        mask = scores > scores.flatten().kthvalue(max(entries - least, 1)).values
    return mask


_BINARIZERS: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "topK": _top,
    "magnitude": _top,
    "sigmoied_threshold": lambda scores, threshold: _above(scores, torch.sigmoid(scores), threshold),
    "threshold": lambda scores, threshold: _above(scores, scores, threshold),
    "l0": lambda scores, threshold: torch.sigmoid(scores) * (_HIGH - _LOW) + _LOW > 0,
}


def _of_nn_pruning(config: Mapping[str, Any]) -> bool:
    return bool(config.get("pruned_heads")) or config.get("layer_norm_type") == "no_norm"


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no usable JSON file: {first_line(error)}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no model's configuration")
    return config


def _state(folder: Path) -> dict[str, Tensor]:
    """Name -> tensor of the folder's weights."""
    path = next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} holds no weights: {' or '.join(_WEIGHT_FILES)} is expected")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no usable safetensors file: {first_line(error)}") from None
    state = restricted_load(path)
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a table of tensors")
    return {
        name: value
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
    }
