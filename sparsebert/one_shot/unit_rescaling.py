"""Factors of the heads and neurons that stay, which make up for those that are pruned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsebert.bert import weight_of
from sparsebert.one_shot.calibration import Residuals, TokenFilter, checked_batches
from sparsebert.one_shot.lsmr import lsmr
from sparsebert.one_shot.moments import Moments
from sparsebert.one_shot.norm_weights import norm_weights
from sparsebert.one_shot.progress import PRUNE, ProgressReporter
from sparsebert.one_shot.progress_file import ProgressFile
from sparsebert.one_shot.segments import segments_of
from sparsebert.pruning.gates import GateSite, gated
from sparsebert.pruning.gradients import evaluating

TEACHERS = ("dense", "halfway")


@dataclass(frozen=True)
class Rescaling:
    """Fits factors layer by layer, each on the activations of the model as rescaled so far.

    As in the published code of Kwon et al. 2022: the heads of the first layer stay as they are, and the first
    layer whose least squares do not converge, or whose factors are beyond [-limit, limit], ends the
    rescaling. Outputs are compared behind the residual connection, where it is known (BERT-like models).

    Attributes:
        damping: See :func:`unit_factors`.
        limit: The largest factor.
        first_token: Fit the last layer of neurons to the first token of each text only.
        norm_weighted: Weigh each output by the norm that reads it (:func:`norm_weights`); in the published
            code all outputs count the same.
    """

    damping: float = 1.0
    limit: float = 10.0
    first_token: bool = False
    norm_weighted: bool = False

    @torch.no_grad()
    def fit(
        self,
        model: nn.Module,
        sites: Mapping[str, GateSite],
        kept: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        batches: Sequence[Mapping[str, Any]],
        saved: ProgressFile | None = None,
        reporter: ProgressReporter | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Fit the factors; the model is only read.

        Args:
            model: The model.
            sites: The gates of each layer, by the key of its first matrix.
            kept: bool [units], by layer.
            teacher: bool [units], by layer: the units of the model to reproduce.
            batches: Keyword arguments for the model.
            saved: Factors of the layers that a killed run has finished.
            reporter: Told of each matrix that reads units.

        Returns:
            float64 [units] by layer, 0 for pruned units; and the error of each matrix with fitted factors, by
            its key (:meth:`LayerProblem.error`).

        Raises:
            ValueError: An input is not finite; the message names the matrix. Or see :func:`segments_of`.
        """
        saved, reporter = saved or ProgressFile(), reporter or ProgressReporter({})
        batches = checked_batches(model, batches)
        like = next(model.parameters())
        factors = {name: mask.double() for name, mask in kept.items()}
        student = {name: mask.to(like) for name, mask in kept.items()}
        reference = {name: mask.to(like) for name, mask in teacher.items()}
        all_tokens, residuals = TokenFilter(batches), Residuals(model)
        site_of = {site.key: name for name, site in sites.items()}
        errors: dict[str, float] = {}
        with evaluating(model):
            importance = norm_weights(model, list(site_of), batches[0]) if self.norm_weighted else {}
            segments = segments_of(model, [*sites, *site_of], batches)
            order = [site_of[key] for each in segments for (key, *_) in each.stages if key in site_of]
            unchanged = next((name for name in order if sites[name].kind == "head"), "")
            last = next((name for name in reversed(order) if sites[name].kind == "neuron"), "")
            of_last = {last, sites[last].key} if last and self.first_token else set()
            pruned = dense = segments[0]
            reporter.begin(PRUNE)
            for following in (*segments[1:], None):
                names = [site_of[key] for stage in pruned.stages for key in stage if key in site_of]
                restored = all(f"{name}.factors" in saved.tensors for name in names)
                for stage in () if restored else pruned.stages:
                    key = stage[0]
                    tokens = _first_tokens if of_last.intersection(stage) else all_tokens
                    with gated(model, sites, student):
                        x = list(tokens(pruned.inputs(key)))
                    with gated(model, sites, reference):
                        y = list(tokens(dense.inputs(key)))
                    residuals.note(stage, y, x)
                    name = site_of.get(key, unchanged)
                    if name == unchanged or not kept[name].any():
                        reporter.skip([(PRUNE, key)])
                        continue
                    moments = Moments.of(x, y, residuals.of(stage))
                    if not moments.second.isfinite().all():
                        raise ValueError(f"the inputs of {key} hold NaN or infinity on the calibration data")
                    weight = weight_of(model, key).detach().cpu().double()
                    offset = sites[name].kind == "head"
                    of_kept = unit_factors(
                        *weighted(moments, weight, importance.get(key)),
                        kept[name],
                        damping=self.damping,
                        offset=offset,
                    )
                    if of_kept is None or of_kept.abs().max() > self.limit:
                        return factors, errors
                    factors[name][kept[name]] = of_kept
                    student[name] = factors[name].to(like)
                    scale = factors[name].repeat_interleave(weight.shape[1] // len(kept[name]))
                    errors[key] = moments.problem(key, weight, has_bias=False).error(weight * scale)
                    reporter.finish(key, errors[key], 1 - float(kept[name].double().mean()))
                if restored:
                    factors |= {name: saved.tensors[f"{name}.factors"] for name in names}
                    student |= {name: factors[name].to(like) for name in names}
                    keys = [sites[name].key for name in names]
                    errors |= {key: saved.errors[key] for key in keys if key in saved.errors}
                    reporter.skip((PRUNE, key) for key in keys)
                else:
                    saved.add(
                        {f"{name}.factors": factors[name] for name in names},
                        {key: errors[key] for stage in pruned.stages for key in stage if key in errors},
                    )
                if following is not None:
                    with gated(model, sites, student):
                        pruned = pruned.following(following)
                    with gated(model, sites, reference):
                        dense = dense.following(following)
        return factors, errors


def _first_tokens(activations: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the activations of the first token of each text, [texts, features]."""
    for states in activations:
        yield states[:, 0]


def weighted(moments: Moments, weight: Tensor, importance: Tensor | None) -> tuple[Moments, Tensor]:
    """Return the moments and the matrix (float64 [out, in]) with outputs scaled by ``importance`` [out]."""
    if importance is None:
        return moments, weight
    if moments.residual_second is not None and moments.residual_mean is not None:
        moments = replace(
            moments,
            residual_second=moments.residual_second * importance[:, None],
            residual_mean=moments.residual_mean * importance,
        )
    return moments, weight * importance[:, None]


def unit_factors(
    moments: Moments, weight: Tensor, kept: Tensor, *, damping: float = 1.0, offset: bool = False
) -> Tensor | None:
    """Return factors of a matrix' units by which its outputs come nearest to the wanted ones.

    Kwon et al. 2022, section 4.4: least squares over all tokens and features, with the products of each kept
    unit as the columns of A and the wanted outputs, residual connection included, as b. As in their code,
    LSMR is applied to the normal equations for the factors minus 1, and the damping is that of LSMR.

    Args:
        moments: Moments of the inputs, with those of the model to reproduce.
        weight: The matrix, float64 [out, in].
        kept: Its units of neighbouring columns, bool [units].
        damping: At least 0.
        offset: Whether the outputs have a common offset, which is solved for and forgotten, as the published
            code does for heads.

    Returns:
        float64 [kept units]; None if LSMR does not converge.
    """
    equations, target = normal_equations(moments, weight, kept, offset)
    excess = target - equations.sum(1)
    if len(excess) == 1:
        return 1 + excess / equations[0, 0] if equations[0, 0] > 0 else None
    solution = lsmr(equations, excess, damping)
    if not solution.converged:
        return None
    return 1 + (solution.x[:-1] if offset else solution.x)


def normal_equations(
    moments: Moments, weight: Tensor, kept: Tensor, offset: bool = False
) -> tuple[Tensor, Tensor]:
    """Return A^T A, float64 [unknowns, unknowns], and A^T b of :func:`unit_factors`, from moments alone."""
    assert moments.dense_second is not None
    assert moments.dense_mean is not None
    wanted, wanted_mean = weight @ moments.dense_second, weight @ moments.dense_mean
    if moments.residual_second is not None and moments.residual_mean is not None:
        wanted, wanted_mean = wanted + moments.residual_second, wanted_mean + moments.residual_mean
    width = weight.shape[1] // len(kept)
    columns = kept.repeat_interleave(width).nonzero().flatten()

    def by_unit(values: Tensor, dim: int) -> Tensor:
        return values.unflatten(dim, (-1, width)).sum(dim + 1)

    weight_of_kept = weight[:, columns]
    products = moments.second[columns][:, columns] * (weight_of_kept.t() @ weight_of_kept)
    equations = by_unit(by_unit(products, 1), 0)
    target = by_unit((weight_of_kept * wanted[:, columns]).sum(0), 0)
    if offset:
        sums = by_unit(weight_of_kept.sum(0) * moments.mean[columns], 0)
        equations = torch.cat([equations, sums[None]])
        equations = torch.cat([equations, torch.cat([sums, sums.new_tensor([len(weight)])])[:, None]], 1)
        target = torch.cat([target, wanted_mean.sum()[None]])
    return equations * moments.tokens, target * moments.tokens
