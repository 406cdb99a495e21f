"""Linear layers with a learned mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebert.conv1d import is_conv1d
from sparsebert.mask_learning.rule import Gated
from sparsebert.pruning.granularity import Granularity
from sparsebert_kernels.masked import masked_linear, pack_mask


class MaskedLinear(nn.Linear):
    """A linear layer with a mask that a :class:`~sparsebert.mask_learning.learner.Learner` sets each step.

    y = x @ where(mask, W, 0).T + bias. The gradient of a pruned weight is zero. The gradient of a score is
    dL/dmask = dL/dW' * W, summed over all weights of its unit, pruned or not.

    The layer shares the weight and the bias of a linear layer, under the same names. If it owns the scores,
    they are its parameter ``mask_scores``, as in Hugging Face's movement pruning.

    Args:
        linear: Linear layer or ``Conv1D`` whose weight and bias are shared.
        scores: Scores of the units, float32 in the shape of their grid or of the weight; None if untrained.
        units: How the weight is divided into units.
        owns_scores: Whether the scores are a parameter of this layer. A unit that spans several matrices has
            one set of scores, which one of its layers owns.
    """

    def __init__(
        self, linear: Any, scores: nn.Parameter | None, units: Granularity, owns_scores: bool
    ) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = linear.weight, linear.bias
        self._is_conv1d = is_conv1d(linear)
        self.out_features, self.in_features = self.matrix.shape
        self.train(linear.training)
        if owns_scores:
            self.mask_scores = scores
        # In a tuple: a plain attribute would register shared scores as a parameter of this layer too.
        self._scores = (scores,)
        self._units = units
        self._packed: Tensor | None = None

    @property
    def matrix(self) -> Tensor:
        """The weight as [out, in]; a view of that of a ``Conv1D``."""
        return self.weight.t() if self._is_conv1d else self.weight

    def set_mask(self, mask: Tensor) -> None:
        """Set the mask, bool [out, in], True = keep, on the device of the weight."""
        self._packed = pack_mask(mask)

    def forward(self, input: Tensor) -> Tensor:
        if self._packed is None:
            raise RuntimeError("a masked layer has no mask yet: call Learner.derive_ before the model")
        (scores,) = self._scores
        matrix = self.matrix
        if scores is not None and scores.shape != matrix.shape:
            scores = _Spread.apply(scores, self._units, matrix.shape)
        return masked_linear(input, matrix, self._packed, self.bias, scores=scores)


class GatedLinear(MaskedLinear):
    """A linear layer with gates: y = x @ (z * W).T + bias.

    The gates z(S) are random in training mode and deterministic otherwise. They are real numbers, so every
    forward pass multiplies by the dense matrix z * W.
    """

    def __init__(
        self, linear: Any, scores: nn.Parameter, units: Granularity, owns_scores: bool, rule: Gated
    ) -> None:
        super().__init__(linear, scores, units, owns_scores)
        self._rule = rule
        self._uniform: Tensor | None = None

    def set_uniform(self, uniform: Tensor) -> None:
        """Set the random numbers, one per unit, from which training samples its gates."""
        self._uniform = uniform

    def gates(self) -> Tensor:
        """Return the gates, [out, in], differentiable in the scores."""
        (scores,) = self._scores
        assert scores is not None
        gates = self._rule.gates(scores, self._uniform if self.training else None)
        shape = self.matrix.shape
        return self._units.expand(gates.view(self._units.units(shape)), shape)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.gates() * self.matrix, self.bias)


class _Spread(torch.autograd.Function):
    """Expand the scores of units to the shape of the weight, as zeros that take no memory.

    Only the backward pass matters: it sums the gradient over the weights of each unit.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, units: Granularity, shape: torch.Size) -> Tensor:
        ctx.units, ctx.grid = units, scores.shape
        return scores.new_zeros(()).expand(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return ctx.units.tiles(gradient, 0.0).sum(-1).view(ctx.grid), None, None
