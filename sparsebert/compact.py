"""Remove pruned-out neurons, heads, rows and columns: `compact_`, its description, and `expand_`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from sparsebert.compaction.analyze import analyze
from sparsebert.compaction.expand import expand
from sparsebert.compaction.install import compaction_record, install_compaction_
from sparsebert.compaction.manifest import attach_record_, description_of
from sparsebert.compaction.output_drift import output_change, outputs
from sparsebert.compaction.rebuild import rebuild
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
      (see `sparsebert.compaction.attention_folding`). Heads without value dimensions are removed.
    - Dimensions with a constant key are removed from query and key; those with a constant query are merged
      into one.
    - Remaining empty rows and columns are skipped by `RectangleLinear` where that is faster.

    Narrow heads run in `NarrowAttention`, under "eager" and "sdpa"; under "eager" it returns the attention
    weights of the remaining heads. In training, constant dimensions share the dropout of one head, where the
    masked model drops each out separately: the mean is the same. Compacted matrices are new Parameters, so
    create the optimizer afterwards. Pruned weights inside them are zeros; `Ticket.from_model` of the
    compacted model returns the ticket that keeps them zero. `save_pretrained` and `from_pretrained` save and
    load compacted Hugging Face models.

    Args:
        model: The model.
        ticket: The masks; without one, the zeros in the weights.
        min_row_weights: Lossy: first prune every row with fewer weights, until none is left. At most the
            longest row.
        round_to: Round widths (neurons, head dimensions, live rows) up to a multiple of this, but not beyond
            their configured width; 8 or 16 suit tensor cores. At most the widest matrix.
        batches: Keyword arguments of the model. `compaction_description` then reports how much the outputs
            changed.

    Returns:
        The model.

    Raises:
        ValueError: Another family, a decoder, a ticket that does not fit, a compacted or sparse model, a
            layer that cannot be replaced (tied, quantised, patched), a number beyond the model's widths, or
            batches that are not mappings. The model is then unchanged.
    """
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
        raise ValueError("batches is one batch; a list of them is needed: batches=[batch]")
    if not isinstance(batches, Iterable):
        raise ValueError(f"batches is {batches!r}; mappings of the model's arguments are needed, in a list")
    examples = list(batches)
    for batch in examples:
        if not isinstance(batch, Mapping):
            raise ValueError(
                f"batches holds a {type(batch).__name__}; mappings of the model's arguments are needed"
            )
    return examples


@torch.inference_mode(False)
def expand_(model: nn.Module) -> nn.Module:
    """Restore the configured shapes of a compacted model, in place, with the same outputs.

    Folded constants stay folded, and removed parts become zeros. Any code that loads the model's class can
    load the result, at the size and speed of the dense model. Heads return to their places. A model without
    compaction does not change.

    Returns:
        The model.

    Raises:
        ValueError: The model has sparse layers; call `densify_` first. The model is then unchanged.
    """
    expand(model)
    attach_quantizer_(model)
    return model


def compaction_description(model: nn.Module) -> dict[str, Any]:
    """What `compact_` made of a model, as plain values for JSON; empty for a model as configured.

    ticket           sha256 over the masks of the ticket it was compacted with
    round_to         as given to `compact_`, as is ``min_row_weights``: 0 = exact
    weights          of the encoder's matrices: ``configured``, ``exact`` (rows and columns that keep one),
                     ``stored`` (with padding, and what it would not pay to leave out)
    attention        path of each attention that changed -> groups of heads, with the width of query and key
                     (``score``) and of value
    linears          key of each matrix that changed -> its ``shape`` [out, in], the ``configured`` one, and
                     ``live`` rows and columns where it holds these alone
    output_change    where batches were given: ``max`` and ``mean`` of the absolute change, ``changed``: the
                     share of answers (largest entry of the last dimension) that are other ones

    It describes shapes as they are now: what `sparsify_` packs is whole again.
    """
    return description_of(model)


def rebuild_(model: nn.Module, description: Mapping[str, Any]) -> nn.Module:
    """Give a freshly made model the shapes that a `compaction_description` names; returns the model.

    Parameters get the dtype and device (meta too) of those they replace, and unknown values: load a
    `state_dict` of the compacted model next. It holds the indices of live rows and columns too.

    Raises ValueError, with the model as it was, for a description of another version or architecture, one
    that cannot be true, or a model that is compacted already.
    """
    rebuild(model, description)
    return model
