"""`FusedActivation`: the placeholder of an activation that a sparse layer applies itself."""

from __future__ import annotations

from torch import nn


class FusedActivation(nn.Identity):
    """The placeholder of an activation module that the up-projection before it applies itself.

    ``original`` is the activation module, which `densify_` puts back.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original
        self.train(original.training)
