"""Linear layers whose masks are learned, with scores beside the weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebert.mask_learning.rule import Gated
from sparsebert.pruning.granularity import Granularity
from sparsebert_kernels.masked import masked_linear, pack_mask


class LearnedLinear(nn.Linear):
    """A linear layer seen through a mask that is set from outside, once an optimizer step.

    It takes over weight and bias of another one, under the same names. ``mask_scores`` (the name that Hugging
    Face's movement pruning uses) are beside them where this layer is the first that the scores belong to.

    y = x @ where(mask, W, 0).T + bias;  the gradient of the weight is zero where the mask is, that of the
    scores is dL/dmask = dL/dW' * W everywhere, summed over the weights of a unit.

    ``scores``: of units cut out of the weight by ``units``, float32 of the grid's shape, or of the weight's
    shape; None if there are none to train. ``owns``: whether they are parameters of this layer, not another.
    """

    def __init__(
        self, linear: nn.Linear, scores: nn.Parameter | None, units: Granularity, owns: bool
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.train(linear.training)
        if owns:
            self.mask_scores = scores
        # In a tuple: an attribute of its own would make it a parameter of this layer too.
        self._scores = (scores,)
        self._units = units
        self._packed: Tensor | None = None

    def set_mask(self, mask: Tensor) -> None:
        """The mask (bool [out, in], True = keep, on the weight's device) from now on."""
        self._packed = pack_mask(mask)

    def forward(self, input: Tensor) -> Tensor:
        if self._packed is None:
            raise RuntimeError("a learned layer was run before it was given a mask")
        (scores,) = self._scores
        if scores is not None and scores.shape != self.weight.shape:
            scores = _Spread.apply(scores, self._units, self.weight.shape)
        return masked_linear(input, self.weight, self._packed, self.bias, scores=scores)


class GatedLinear(LearnedLinear):
    """Weights multiplied by gates: y = x @ (z * W).T + bias, with gates z(S) that are random in training.

    Dense: z is real, so the product is a matrix of its own in every forward. Outside of training the gates
    are those of the trained model.
    """

    def __init__(
        self, linear: nn.Linear, scores: nn.Parameter, units: Granularity, owns: bool, rule: Gated
    ) -> None:
        super().__init__(linear, scores, units, owns)
        self._rule = rule
        self._uniform: Tensor | None = None

    def set_uniform(self, uniform: Tensor) -> None:
        """The random numbers, one a unit, that training draws its gates of from now on."""
        self._uniform = uniform

    def gates(self) -> Tensor:
        """[out, in], differentiable in the scores."""
        (scores,) = self._scores
        assert scores is not None
        gates = self._rule.gates(scores, self._uniform if self.training else None)
        shape = self.weight.shape
        return self._units.expand(gates.view(self._units.units(shape)), shape)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.gates() * self.weight, self.bias)


class _Spread(torch.autograd.Function):
    """Scores of units as those of their weights, whose values nobody reads: no memory is taken for them."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, units: Granularity, shape: torch.Size) -> Tensor:
        ctx.units, ctx.grid = units, scores.shape
        return scores.new_zeros(()).expand(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return ctx.units.tiles(gradient, 0.0).sum(-1).view(ctx.grid), None, None
