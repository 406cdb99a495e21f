"""One-shot pruning that also changes the weights that stay, written into the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from sparsebert.bert import require_module
from sparsebert.conv1d import as_linears
from sparsebert.linear_layers import Filter
from sparsebert.one_shot.layer_problem import LAYER_METHODS, LayerMethod
from sparsebert.pruning.density import Number
from sparsebert.pruning.registry import methods
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.errors import unknown

if TYPE_CHECKING:
    from sparsebert.one_shot.error_curves import ErrorCurves
    from sparsebert.one_shot.progress import Report
    from sparsebert.one_shot.prune_model import ModelMethod
    from sparsebert.one_shot.prune_units import UnitMethod

# What a method object has one of: it prunes matrices, heads and neurons, or all matrices together.
_ENTRIES = ("prune_layer", "prune_units", "prune_model")


def prune_(
    model: nn.Module,
    method: str | LayerMethod | UnitMethod | ModelMethod = "alps",
    *,
    data: Any,
    sparsity: Number | None = None,
    densities: Mapping[str, Number] | None = None,
    granularity: str = "element",
    granularities: Mapping[str, str] | None = None,
    block_size: tuple[int, int] | None = None,
    round_to: int | None = None,
    reproduce: str = "dense",
    allocate: str | None = None,
    tokenizer: Any = None,
    include_pooler: bool = False,
    filter: Filter | None = None,
    magnitude_where_singular: bool = False,
    checkpoint: Path | None = None,
    curves: ErrorCurves | None = None,
    progress: Callable[[Report], None] | None = None,
) -> Ticket:
    """Prune a model by calibration data, and write the weights that stay, changed, into the model.

    Layers are pruned one after the other, each on the activations of the model as pruned so far.

    Args:
        model: As for :func:`sparsebert.prune`. Its weights change in place: pruned ones become 0.
        method: A registered name ("wanda", "sparsegpt", "obs", "alps", "ziplm", "fisher-units", "obert") or
            a method object with its options. "ziplm" and "fisher-units" prune neurons and heads, the former
            layer by layer, the latter in all layers together; it reads labels if there are any. "obert"
            ranks the units of all matrices together and needs labels.
        data: Batches (keyword arguments for the model), or, with a ``tokenizer``, a list of texts.
        sparsity: Share of the weights to prune, in [0, 1); None for n:m patterns.
        densities: Share of weights to keep by key, for the matrices that differ; of neurons and heads, by the
            keys of the down-projection and the attention's output projection.
        granularity: "element"; "block" or "4x1"; "panel" or "panel(32,2)"; "row"; "column"; n of m, such as
            "2:4"; or "neuron", "head" or "head+neuron". Of these, the columns of the down-projection and of
            the attention's output projection are pruned, and with them the rows that feed them.
        granularities: Granularity by key, for the matrices that differ.
        block_size: As for :func:`sparsebert.prune`.
        round_to: As for :func:`sparsebert.prune`.
        reproduce: What each matrix is to reproduce. "dense": the dense model's outputs, from the pruned
            model's inputs, including what the residual connections have lost; biases are adjusted. "layer":
            its own outputs on the pruned model's inputs, as published for SparseGPT, ALPS and others. Methods
            that do not change weights always reproduce "layer".
        allocate: How the sparsity is spread over the matrices. "uniform": all prune the same share, as
            published. "error": matrices prune the shares that cost the model's last hidden states least,
            which :func:`sparsebert.one_shot.allocation.allocated` measures on a part of the data. None for
            "error" where it fits: not with ``densities`` or n:m patterns; of neurons and heads only with
            "ziplm", where :func:`sparsebert.one_shot.unit_table.allocated_units` chooses their numbers.
        tokenizer: Tokenizer for texts.
        include_pooler: Prune the pooler's matrix too.
        filter: As for :func:`sparsebert.prune`.
        magnitude_where_singular: Prune a matrix whose Hessian is singular by magnitude, instead of failing.
        checkpoint: File that holds what is finished; a call that was killed goes on after it, and ends with
            the same masks and weights. The caller deletes it once the result is safe.
        curves: Keeps what ``allocate="error"`` measures for other calls with the same model, data and
            granularity: it is measured once, at densities that serve every sparsity.
        progress: Called after each matrix, and after each batch of gradients.

    Returns:
        The ticket. ``metadata["errors"]`` holds the error of each matrix, see
        :meth:`~sparsebert.one_shot.LayerProblem.error`, and ``metadata["model"]["weights"]`` the hash of the
        changed weights.

    Raises:
        ValueError: A name is unknown, or an option does not fit; there is no data; a text is longer than the
            model's positions; activations are not finite; a Hessian is singular.
    """
    pruning_method = find_one_shot(method)
    prune = _family_of(pruning_method)
    options = {
        "densities": densities,
        "granularities": granularities,
        "block_size": block_size,
        "round_to": round_to,
        "reproduce": reproduce,
        "allocate": allocate,
        "curves": curves,
        "include_pooler": include_pooler,
        "magnitude_where_singular": magnitude_where_singular,
    }
    defaults = {name: each.default for name, each in inspect.signature(prune_).parameters.items()}
    accepted = inspect.signature(prune).parameters
    for name in [name for name in options if name not in accepted]:
        if options.pop(name) != defaults[name]:
            raise ValueError(f"{name} does not apply to method {pruning_method.name}: omit it")
    require_module(model)
    with as_linears(model):
        return prune(
            model,
            pruning_method,
            data=data,
            sparsity=sparsity,
            granularity=granularity,
            tokenizer=tokenizer,
            filter=filter,
            checkpoint=checkpoint,
            progress=progress,
            **options,
        )


def _family_of(method: Any) -> Callable[..., Ticket]:
    """Return the function that prunes by methods of this kind; its parameters are the options that fit."""
    # Late: importing sparsebert stays quick.
    from sparsebert.one_shot.prune_layers import prune_layers_
    from sparsebert.one_shot.prune_model import prune_model_
    from sparsebert.one_shot.prune_units import prune_units_

    families: tuple[Callable[..., Ticket], ...] = (prune_layers_, prune_units_, prune_model_)
    return next(prune for entry, prune in zip(_ENTRIES, families, strict=True) if hasattr(method, entry))


def find_one_shot(method: str | LayerMethod | UnitMethod | ModelMethod, **options: Any) -> Any:
    """Return the method of that name with these options; a method object is returned unchanged.

    Raises ValueError for an unknown name, TypeError for an unknown option.
    """
    import sparsebert.one_shot.all_methods  # noqa: F401  (registers the methods)
    from sparsebert.one_shot.prune_model import MODEL_METHODS
    from sparsebert.one_shot.prune_units import UNIT_METHODS

    registered = {**LAYER_METHODS, **UNIT_METHODS, **MODEL_METHODS}
    if isinstance(method, str) and method in registered:
        return registered[method](**options)
    if isinstance(method, str) and method in methods():
        raise ValueError(f"method {method!r} does not change weights and needs no calibration: call prune")
    if isinstance(method, str) or not any(map(partial(hasattr, method), _ENTRIES)):
        raise unknown("one-shot method", method, registered)
    return method
