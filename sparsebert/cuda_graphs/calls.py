"""The inputs of a call, read and checked, and the signature by which a graph can serve it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsebert.cuda_graphs.buckets import Shape

MASK = "attention_mask"
# Inputs [sequences, tokens, ...] that can be padded on the right, as long as the mask excludes the padding.
PADDABLE = ("input_ids", MASK, "token_type_ids", "position_ids", "inputs_embeds")
# Bounds [sequences + 1] of sequences in one row, and limits of their lengths, as transformers names them.
BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k")
LONGEST = ("max_length_q", "max_length_k")
_OPTIONS = (bool, int, float, str, type(None))


class NoGraph(Exception):
    """A call must run without a graph.

    Attributes:
        kind: Warnings of one kind are given once.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Signature:
    """What the graphs of two calls must agree in, apart from the shape.

    Attributes:
        tensors: Name, dtype and dimensions after the tokens of each tensor.
        options: Other arguments by name.
    """

    tensors: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def is_ragged(self) -> bool:
        """Whether the sequences stand in one row."""
        return any(name in BOUNDS for name, _, _ in self.tensors)

    @property
    def longest(self) -> int:
        """The limit of the lengths of sequences in one row."""
        return max(value for name, value in self.options if name in LONGEST)

    def with_longest(self, longest: int) -> Signature:
        """Return this signature with another limit of the lengths of sequences in one row."""
        options = ((name, longest if name in LONGEST else value) for name, value in self.options)
        return Signature(self.tensors, tuple(options))

    def with_mask(self) -> Signature:
        """Return this signature with an attention mask."""
        if any(name == MASK for name, _, _ in self.tensors):
            return self
        return Signature((*self.tensors, (MASK, torch.int64, ())), self.options)


@dataclass(frozen=True)
class Call:
    """The inputs of one call.

    Attributes:
        tensors: [sequences, tokens, ...] by name.
        signature: What decides, together with the shape, which graph can serve the call.
        shape: Sequences and tokens of each; total tokens of sequences in one row.
    """

    tensors: Mapping[str, Tensor]
    signature: Signature
    shape: Shape

    @classmethod
    def read(
        cls, names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device
    ) -> Call:
        """Read the arguments of a call.

        Args:
            names: Positional parameters of the model's forward method.
            args: Positional arguments.
            kwargs: Arguments by name.
            device: Device of the model.

        Raises:
            NoGraph: An argument cannot be padded, or the inputs do not fit together.
        """
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(arguments) < len(args) + len(kwargs):
            raise NoGraph("arguments", "its arguments are not those of the model")
        tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
        options = {name: value for name, value in arguments.items() if name not in tensors}
        for name, tensor in tensors.items():
            if name not in (*PADDABLE, *BOUNDS):
                raise NoGraph(f"argument {name}", f"{name} cannot be padded to a bucket")
            if type(tensor) is not Tensor:
                raise NoGraph(f"argument {name}", f"{name} is a {type(tensor).__name__}, not a plain tensor")
            if tensor.device != device:
                raise NoGraph(f"device of {name}", f"{name} is on {tensor.device}, the model on {device}")
        for name, value in options.items():
            if type(value) not in _OPTIONS:
                raise NoGraph(f"argument {name}", f"{name} is a {type(value).__name__}")
        options = {
            name: value
            for name, value in options.items()
            if name not in (*PADDABLE, *BOUNDS) or value is not None
        }
        ragged = any(name in tensors for name in BOUNDS)
        shape = _ragged_shape(tensors, options) if ragged else _shape(tensors)
        signature = Signature(
            tuple((name, tensors[name].dtype, tuple(tensors[name].shape[2:])) for name in sorted(tensors)),
            tuple(sorted(options.items())),
        )
        return cls(tensors, signature, shape)


def _shape(tensors: Mapping[str, Tensor]) -> Shape:
    first = next((tensors[name] for name in ("input_ids", "inputs_embeds") if name in tensors), None)
    if first is None:
        raise NoGraph("no input", "it has neither input_ids nor inputs_embeds as a tensor")
    shape = tuple(first.shape[:2])
    for name, tensor in tensors.items():
        dimensions = 3 if name == "inputs_embeds" else 2
        # Position ids of one row serve every sequence.
        shared = name == "position_ids" and tuple(tensor.shape) == (1, *shape[1:])
        if (
            tensor.dim() != dimensions
            or not (shared or tuple(tensor.shape[:2]) == shape)
            or not tensor.numel()
        ):
            raise NoGraph(f"shape of {name}", f"{name} has shape {list(tensor.shape)}")
    return shape  # type: ignore[return-value]


def _ragged_shape(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Shape:
    limits = [options.get(limit) for bound, limit in zip(BOUNDS, LONGEST, strict=True) if bound in tensors]
    if not all(type(limit) is int and limit > 0 for limit in limits):
        raise NoGraph("limit", "sequences in one row need a positive integer max_length_q (and _k)")
    if MASK in tensors:
        raise NoGraph(
            f"shape of {MASK}", "it has an attention mask beside the bounds of sequences in one row"
        )
    bounds = [tensors[name] for name in BOUNDS if name in tensors]
    rows, tokens = _shape({name: tensor for name, tensor in tensors.items() if name not in BOUNDS})
    if rows != 1 or any(each.dim() != 1 or len(each) < 2 or len(each) != len(bounds[0]) for each in bounds):
        raise NoGraph("bounds", "sequences in one row need inputs of one row and bounds [sequences + 1]")
    return len(bounds[0]) - 1, tokens
