"""One-shot pruning layer by layer, each on the activations of the model as pruned so far."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sparsebert.bert import resolve
from sparsebert.one_shot.calibration import Residuals, TokenFilter, stage_moments
from sparsebert.one_shot.layer_problem import (
    LayerMethod,
    LayerProblem,
    PrunedMatrix,
    SingularHessianError,
    Target,
)
from sparsebert.one_shot.moments import Moments
from sparsebert.one_shot.progress import PRUNE, ProgressReporter
from sparsebert.one_shot.progress_file import ProgressFile
from sparsebert.one_shot.segments import Segment
from sparsebert.pruning.read_matrices import read_matrix


@dataclass
class LayerwiseRun:
    """Prunes a model in place.

    Attributes:
        model: The model.
        method: The method.
        targets: What each matrix keeps, by key.
        asymmetric: Whether matrices reproduce the dense model's outputs rather than their own.
        magnitude_where_singular: As for :func:`sparsebert.prune_`.
        saved: Finished layers of a run that was killed.
        reporter: Told of each matrix.
        masks: Mask of each matrix, once it is pruned.
        errors: Error of each matrix, once it is pruned.
    """

    model: nn.Module
    method: LayerMethod
    targets: Mapping[str, Target]
    asymmetric: bool
    magnitude_where_singular: bool
    saved: ProgressFile
    reporter: ProgressReporter
    masks: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)

    def prune(self, segments: Sequence[Segment], tokens: TokenFilter) -> None:
        """Prune segment by segment, each on the outputs of the pruned ones before it."""
        self.reporter.skip((PRUNE, key) for key in self.saved.errors)
        self.reporter.begin(PRUNE)
        residuals = Residuals(self.model)
        segment = segments[0]
        dense = segment.twin() if self.asymmetric else None
        for following in (*segments[1:], None):
            for keys in segment.stages:
                if all(map(self.saved.has, keys)):
                    self._restore(keys)
                    continue
                moments = stage_moments(keys, segment, dense, tokens, residuals)
                for key in (key for key in keys if key in self.targets):
                    problem, pruned = self._prune_matrix(key, moments)
                    self.errors[key] = problem.error(pruned.weight)
                    self.reporter.finish(key, self.errors[key], 1 - float(pruned.mask.double().mean()))
            ran = {key for keys in segment.stages for key in keys}
            finished = [key for key in self.targets if key in ran and not self.saved.has(key)]
            self.saved.add(self._tensors(finished), {key: self.errors[key] for key in finished})
            if following is not None:
                dense = None if dense is None else dense.following(following.twin())
                segment = segment.following(following)

    def _prune_matrix(self, key: str, moments: Moments) -> tuple[LayerProblem, PrunedMatrix]:
        """Prune a matrix and write weights and bias into the model."""
        module: Any = resolve(self.model, key)
        weight = read_matrix(self.model, key, None).double()
        bias = module._parameters.get("bias")
        problem = moments.problem(key, weight, bias is not None)
        pruned = self._solve(problem, self.targets[key])
        self.masks[key] = pruned.mask
        module.weight.copy_(pruned.weight)
        if bias is not None:
            bias.copy_(moments.bias(bias.detach().cpu().double(), weight, pruned.weight))
        return problem, pruned

    def _solve(self, problem: LayerProblem, target: Target) -> PrunedMatrix:
        try:
            return self.method.prune_layer(problem, target)
        except SingularHessianError as error:
            if not self.magnitude_where_singular:
                raise
            warnings.warn(f"{error}; pruned by magnitude", stacklevel=4)
            mask = target.choose(problem.weight.abs())
            return PrunedMatrix(problem.weight.where(mask, 0.0), mask)

    def _tensors(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """Return weight, bias and mask of matrices by name, for the checkpoint."""
        tensors = {f"{key}.mask": self.masks[key] for key in keys}
        for key in keys:
            for name, parameter in resolve(self.model, key).named_parameters(recurse=False):
                tensors[f"{key}.{name}"] = parameter
        return tensors

    def _restore(self, keys: Sequence[str]) -> None:
        """Write finished matrices from the checkpoint into the model."""
        for key in keys:
            self.masks[key] = self.saved.tensors[f"{key}.mask"]
            self.errors[key] = self.saved.errors[key]
            for name, parameter in resolve(self.model, key).named_parameters(recurse=False):
                parameter.copy_(self.saved.tensors[f"{key}.{name}"])


def cost_of_pruning(target: Target) -> float:
    """Return the work of pruning a matrix: a sweep over its columns, and factors of its Hessian."""
    out_features, in_features = target.group.shapes[target.group.name]
    return float(in_features**2 * (out_features + in_features))
