"""Methods that learn their masks while they train. Their rules are in :mod:`sparsebert.learned`."""

from __future__ import annotations

from dataclasses import dataclass

from sparsebert.learned import hard_concrete, ramped, static
from sparsebert.learned.static import Mask
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


@dataclass(frozen=True)
class _ByPenalty(LearnedMethod):
    """Base of the methods whose scores never compete: penalty and threshold decide how much stays."""

    @property
    def finds_sparsity(self) -> bool:
        return True

    def require_units(self, granularity: str, scope: str) -> None:
        super().require_units(granularity, scope)
        if scope != self.scope:
            raise ValueError(f"method {self.name} compares no scores: scope {scope!r} means nothing to it")


@register("soft-movement")
@dataclass(frozen=True)
class SoftMovement(_ByPenalty, ramped.SoftMovement):
    __doc__ = ramped.SoftMovement.__doc__


@register("l0")
@dataclass(frozen=True)
class HardConcrete(_ByPenalty, hard_concrete.HardConcrete):
    __doc__ = hard_concrete.HardConcrete.__doc__


@register("smp")
@dataclass(frozen=True)
class StaticModelPruning(LearnedMethod, static.StaticModelPruning):
    __doc__ = static.StaticModelPruning.__doc__

    @property
    def scope(self) -> str:
        return {Mask.GLOBAL: "global", Mask.SHARED: "type"}.get(self.mask, "matrix")

    @property
    def finds_sparsity(self) -> bool:
        return self.mask is Mask.THRESHOLD

    def require_units(self, granularity: str, scope: str) -> None:
        super().require_units(granularity, scope)
        if scope != self.scope:
            raise ValueError(f"mask {self.mask.value} of smp means scope {self.scope!r}, not {scope!r}")
