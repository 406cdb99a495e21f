"""Remove pruned-out neurons, heads, rows and columns from a model, describe the result, and undo it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from sparsebert.compaction.manifest import attach_record_, description_of
from sparsebert.hf.attach_quantizer import attach_quantizer_
from sparsebert.tickets.ticket import Ticket


@torch.inference_mode(False)
def compact_(
    model: nn.Module,
    ticket: Ticket | None = None,
    *,
    min_row_weights: int = 0,
    round_to: int = 1,
    batches: Iterable[Mapping[str, Any]] = (),
) -> nn.Module:
    """Remove the pruned-out parts of a BERT, RoBERTa, DistilBERT or ELECTRA model, in place.

    The outputs equal those of the masked model, biases included, up to rounding:

    - A neuron without inputs is constant and is folded into the next bias; a neuron without readers is
      removed.
    - Value dimensions without readers are removed. Constant ones are carried by one dimension of one head
      (see ``sparsebert.compaction.attention_folding``). Heads without value dimensions are removed.
    - Dimensions with a constant key are removed from query and key; those with a constant query are merged
      into one.
    - Remaining empty rows and columns are skipped by ``RectangleLinear`` where that is faster.

    Narrow heads run in ``NarrowAttention``, under "eager" and "sdpa"; under "eager" it returns the attention
    weights of the remaining heads. In training, constant dimensions share the dropout of one head, where the
    masked model drops each out separately: the mean is the same. Compacted matrices are new Parameters, so
    create the optimizer afterwards. Pruned weights inside them are zeros; ``Ticket.from_model`` of the
    compacted model returns the ticket that keeps them zero. ``save_pretrained`` and ``from_pretrained`` save
    and load compacted Hugging Face models.

    Args:
        model: The model.
        ticket: The masks; without one, the zeros in the weights.
        min_row_weights: Prune every row with fewer weights first, until every remaining row has that many.
            Values above 0 are lossy; the maximum is the length of the longest row.
        round_to: Round widths (neurons, head dimensions, live rows) up to a multiple of this, but not beyond
            their configured width; 8 or 16 suit tensor cores. The maximum is the model's largest width.
        batches: Keyword arguments of the model, one mapping per batch. With batches,
            ``compaction_description`` reports how much the outputs changed.

    Returns:
        The model.

    Raises:
        ValueError: The model belongs to another family, is a decoder, is compacted or sparse already, or has
            a layer that cannot be replaced (tied, quantised or patched); the ticket does not fit; a number
            exceeds the model's widths; or a batch is not a mapping. The model is then unchanged.
    """
    # Late: importing sparsebert stays quick.
    from sparsebert.compaction.analyze import analyze
    from sparsebert.compaction.install import compaction_record, install_compaction_
    from sparsebert.compaction.output_drift import output_change, outputs

    plan = analyze(model, ticket, min_row_weights=min_row_weights, round_to=round_to)
    examples = _checked_batches(batches)
    expected = outputs(model, examples, Ticket.from_model(model) if ticket is None else ticket)
    install_compaction_(plan)
    origin = {"method": "zeros in the weights"} if ticket is None else ticket.metadata
    attach_quantizer_(model, origin=origin, sparsity=plan.ticket.sparsity)
    if examples:
        change = output_change(expected, outputs(model, examples))
        attach_record_(model, compaction_record(plan) | {"output_change": change})
    return model


def _checked_batches(batches: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the batches as a list; raise ValueError for a single batch and for anything but mappings."""
    # A tokenizer's output is a mapping too; iterating over it would yield its keys as batches.
    if isinstance(batches, Mapping):
        raise ValueError("batches must be a list of batches, got a single batch; pass batches=[batch]")
    if not isinstance(batches, Iterable):
        raise ValueError(f"batches must be a list of mappings of the model's arguments, got {batches!r}")
    examples = list(batches)
    for batch in examples:
        if not isinstance(batch, Mapping):
            raise ValueError(
                f"each batch must be a mapping of the model's arguments, got a {type(batch).__name__}"
            )
    return examples


@torch.inference_mode(False)
def expand_(model: nn.Module) -> nn.Module:
    """Restore the configured shapes of a compacted model, in place, with the same outputs.

    Folded constants stay folded, removed parts become zeros, and heads return to their configured positions.
    Any code that loads the model's class can load the result, which has the size and speed of the dense
    model. A model without compaction does not change.

    Args:
        model: The model.

    Returns:
        The model.

    Raises:
        ValueError: The model has sparse layers; call ``densify_`` first. The model is then unchanged.
    """
    from sparsebert.compaction.expand import expand

    expand(model)
    attach_quantizer_(model)
    return model


def compaction_description(model: nn.Module) -> dict[str, Any]:
    """Describe a model's compaction in plain values that JSON can hold.

    The shapes are the present ones: a matrix that ``sparsify_`` packed no longer has a live rectangle.

    Args:
        model: The model.

    Returns:
        A dict, empty for a model without compaction, with these keys:

        - ``ticket``: sha256 over the masks of the ticket that the model was compacted with.
        - ``round_to`` and ``min_row_weights``: The arguments of ``compact_``.
        - ``weights``: Numbers of encoder weights: ``configured``; ``exact``, in live rows and columns; and
          ``stored``, with padding and with the dead rows and columns that are not worth skipping.
        - ``attention``: Path of each changed attention -> its groups of heads, with the width of query and
          key (``score``) and of value (``value``).
        - ``linears``: Key of each changed matrix -> its ``shape`` [out, in], its ``configured`` shape and, if
          the matrix stores only its live rectangle, the shape of the rectangle (``live``).
        - ``output_change``: If ``compact_`` had batches, the ``max`` and ``mean`` absolute change, and
          ``changed``, the share of predictions (argmax over the last dimension) that changed.
    """
    return description_of(model)


def rebuild_(model: nn.Module, description: Mapping[str, Any]) -> nn.Module:
    """Give a new model the shapes in a ``compaction_description``, in place.

    The new Parameters have the dtype and device (also meta) of those they replace, and uninitialised values.
    Load a ``state_dict`` of the compacted model next; it includes the indices of live rows and columns.

    Args:
        model: A model as configured.
        description: The description of the compacted model.

    Returns:
        The model.

    Raises:
        ValueError: The description has another version, fits another architecture or is damaged, or the model
            is compacted already. The model is then unchanged.
    """
    from sparsebert.compaction.rebuild import rebuild

    rebuild(model, description)
    return model
