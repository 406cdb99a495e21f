"""Checkpoints of Hugging Face's movement pruning code (Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity
by Fine-Tuning"), before their ``bertarize.py``.

Transformers cannot load these checkpoints, so their tensors are read by name. Each weight has scores
(``mask_scores``), from which the masks are computed in the same way as by the binarizers of that code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from sparsebert.checkpoints.plain_tensors import require_plain
from sparsebert.checkpoints.weight_files import SCORES, read_config, read_weights
from sparsebert.interop.encoder_weights import encoder_weights
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.errors import unknown

# Soft movement keeps at least this share of a matrix, and one weight more.
_MIN_KEPT_SHARE = 0.005
# Interval that hard concrete gates are stretched to.
_LOW, _HIGH = -0.1, 1.1


def is_movement_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Return whether the config.json of a model's folder names a ``pruning_method``."""
    folder = Path(folder)
    return (folder / "config.json").is_file() and "pruning_method" in read_config(folder)


def from_movement(
    folder: str | os.PathLike[str], *, method: str | None = None, threshold: float | None = None
) -> Ticket:
    """Read the ticket of a movement pruning checkpoint.

    The masks are identical to the masks of the original binarizers unless scores tie; of tied scores at the
    threshold, the first are kept. For l0, the mask keeps the weights with open gates; the original model also
    multiplies these weights by their gates.

    Args:
        folder: The checkpoint's folder.
        method: "topK" (movement), "sigmoied_threshold" (soft movement), "threshold", "magnitude" or "l0"; by
            default the ``pruning_method`` of config.json.
        threshold: The ``final_threshold`` of the run, which is not stored in any file. For topK and magnitude
            it is the share of each matrix to keep. Kept weights have sigmoid(score) above it for
            sigmoied_threshold, and a score above it for threshold. l0 has no threshold.

    Raises:
        ValueError: In one line, for an unknown method; a missing or invalid threshold; scores that are
            missing, NaN or of another shape than their weight (blocks); files that are damaged or hold other
            objects than tensors.
        FileNotFoundError: If the folder lacks a file.
    """
    folder = Path(folder)
    method = _checked_method(method or read_config(folder).get("pruning_method"), threshold, folder)
    matrices, others = encoder_weights(read_weights(folder), folder)
    masks: dict[str, Tensor] = {}
    for key, weight in matrices.items():
        scores = weight.abs() if method == "magnitude" else others.get(key + SCORES)
        if scores is None:
            raise ValueError(f"{folder} holds no mask_scores for {key}; {method} needs them")
        require_plain(scores, key + SCORES, folder)
        if scores.shape != weight.shape:
            shape = "x".join(map(str, scores.shape))
            raise ValueError(
                f"{folder}: the scores of {key} are {shape}, one per block; expected one per weight"
            )
        if scores.isnan().any():
            raise ValueError(f"{folder}: a score of {key} is NaN")
        masks[key] = _BINARIZERS[method](scores.float(), float(threshold or 0))
    options = {} if threshold is None else {"threshold": threshold}
    step = {"operation": "read", "method": method, **options}
    return Ticket(
        masks, metadata={"method": f"movement-pruning {method}", "source": folder.name, "history": [step]}
    )


def _checked_method(method: object, threshold: float | None, folder: Path) -> str:
    """Return the method's name. Raises ValueError for an unknown one, or an unsuitable threshold."""
    if not isinstance(method, str):
        raise ValueError(
            f"{folder}: config.json names no pruning_method; pass one of {', '.join(_BINARIZERS)}"
        )
    if method not in _BINARIZERS:
        raise unknown("pruning method", method, _BINARIZERS)
    if threshold is None and method != "l0":
        raise ValueError(
            f"{folder}: the masks of {method} depend on the final_threshold of the run, which no file holds; "
            "pass it as the threshold"
        )
    if method in ("topK", "magnitude", "sigmoied_threshold") and not 0 <= float(threshold or 0) <= 1:
        raise ValueError(f"the threshold of {method} must be in [0, 1], got {threshold}")
    return method


def _top(scores: Tensor, share: float) -> Tensor:
    # int() of a float product, like the original binarizer: the counts must be equal, even where rounding
    # makes them inexact.
    kept = int(share * scores.numel())
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().sort(descending=True, stable=True).indices[:kept]] = True
    return mask.view_as(scores)


def _above(scores: Tensor, compared: Tensor, threshold: float) -> Tensor:
    mask = compared > threshold
    entries = scores.numel()
    least = int(_MIN_KEPT_SHARE * entries) + 1
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
