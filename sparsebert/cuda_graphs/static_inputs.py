"""The static tensors of a bucket that the inputs of its calls are copied into: padded, or in one row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from sparsebert.cuda_graphs.buckets import Shape
from sparsebert.cuda_graphs.calls import BOUNDS, MASK, Call, Signature


class StaticInputs(ABC):
    """Static input tensors of one bucket.

    Args:
        signature: Names and dtypes of the tensors.
        shape: Sequences, and tokens of each or total tokens.
        device: Device of the tensors.
        pad_id: Token id at padding.
    """

    def __init__(self, signature: Signature, shape: Shape, device: torch.device, pad_id: int) -> None:
        self._options = dict(signature.options)
        self._pad_id = pad_id
        # Tensors made in inference mode could not be changed outside of it.
        with torch.inference_mode(False):
            self._tensors = {
                name: torch.empty(*self._shape_of(name, shape), *rest, dtype=dtype, device=device)
                for name, dtype, rest in signature.tensors
            }
        # Shape of the call whose padding is in place; None if all is padding.
        self._filled: Shape | None = None
        self.clear()

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the model: the static tensors and the options."""
        return {**self._tensors, **self._options}

    def clear(self) -> None:
        """Fill all tensors with padding."""
        for name, tensor in self._tensors.items():
            tensor.fill_(self._pad_id if name == "input_ids" else 0)

    def fill(self, call: Call) -> None:
        """Copy the inputs of a call, which are not larger than the bucket, and pad them."""
        if self._filled != call.shape:
            self._filled = None
            self.clear()
        self._copy(call)
        self._filled = call.shape

    @staticmethod
    @abstractmethod
    def _shape_of(name: str, shape: Shape) -> tuple[int, ...]:
        """Return the leading dimensions of an input in a bucket."""

    @abstractmethod
    def _copy(self, call: Call) -> None:
        """Copy the inputs of a call."""


class PaddedInputs(StaticInputs):
    """Static inputs of padded sequences, [sequences, tokens, ...].

    Padding stands on the right of each sequence, and in whole sequences below the real ones. The attention
    mask excludes it. The first token of such a sequence stays in the mask, as attention without any token is
    undefined. Without a mask, only calls of exactly the bucket's shape fit.
    """

    def clear(self) -> None:
        super().clear()
        if MASK in self._tensors:
            self._tensors[MASK][:, :1].fill_(1)

    @staticmethod
    def _shape_of(name: str, shape: Shape) -> tuple[int, ...]:
        return shape

    def _copy(self, call: Call) -> None:
        rows, length = call.shape
        for name, tensor in self._tensors.items():
            part = tensor[:rows, :length]
            if name in call.tensors:
                part.copy_(call.tensors[name])
            elif self._filled is None:  # the mask of a call that has none
                part.fill_(1)


class RaggedInputs(StaticInputs):
    """Static inputs of sequences in one row, [1, total tokens, ...], and their bounds.

    Behind the sequences of a call stand empty ones, and tokens of no sequence. Nothing waits for the device.
    """

    @staticmethod
    def _shape_of(name: str, shape: Shape) -> tuple[int, ...]:
        sequences, tokens = shape
        return (sequences + 1,) if name in BOUNDS else (1, tokens)

    def _copy(self, call: Call) -> None:
        sequences, tokens = call.shape
        for name, tensor in self._tensors.items():
            given = call.tensors[name]
            if name in BOUNDS:
                tensor[: sequences + 1].copy_(given)
                tensor[sequences + 1 :].copy_(given[-1:])
            else:
                tensor[:, :tokens].copy_(given)
