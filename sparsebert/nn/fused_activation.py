"""``FusedActivation``: the placeholder for an activation that a sparse layer applies itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsebert.nn.skeleton import skeleton, stand_in_


class FusedActivation(nn.Identity):
    """The placeholder for an activation module; the up-projection before it applies the activation.

    ``original`` is the activation module, which ``densify_`` puts back.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original
        self.train(original.training)


@torch.no_grad()
def can_fuse(parent: nn.Module, up: nn.Module, activation: nn.Module) -> bool:
    """Whether an up-projection may apply the activation itself.

    It may if the activation's input is the up-projection's output, which has no other use. A run of the
    parent on stand-ins tells.

    Args:
        parent: The module that calls both and, perhaps, the down-projection.
        up: The up-projection; with ``in_features`` and ``out_features``, as every linear layer has.
        activation: The activation.
    """
    copies: dict[nn.Module, nn.Module] = {}
    copy = skeleton(parent, copies)
    generator = torch.Generator().manual_seed(0)
    x, y, z, other = (torch.randn(1, 2, width, generator=generator) for width in _widths(up))
    linears = [child for child in copies if child is not up and hasattr(child, "out_features")]
    of_up = stand_in_(copies[up], lambda _: y)
    of_activation = stand_in_(copies[activation], lambda _: z)
    of_down = [stand_in_(copies[linear], lambda _: other) for linear in linears]
    try:
        result = copy(x)
    except Exception:  # an unknown module may fail in any way
        return False
    after = [result] if not linears else [each for calls in of_down for each in calls]
    return (
        len(of_up) == len(of_activation) == len(after) == 1
        and torch.equal(of_activation[0], y)
        and isinstance(after[0], Tensor)
        and torch.equal(after[0], z)
    )


def _widths(up: nn.Module) -> tuple[int, int, int, int]:
    rows, columns = int(up.out_features), int(up.in_features)  # type: ignore[arg-type]
    return columns, rows, rows, columns
