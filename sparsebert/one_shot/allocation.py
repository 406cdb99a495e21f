"""Allocation: the density of each matrix, by what its sparsity costs the model's last hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import resolve
from sparsebert.one_shot.budgets import Option, choose
from sparsebert.one_shot.calibration import TokenFilter, require_finite
from sparsebert.one_shot.dense_stream import DenseStream
from sparsebert.one_shot.error_curves import FIXED_DENSITIES, ErrorCurve
from sparsebert.one_shot.layer_problem import LayerProblem, SingularHessianError, Target
from sparsebert.one_shot.methods.sparsegpt import SparseGPT
from sparsebert.one_shot.moments import Moments
from sparsebert.one_shot.progress import ALLOCATE, ProgressReporter
from sparsebert.one_shot.progress_file import ProgressFile
from sparsebert.one_shot.segments import Segment, segments_of
from sparsebert.pruning.gradients import evaluating
from sparsebert.pruning.read_matrices import read_matrix

# Tokens that give the Hessians, and other tokens on which errors are measured: enough to rank matrices.
FITTED, JUDGED = 4096, 1024
# Densities that a matrix may get: this many, from a fraction of the mean density to a multiple of it.
GRID, SPAN = 48, 6.0
# The densities, as shares of the mean density, at which the error of a matrix is measured.
MEASURED = (0.4, 1.0)


@torch.no_grad()
def allocated(
    model: nn.Module,
    targets: Mapping[str, Target],
    batches: Sequence[Mapping[str, Any]],
    curves: Mapping[str, ErrorCurve] | None = None,
    saved: ProgressFile | None = None,
    reporter: ProgressReporter | None = None,
) -> dict[str, Target]:
    """Return the targets with the densities that cost the model least, at the same mean density.

    Every matrix is pruned alone, at two densities, by SparseGPT on the inputs of the dense model; its error
    is the relative squared change of the model's last hidden states. Errors of different matrices are taken
    to add up, and dynamic programming finds the densities with the least sum.

    Args:
        model: The dense model; unchanged at the end.
        targets: Targets by key, each at the mean density.
        batches: Calibration batches, of which the first texts are used.
        curves: The error curve of each matrix, of which the same two densities are read; None to measure.
        saved: Matrices that a killed run has measured.
        reporter: Told of each matrix.
    """
    density = float(next(iter(targets.values())).density)
    around = [share * density for share in MEASURED]
    if curves is None:
        points = error_points(model, targets, batches, around, saved, reporter)
    else:
        points = {key: [(each, curve.at(each)) for each in around] for key, curve in curves.items()}
    lines = {key: ErrorCurve.through(*of_key) for key, of_key in points.items()}
    weights = {key: target.group.weights for key, target in targets.items()}
    budget = density * sum(weights.values())
    lowest = density / SPAN
    grid = [min(1.0, lowest * SPAN ** (2 * index / (GRID - 1))) for index in range(GRID)]
    options = {
        key: [Option(lines[key].at(share), share * weights[key]) for share in dict.fromkeys(grid)]
        for key in targets
    }
    shares = {key: list(dict.fromkeys(grid))[index] for key, index in choose(options, budget).items()}
    # The programme works in steps of the budget: the rest is spread, so that the mean is exact.
    factor = _factor(shares, weights, budget)
    return {
        key: replace(target, density=Fraction(min(1.0, shares[key] * factor)).limit_denominator(10**6))
        for key, target in targets.items()
    }


@torch.no_grad()
def error_points(
    model: nn.Module,
    targets: Mapping[str, Target],
    batches: Sequence[Mapping[str, Any]],
    densities: Sequence[float] = FIXED_DENSITIES,
    saved: ProgressFile | None = None,
    reporter: ProgressReporter | None = None,
) -> dict[str, list[tuple[float, float]]]:
    """Measure the curve of each matrix at densities, ascending: (density, error); see :func:`allocated`."""

    def points(key: str, problem: LayerProblem, change: Change) -> list[tuple[float, float]]:
        return errors_at(problem, change, targets[key], densities)

    measured = measured_alone(model, targets, batches, points, saved, reporter)
    return {key: [(low, error) for low, error in of_key] for key, of_key in measured.items()}


def errors_at(
    problem: LayerProblem, change: Change, target: Target, densities: Sequence[float]
) -> list[tuple[float, float]]:
    """Measure a matrix alone, in the units of its target: (density, error); see :func:`allocated`."""
    at = [replace(target, density=Fraction(each).limit_denominator(10**6)) for each in densities]
    errors = [change(_pruned_alone(problem, thinner)) for thinner in at]
    return list(zip(densities, errors, strict=True))


def measured_alone(
    model: nn.Module,
    keys: Iterable[str],
    batches: Sequence[Mapping[str, Any]],
    measure: Callable[[str, LayerProblem, Change], Any],
    saved: ProgressFile | None = None,
    reporter: ProgressReporter | None = None,
) -> dict[str, Any]:
    """Return what ``measure`` tells of each matrix alone, JSON values, by key; for callers without gradients.

    Args:
        model: The dense model; unchanged at the end.
        keys: The matrices.
        batches: Calibration batches.
        measure: Takes the key, the problem on the dense model's inputs, and what a solution of it alone
            changes.
        saved: Values that a killed run has measured.
        reporter: Told of each matrix.
    """
    saved, reporter = saved or ProgressFile(), reporter or ProgressReporter({})
    keys = list(dict.fromkeys(keys))
    measured: dict[str, Any] = dict(saved.notes.get("measured", {}))
    reporter.skip((ALLOCATE, key) for key in measured)
    reporter.begin(ALLOCATE)
    if missing := [key for key in keys if key not in measured]:
        for key, problem, change in _matrices_alone(model, missing, batches):
            measured[key] = measure(key, problem, change)
            saved.add(measured=measured)
            reporter.finish(key)
    return {key: measured[key] for key in keys}


def _matrices_alone(
    model: nn.Module, keys: Sequence[str], batches: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, LayerProblem, Change]]:
    """Yield each matrix, its problem on the dense model's inputs, and what a solution of it alone changes."""
    fitted, judged = _parts(batches)
    tokens = TokenFilter(judged)
    with evaluating(model):
        dense = segments_of(model, keys, judged)
        for index in range(1, len(dense)):
            dense[index] = dense[index - 1].following(dense[index])
        wanted = list(tokens(dense[-1].outputs()))
        energy = sum(float(states.square().sum()) for states in wanted)

        def change(index: int, segment: Segment) -> float:
            for following in dense[index + 1 :]:
                segment = segment.following(following)
            pairs = zip(tokens(segment.outputs()), wanted, strict=True)
            return sum(float((ours - theirs).square().sum()) for ours, theirs in pairs) / energy

        segments = segments_of(model, keys, fitted)
        stream = DenseStream(segments[0], TokenFilter(fitted))
        for index, segment in enumerate(segments):
            if index:
                stream.follow(segment)
            measured = dense[index]
            for stage in segment.stages:
                moments = require_finite(Moments.of(stream.of(stage).inputs or ()), stage[0])
                # Without pruned layers before it, a matrix sees the dense model's inputs.
                moments = replace(moments, dense_second=moments.second, dense_mean=moments.mean)
                for key in stage:
                    weight = read_matrix(model, key, None).double()
                    alone = Change(resolve(model, key), weight, moments, partial(change, index, measured))
                    yield key, moments.problem(key, weight, alone.bias is not None), alone
                if measured.is_layer:
                    measured = measured.with_final(stage)


@dataclass(frozen=True)
class Change:
    """What other weights of one matrix change.

    Attributes:
        module: The module of the matrix.
        weight: Its dense weights, float64 [out, in].
        moments: Moments of its inputs.
        measure: Returns the relative squared change of the model's last hidden states.
    """

    module: nn.Module
    weight: Tensor
    moments: Moments
    measure: Callable[[], float]

    @property
    def bias(self) -> Tensor | None:
        """The bias of the matrix."""
        return self.module._parameters.get("bias")

    def __call__(self, pruned: Tensor) -> float:
        """Measure with weights, float64 [out, in], and the adjusted bias in place of the matrix's own."""
        before = {name: each.clone() for name, each in self.module._parameters.items() if each is not None}
        parameters: Any = self.module._parameters
        parameters["weight"].copy_(pruned)
        if self.bias is not None:
            self.bias.copy_(self.moments.bias(before["bias"].double().cpu(), self.weight, pruned))
        try:
            return self.measure()
        finally:
            for name, each in before.items():
                parameters[name].copy_(each)


def _pruned_alone(problem: LayerProblem, target: Target) -> Tensor:
    """Return a matrix pruned by SparseGPT; by magnitude where its Hessian is singular, to rank it at all."""
    try:
        return SparseGPT().prune_layer(problem, target).weight
    except SingularHessianError:
        return problem.weight.where(target.choose(problem.weight.abs()), 0.0)


def _parts(
    batches: Sequence[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Return batches of ``FITTED`` tokens and others of ``JUDGED``, each spread over all lengths.

    Where there are fewer tokens than that, all batches serve both.
    """
    if sum(map(_tokens, batches)) <= FITTED + JUDGED:
        return list(batches), list(batches)
    # Batches may be sorted by length: every second one is as good as all.
    judged = _spread(batches[1::2] or batches, JUDGED)
    taken = {id(batch) for batch in judged}
    return _spread([batch for batch in batches if id(batch) not in taken], FITTED) or judged, judged


def _spread(batches: Sequence[Mapping[str, Any]], tokens: int) -> list[Mapping[str, Any]]:
    """Return batches at even distances, of about this many tokens."""
    total = sum(_tokens(batch) for batch in batches)
    count = max(1, min(len(batches), round(len(batches) * tokens / max(total, 1))))
    return (
        [batches[(2 * index + 1) * len(batches) // (2 * count)] for index in range(count)] if batches else []
    )


def _tokens(batch: Mapping[str, Any]) -> int:
    mask = batch.get("attention_mask")
    first = next(value for value in batch.values() if isinstance(value, Tensor))
    return int(mask.sum()) if isinstance(mask, Tensor) else first.shape[:2].numel()


def _factor(shares: Mapping[str, float], weights: Mapping[str, int], budget: float) -> float:
    """Return the factor of all shares, each at most 1, that meets the budget."""
    low, high = 0.5, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        spent = sum(min(1.0, share * middle) * weights[key] for key, share in shares.items())
        low, high = (middle, high) if spent < budget else (low, middle)
    return high
