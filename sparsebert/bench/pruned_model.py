"""What every provider is given: the masked dense model, its ticket and the batches to answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sparsebert.bench.workload import Workload
from sparsebert.tickets.ticket import Ticket

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PrunedModel:
    """One model with one ticket. `model` is dense with the masked weights set to zero, on the CPU.

    `format` is the packed format the sparse side is asked for ("auto": the plan chooses).
    """

    workload: Workload
    model: PreTrainedModel
    ticket: Ticket
    batches: tuple[dict[str, torch.Tensor], ...]
    format: str = "auto"

    @property
    def keys(self) -> tuple[str, ...]:
        """The pruned matrices, in the ticket's order."""
        return tuple(self.ticket.masks)

    @property
    def tokens(self) -> int:
        """Padded tokens of the first batch: the number of rows a layer sees at a time."""
        return self.batches[0]["input_ids"].numel()

    def reference(self) -> list[torch.Tensor]:
        """Last hidden states of the masked dense model, [sequences, tokens, hidden] a batch."""
        with torch.inference_mode():
            return [self.model(**batch).last_hidden_state for batch in self.batches]


def prepare_pruned_model(
    workload: Workload, ticket: Ticket, *, format: str = "auto", model: PreTrainedModel | None = None
) -> PrunedModel:
    """Load the workload's model (or take `model`, which is changed) and apply the ticket to it.

    Raises ValueError where the model cannot be loaded or the ticket does not fit it.
    """
    model = workload.load_model() if model is None else model
    ticket.check(model)
    ticket.apply_(model)
    return PrunedModel(workload, model, ticket, workload.make_batches(model.config.vocab_size), format)
