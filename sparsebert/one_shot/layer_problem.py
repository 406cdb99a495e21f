"""The problem that a one-shot method solves for one matrix: reproduce its outputs with fewer weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from sparsebert.one_shot.triangular import inverse_of_lower
from sparsebert.pruning.granularity import Granularity, keep_n_of_m
from sparsebert.pruning.panel_rounding import round_panels
from sparsebert.pruning.top_k import ranked, select_top
from sparsebert.pruning.unit_groups import UnitGroup

LAYER_METHODS: dict[str, type[Any]] = {}

# Diagonal entry of an input that is always 0, as a share of the Hessian's mean diagonal.
_DEAD = 1e-12


class SingularHessianError(ValueError):
    """The Hessian of a matrix has no Cholesky factor, even damped."""


@dataclass(frozen=True)
class LayerProblem:
    """A matrix W [out, in] and the inputs X [in, tokens] that calibration showed it.

    Attributes:
        key: Key of the matrix.
        weight: W, float64 [out, in].
        hessian: H = 2 X X^T / tokens, float64 [in, in]: the Hessian of the mean squared error of each output,
            the same for all rows of W (Frantar and Alistarh 2022, "Optimal Brain Compression", section 4).
        tokens: Number of tokens in X.
    """

    key: str
    weight: Tensor
    hessian: Tensor
    tokens: int
    _factors: dict[float, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def error(self, weight: Tensor) -> float:
        """Return the share of the outputs' energy that ``weight`` (float64 [out, in]) loses.

        tr((W - W') H (W - W')^T) / tr(W H W^T): 0 for equal outputs, 1 for outputs of zeros.
        """
        change = self.weight - weight
        energy = (self.weight @ self.hessian * self.weight).sum()
        return float((change @ self.hessian * change).sum() / energy) if energy > 0 else 0.0

    def damped_hessian(self, damping: float) -> Tensor:
        """Return H + damping * mean(diag H) * I, float64 [in, in].

        The weights of inputs that are always 0 have no effect: their diagonal entries become tiny instead, so
        that they are pruned first and the matrix stays invertible.
        """
        diagonal = self.hessian.diagonal()
        mean = diagonal.mean()
        extra = torch.full_like(diagonal, float(damping * mean))
        damped = self.hessian.clone()
        damped.diagonal().add_(extra.masked_fill_(diagonal == 0, float(_DEAD * mean)))
        return damped

    def inverse_factor(self, damping: float) -> Tensor:
        """Return the upper Cholesky factor U of the inverse of the damped Hessian, H^-1 = U^T U.

        float64 [in, in]. Row j of U, divided by U_jj, holds what the removal of weight j adds to the weights
        at its right, once those at its left are fixed (Frantar and Alistarh 2023, "SparseGPT", section 3.3).

        Raises SingularHessianError, naming the matrix, if the damped Hessian is not positive definite.
        """
        if damping in self._factors:
            return self._factors[damping]
        # With rows and columns in reverse order, H = L L^T gives H = R R^T with an upper R: U is R^-1.
        lower, failed = torch.linalg.cholesky_ex(self.damped_hessian(damping).flip(0, 1))
        if failed:
            raise self.singular(damping)
        self._factors[damping] = inverse_of_lower(lower).flip(0, 1)
        return self._factors[damping]

    def singular(self, damping: float) -> SingularHessianError:
        """Return the error of a damped Hessian that is not positive definite."""
        if not self.hessian.any():
            return SingularHessianError(
                f"the Hessian of {self.key} is singular: its inputs do not vary, as behind values that are "
                "pruned out; use a lower sparsity, or allow magnitude there"
            )
        return SingularHessianError(
            f"the Hessian of {self.key} is singular with damping {damping:g}: {self.tokens} calibration "
            "tokens are too few or too alike; pass more texts, a larger damping, or allow magnitude there"
        )


@dataclass(frozen=True)
class Target:
    """What a pruned matrix keeps: units of one granularity at a density, or the weights of a mask.

    Attributes:
        group: The matrix cut into units.
        density: Share of the weights to keep.
        mask: Weights to keep, bool [out, in], where they are chosen already; None to choose.
        pattern: (n, m) if n of every m neighbours along in_features are kept.
    """

    group: UnitGroup
    density: Fraction
    mask: Tensor | None = None
    pattern: tuple[int, int] | None = None

    @property
    def single_weights(self) -> bool:
        """Whether units are single weights that compete freely."""
        return self.mask is None and self.pattern is None and self._units.block == (1, 1)

    @property
    def spans_columns(self) -> bool:
        """Whether units must be chosen over the whole matrix: rows reach across it, panels are rounded."""
        return self._units.block[1] is None or self._units.quantum > 1

    @property
    def unit_shape(self) -> tuple[int, int]:
        """Rows and columns of a unit that is not at an edge."""
        return self._units.block_in(self.group.shapes[self.group.name])

    @property
    def _units(self) -> Granularity:
        return self.group.parts[self.group.name]

    def of_columns(self, begin: int, end: int) -> Target:
        """Return the target of columns [begin, end), at the same density."""
        mask = None if self.mask is None else self.mask[:, begin:end]
        shape = torch.Size((self.group.shapes[self.group.name][0], end - begin))
        return replace(self, group=UnitGroup(self.group.parts, {self.group.name: shape}), mask=mask)

    def column_blocks(self, width: int) -> list[tuple[int, int]]:
        """Return [begin, end) of blocks of about ``width`` columns that cut no unit."""
        columns = self.group.shapes[self.group.name][1]
        step = self.pattern[1] if self.pattern else (self._units.block[1] or 1)
        width = max(width // step, 1) * step
        return [(begin, min(begin + width, columns)) for begin in range(0, columns, width)]

    def choose(self, saliency: Tensor) -> Tensor:
        """Choose units by the sum of their weights' saliencies, over the whole matrix.

        Args:
            saliency: [out, in], at least 0: what the loss of a weight costs.

        Returns:
            bool [out, in], True = keep: the mask if there is one.
        """
        if self.mask is not None:
            return self.mask
        if self.pattern:
            return keep_n_of_m(saliency.float(), *self.pattern)
        scores = ranked(self._unit_scores(saliency))
        weights = self.group.weights
        (kept,) = select_top([scores], [self.group.sizes], self.density * weights)
        (kept,) = round_panels([self.group], [scores], [kept])
        return self.group.expand(kept)[self.group.name]

    def _unit_scores(self, saliency: Tensor) -> Tensor:
        """Return the mean saliency of each unit, scaled to fit float32."""
        scale = saliency.max()
        scaled = saliency / scale if scale > 0 else saliency
        return self.group.pool({self.group.name: scaled.float()}, "mean")


class PrunedMatrix(NamedTuple):
    """The solution of a :class:`LayerProblem`.

    Attributes:
        weight: float64 [out, in], exactly 0 where the mask prunes.
        mask: bool [out, in], True = keep.
    """

    weight: Tensor
    mask: Tensor


class LayerMethod(Protocol):
    """A method that prunes one matrix at a time: a frozen dataclass with its options.

    Attributes:
        name: Name in ``LAYER_METHODS``.
        compensates: Whether the weights that stay change.
    """

    name: ClassVar[str]
    compensates: ClassVar[bool]

    def prune_layer(self, problem: LayerProblem, target: Target) -> PrunedMatrix: ...
