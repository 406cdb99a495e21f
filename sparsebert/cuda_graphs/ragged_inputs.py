"""Static inputs of several sequences in one row, without padding between them."""

from __future__ import annotations

from typing import Any

import torch

from sparsebert.cuda_graphs.buckets import Shape
from sparsebert.cuda_graphs.padded_inputs import BOUNDS, Call, Signature


class RaggedInputs:
    """Static input tensors of one bucket of sequences in one row.

    Behind the sequences of a call stand empty ones, and tokens of no sequence. Nothing waits for the device.

    Args:
        signature: Names and dtypes of the tensors.
        shape: Sequences and total tokens.
        device: Device of the tensors.
        pad_id: Token id behind the sequences.
    """

    def __init__(self, signature: Signature, shape: Shape, device: torch.device, pad_id: int) -> None:
        self.shape = shape
        self.options = dict(signature.options)
        self._pad_id = pad_id
        sequences, tokens = shape
        # Tensors made in inference mode could not be changed outside of it.
        with torch.inference_mode(False):
            self._tensors = {
                name: torch.empty(
                    (sequences + 1,) if name in BOUNDS else (1, tokens, *rest), dtype=dtype, device=device
                )
                for name, dtype, rest in signature.tensors
            }
        self._filled: Shape | None = None
        self.clear()

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the model: the static tensors and the options."""
        return {**self._tensors, **self.options}

    def clear(self) -> None:
        """Fill all tensors with empty sequences and tokens of no sequence."""
        for name, tensor in self._tensors.items():
            tensor.fill_(self._pad_id if name == "input_ids" else 0)

    def fill(self, call: Call) -> None:
        """Copy the inputs of a call, which are not larger than the bucket."""
        sequences, tokens = call.shape
        if self._filled != call.shape:
            self._filled = None
            self.clear()
        for name, tensor in self._tensors.items():
            given = call.tensors[name]
            if name in BOUNDS:
                tensor[: sequences + 1].copy_(given)
                tensor[sequences + 1 :].copy_(given[-1:])
            else:
                tensor[:, :tokens].copy_(given)
        self._filled = call.shape
