"""Weights saved while ``torch.nn.utils.prune`` or a masked layer was live.

Such a state holds ``weight_orig`` and ``weight_mask`` in place of ``weight``; masked layers of other projects
keep the name ``weight`` beside ``weight_mask``. The same goes for biases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from sparsebert.checkpoints.plain_tensors import require_plain

ORIG, MASK = "_orig", "_mask"
_PARAMETERS = ("weight", "bias")


def has_pairs(names: Iterable[str]) -> bool:
    """Whether tensors of these names are masked weights."""
    return any(_parameter(name) for name in names)


def merge_pairs(state: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Return the state with every masked weight in place of its pair: zero where the mask prunes it.

    Args:
        state: Tensors by name.
        source: The file or folder, for messages.

    Raises:
        ValueError: In one line, for half a pair, for shapes that differ, and for mask values other than 0
            and 1.
    """
    merged = {name: value for name, value in state.items() if not _parameter(name)}
    for parameter in dict.fromkeys(filter(None, map(_parameter, state))):
        original = parameter if parameter in state and parameter + ORIG not in state else parameter + ORIG
        for name in (original, parameter + MASK):
            if name not in state:
                raise ValueError(f"{source} holds half a pruned weight of {parameter}: {name} is missing")
        merged[parameter] = _masked(state, original, parameter + MASK, source)
    return merged


def _masked(state: Mapping[str, Tensor], name: str, mask_name: str, source: Path) -> Tensor:
    value, mask = state[name], state[mask_name]
    if value.shape != mask.shape:
        raise ValueError(f"{source}: {mask_name} is {list(mask.shape)}, {name} is {list(value.shape)}")
    for each in (name, mask_name):
        require_plain(state[each], each, source)
    pruned = mask == 0
    if not (pruned | (mask == 1)).all():
        raise ValueError(f"{source}: {mask_name!r} holds values other than 0 and 1")
    return value.detach().masked_fill(pruned, 0)


def _parameter(name: str) -> str | None:
    """Return the parameter that a name is half of, such as ``x.weight`` for ``x.weight_mask``."""
    path, _, last = name.rpartition(".")
    for parameter in _PARAMETERS:
        if last in (parameter + ORIG, parameter + MASK):
            return f"{path}.{parameter}" if path else parameter
    return None
