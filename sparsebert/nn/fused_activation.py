"""``FusedActivation``: the placeholder for an activation that a sparse layer applies itself."""

from __future__ import annotations

from torch import nn


class FusedActivation(nn.Identity):
    """The placeholder for an activation module; the up-projection before it applies the activation.

    ``original`` is the activation module, which ``densify_`` puts back.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original
        self.train(original.training)
