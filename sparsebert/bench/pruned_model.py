"""The input of every backend: the masked dense model, its ticket and the batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from sparsebert.bench.workload import Workload
from sparsebert.tickets.ticket import Ticket

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PrunedModel:
    """A model, its ticket and the batches to run.

    Attributes:
        workload: Model, batches, dtype, threads and device.
        model: The dense model on the CPU, with pruned weights set to zero.
        ticket: Masks of the pruned matrices.
        batches: Inputs of the model.
        format: Packed format of the sparse backend; "auto" leaves it to the plan.
        measure: Whether the plan times the formats.
        fuse: Whether the sparse backend runs the encoder in one native call, as for ``sparsebert.sparsify_``.
        tolerance: The lowest precision in which the sparse backend may compute.
        calibration: Inputs by which int8 baselines choose their scales; the batches themselves if empty.
        judged: Inputs whose outputs a backend's ``answers`` returns, in any shapes; the batches themselves if
            empty. They have the same names as the batches.
    """

    workload: Workload
    model: PreTrainedModel
    ticket: Ticket
    batches: tuple[dict[str, torch.Tensor], ...]
    format: str = "auto"
    measure: bool = True
    fuse: bool | None = None
    tolerance: str = "fp32"
    calibration: tuple[dict[str, torch.Tensor], ...] = ()
    judged: tuple[dict[str, torch.Tensor], ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the model's inputs: those of a batch."""
        return tuple(self.batches[0])

    @property
    def answered(self) -> tuple[dict[str, torch.Tensor], ...]:
        """Inputs whose outputs a backend returns."""
        return self.judged or self.batches

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the pruned matrices, in the ticket's order."""
        return tuple(self.ticket.masks)

    @property
    def tokens(self) -> int:
        """Padded tokens of the first batch: the rows of a layer's input."""
        return self.batches[0]["input_ids"].numel()

    @property
    def samples(self) -> tuple[dict[str, torch.Tensor], ...]:
        """Inputs by which int8 baselines choose their scales."""
        return self.calibration or self.batches

    def samples_like(self, batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """Return the samples in batches of the shape of ``batch``, cut, padded and repeated."""
        rows, tokens = batch["input_ids"].shape
        joined = {
            name: torch.cat([pad(each[name], (0, tokens))[:, :tokens] for each in self.samples])
            for name in batch
        }
        count = -(-len(joined["input_ids"]) // rows)
        filled = {name: values.repeat(rows, 1)[: count * rows] for name, values in joined.items()}
        return [
            {name: values[start : start + rows] for name, values in filled.items()}
            for start in range(0, count * rows, rows)
        ]

    def reference(self) -> list[torch.Tensor]:
        """Return the masked dense model's last hidden states, [sequences, tokens, hidden] for each batch."""
        with torch.inference_mode():
            return [self.model(**batch).last_hidden_state for batch in self.batches]


def prepare_pruned_model(
    workload: Workload,
    ticket: Ticket,
    *,
    format: str = "auto",
    measure: bool = True,
    fuse: bool | None = None,
    tolerance: str = "fp32",
    model: PreTrainedModel | None = None,
    calibration_texts: Sequence[str] = (),
) -> PrunedModel:
    """Load the workload's model and apply the ticket to it.

    Args:
        workload: Names the model and defines its batches.
        ticket: Applied to the model.
        format: See ``PrunedModel``.
        measure: See ``PrunedModel``.
        fuse: See ``PrunedModel``.
        tolerance: See ``PrunedModel``.
        model: Used instead of loading the workload's model; it is modified.
        calibration_texts: Sentences by which int8 baselines choose their scales; by default random tokens in
            the workload's lengths.

    Raises:
        ValueError: The model cannot be loaded, or the ticket does not fit it.
    """
    model = workload.load_model() if model is None else model
    ticket.check(model)
    ticket.apply_(model)
    vocabulary = model.config.vocab_size
    batches = workload.make_batches(vocabulary)
    if calibration_texts:
        calibration = workload.encode(calibration_texts)
    else:
        calibration = workload.make_calibration(vocabulary)
    return PrunedModel(workload, model, ticket, batches, format, measure, fuse, tolerance, calibration)
