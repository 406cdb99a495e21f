"""One-shot pruning layer by layer, each on the activations of the model as pruned so far."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import resolve
from sparsebert.one_shot.calibration import Residuals, TokenFilter, require_finite
from sparsebert.one_shot.dense_stream import DenseStream
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

# Bytes of the outputs of a matrix up to which they are noted rather than computed again.
_NOTED = 1 << 26


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

    def prune(self, segments: list[Segment], tokens: TokenFilter) -> None:
        """Prune segment by segment, each on the outputs of the pruned ones before it.

        The list shrinks: states that are spent are not held.
        """
        self.reporter.skip((PRUNE, key) for key in self.saved.errors)
        self.reporter.begin(PRUNE)
        residuals = Residuals(self.model)
        segment = segments.pop(0)
        dense = None
        if self.asymmetric:
            # A layer shows what it has to before it is pruned.
            dense = DenseStream(segment if segment.is_layer else segment.twin(), tokens, residuals)
        while True:
            for keys in segment.stages:
                if all(map(self.saved.has, keys)):
                    self._restore(keys)
                    continue
                moments = _moments(keys, segment, dense, tokens, residuals)
                for key in (key for key in keys if key in self.targets):
                    self._prune_matrix(key, moments)
                    kept = int(self.masks[key].count_nonzero()) / self.masks[key].numel()
                    self.reporter.finish(key, self.errors[key], 1 - kept)
                del moments  # before those of the next stage
                if segment.is_layer:
                    segment = segment.with_final(key for key in keys if segment.output_bytes(key) < _NOTED)
            ran = {key for keys in segment.stages for key in keys}
            finished = [key for key in self.targets if key in ran and not self.saved.has(key)]
            self.saved.add(self._tensors(finished), {key: self.errors[key] for key in finished})
            if not segments:
                return
            following = segments.pop(0)
            segment = segment.following(following)
            if dense is not None:
                dense.follow(following)

    def _prune_matrix(self, key: str, moments: Moments) -> None:
        """Prune a matrix and write weights and bias into the model."""
        module: Any = resolve(self.model, key)
        weight = read_matrix(self.model, key, None).double()
        bias = module._parameters.get("bias")
        problem = moments.problem(key, weight, bias is not None)
        pruned = self._solve(problem, self.targets[key])
        self.masks[key], self.errors[key] = pruned.mask, problem.error(pruned.weight)
        module.weight.copy_(pruned.weight)
        if bias is not None:
            bias.copy_(moments.bias(bias.detach().cpu().double(), weight, pruned.weight))

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


@torch.no_grad()
def _moments(
    keys: Sequence[str],
    segment: Segment,
    dense: DenseStream | None,
    tokens: TokenFilter,
    residuals: Residuals,
) -> Moments:
    """Return the moments of a stage's inputs.

    Args:
        keys: The matrices of the stage.
        segment: The segment, pruned up to this stage, with the pruned model's activations.
        dense: The dense model's activations; None to compute without them.
        tokens: Selects tokens.
        residuals: Notes what residual connections have lost.

    Raises:
        ValueError: An input is NaN or infinite; the message names the matrix.
    """
    pruned: Iterable[Tensor] = tokens(segment.inputs(keys[0]))
    if dense is None:
        return require_finite(Moments.of(pruned), keys[0])
    shown = dense.of(keys)
    if shown.inputs is not None and residuals.starts_at(keys):
        pruned = list(pruned)
        residuals.note(keys, shown.inputs, pruned)
    return require_finite(Moments.of(pruned, shown.inputs, residuals.of(keys), shown.outputs), keys[0])


def cost_of_pruning(target: Target) -> float:
    """Return the work of pruning a matrix: a sweep over its columns, and factors of its Hessian."""
    out_features, in_features = target.group.shapes[target.group.name]
    return float(in_features**2 * (out_features + in_features))
