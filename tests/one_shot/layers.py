"""Small layers and targets for the tests of one-shot methods."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from sparsebert.one_shot import LayerProblem, Target
from sparsebert.pruning.granularity import parse_granularity, spelled_out
from sparsebert.pruning.unit_groups import UnitGroup

KEY = "encoder.layer.0.output.dense"


def layer(rows: int, columns: int, *, tokens: int | None = None, seed: int = 0) -> LayerProblem:
    """A random layer, its inputs correlated as those of an encoder are."""
    generator = torch.Generator().manual_seed(seed)
    tokens = tokens or 4 * columns
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = mixing @ torch.randn(columns, tokens, generator=generator, dtype=torch.float64)
    inputs *= torch.rand(columns, 1, generator=generator, dtype=torch.float64) + 0.2
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return problem_of(weight, inputs)


def problem_of(weight: Tensor, inputs: Tensor) -> LayerProblem:
    tokens = inputs.shape[1]
    return LayerProblem(KEY, weight, 2 * inputs @ inputs.t() / tokens, tokens)


def target(
    problem: LayerProblem,
    granularity: str = "element",
    sparsity: float = 0.5,
    *,
    mask: Tensor | None = None,
    round_to: int | None = None,
) -> Target:
    name, block_size = spelled_out(granularity)
    units = parse_granularity(name, block_size, round_to)
    density = Fraction(*units.pattern) if units.pattern else 1 - Fraction(str(sparsity))
    group = UnitGroup({problem.key: units}, {problem.key: problem.weight.shape})
    return Target(group, density, mask, units.pattern)
