"""Removing for good what a ticket empties: `compact_`, its description, and the way back from that."""

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
    """Take what ``ticket`` empties out of a BERT, RoBERTa, DistilBERT or ELECTRA, in place; returns it.

    ticket           the masks; without one, the zeros already in the weights
    min_row_weights  lossy: rows with fewer weights than this are pruned first, until no row is thinner; no
                     more than the longest row has
    round_to         widths (neurons, dimensions of heads, live rows) are rounded up to a multiple of this, as
                     far as the model was that wide: 8 or 16 suit tensor cores; no more than its widest matrix
    batches          keyword arguments of the model: `compaction_description` then says how far its answers
                     are from those of the masked model

    The answers are those of the masked model, biases and all, up to rounding:

    - a neuron without inputs is constant and goes into the next bias; one that nothing reads just goes
    - dimensions of value that nothing reads go, constant ones are carried by one dimension of one head (see
      `sparsebert.compaction.attention_folding`), and heads without any go whole
    - dimensions whose key is constant go from query and key, those whose query is constant become one
    - rows and columns that stay empty are left out of the product (`RectangleLinear`) where that pays

    Heads that became narrower run in an attention of our own, under "eager" and "sdpa"; with "eager" it gives
    the attention weights of the heads that are left. In training what constant dimensions bring is one
    term under the dropout of one head, where the masked model has one for each: the same in the mean.
    Smaller matrices are new Parameters: make an optimizer afterwards. Pruned weights inside what is left are
    zeros, and `Ticket.from_model` of the compacted model is the ticket that keeps them so. A Hugging Face
    model is saved as it is now, and `from_pretrained` loads the compacted model.

    Raises ValueError, with the model as it was, for another family, a decoder, a ticket that does not fit, a
    model that is compacted or sparse already, layers that cannot be replaced (tied, quantised, patched),
    numbers beyond the model's widths, and batches that are no mappings.
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
    """The batches as a list. Raises ValueError for one batch in place of several, and what is no batch."""
    # What a tokenizer answers is a mapping too: iterating over it would give its keys for batches.
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
    """Undo the shapes of `compact_`, in place: a plain model as configured that answers alike; returns it.

    What was folded stays folded, and zeros stand where something was taken out: any code that loads the
    model's own class can load it, at the size and speed of the dense one. Heads are at their own places. A
    model that is not compacted is left as it is.

    Raises ValueError, with the model as it was, for one with sparse layers: `densify_` it first.
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
