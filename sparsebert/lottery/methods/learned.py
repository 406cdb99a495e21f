"""Methods that learn their masks while they train. Their rules are in :mod:`sparsebert.learned`."""

from __future__ import annotations

from dataclasses import dataclass

from sparsebert.learned import ramped
from sparsebert.lottery.learned import LearnedMethod
from sparsebert.lottery.registry import register


@register("gradual")
@dataclass(frozen=True)
class GradualMagnitude(LearnedMethod, ramped.GradualMagnitude):
    __doc__ = ramped.GradualMagnitude.__doc__


@register("movement")
@dataclass(frozen=True)
class Movement(LearnedMethod, ramped.Movement):
    __doc__ = ramped.Movement.__doc__


@register("soft-movement")
@dataclass(frozen=True)
class SoftMovement(LearnedMethod, ramped.SoftMovement):
    __doc__ = ramped.SoftMovement.__doc__

    @property
    def takes_sparsity(self) -> bool:
        return False

    def check_units(self, granularity: str, scope: str) -> None:
        super().check_units(granularity, scope)
        if scope != self.scope:
            raise ValueError(f"method {self.name} compares no scores: scope {scope!r} means nothing to it")
