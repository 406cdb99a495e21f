"""The base class of the packed weight formats."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sparsebert_kernels.errors import unknown

VALUE_DTYPES = (torch.float32, torch.bfloat16)
GPU_DTYPES = (*VALUE_DTYPES, torch.float16)  # of formats with GPU kernels
# Columns of a packed tile in the GPU formats, and of a tile whose kept weights `BitmapSparse` counts.
TILE_COLUMNS = 64
# Native kernels consume weights in units of one fp32 value or one pair of bf16 values.
UNIT = {torch.float32: 1, torch.bfloat16: 2}
# One cache line of slack after each array, so that native kernels may load whole vectors at its end.
SLACK_BYTES = 64


class PackedWeight(abc.ABC):
    """A weight matrix ``[out_features, in_features]`` in one storage format.

    A packed weight consists of plain tensors (named by ``TENSORS``) and the integers needed to read them
    (named by ``GEOMETRY``), so that modules can register, move, copy and pickle its parts.

    A tensor of int16 may be replaced by its bytes (``as_bytes``), which gloo and NCCL can send.
    """

    name: ClassVar[str]
    TENSORS: ClassVar[tuple[str, ...]]
    GEOMETRY: ClassVar[tuple[str, ...]]

    shape: tuple[int, int]
    values: Tensor
    # Set by the first call of a GPU kernel, which checks everything: see `cuda.backend.quick_call`.
    quick_call: Any = None

    def __init__(self, shape: tuple[int, int], tensors: dict[str, Tensor], geometry: dict[str, Any]) -> None:
        self.shape = shape
        for name in self.TENSORS:
            setattr(self, name, tensors[name])
        for name in self.GEOMETRY:
            setattr(self, name, geometry[name])

    @classmethod
    @abc.abstractmethod
    def from_dense(cls, weight: Tensor, mask: Tensor | None = None, **options: Any) -> Self:
        """Pack a weight. Masked weights are never read, so NaN or inf among them does no harm.

        Args:
            weight: [out, in].
            mask: bool [out, in], True = keep; ``weight != 0`` by default.
            options: Options of the format.
        """

    @abc.abstractmethod
    def to_dense(self) -> Tensor:
        """Return the dense matrix ``[out, in]``, with exact zeros where weights are pruned."""

    @abc.abstractmethod
    def kept(self) -> Tensor:
        """Return the stored mask ``[out, in]`` (bool, True = keep)."""

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def nnz(self) -> int:
        """Number of kept weights."""
        return int(self.kept().sum())

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors, including index and padding."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def consists_of(self, tensors: Mapping[str, Tensor]) -> bool:
        """Return whether the stored tensors are these very ones."""
        stored = self.__dict__
        for name in self.TENSORS:  # noqa: SIM110  (a generator takes half a microsecond)
            if stored[name] is not tensors[name]:
                return False
        return True

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.TENSORS}

    def geometry(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.GEOMETRY}

    def replace(self, **tensors: Tensor) -> Self:
        """Return the same structure over other tensors, e.g. trainable ``values``."""
        return type(self)(self.shape, {**self.tensors(), **tensors}, self.geometry())

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of copies and pickles what the kernels keep for later calls."""
        return {name: value for name, value in self.__dict__.items() if name != "quick_call"}

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"{type(self).__name__}({rows}x{columns}, {self.dtype}, {self.nbytes} bytes)"


def as_bytes(tensor: Tensor) -> Tensor:
    """Return an int16 tensor as uint8, over the same memory; another tensor as it is.

    No backend of ``torch.distributed`` sends int16, and DistributedDataParallel sends every buffer.
    """
    return tensor.view(torch.uint8) if tensor.dtype == torch.int16 else tensor


def refuse_options(cls: type[PackedWeight], options: Iterable[str]) -> None:
    """Raise ValueError for the first of ``options`` that ``cls.from_dense`` does not accept."""
    parameters = inspect.signature(cls.from_dense).parameters.values()
    accepted = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for name in options:
        raise unknown("option", name, accepted)


def checked(
    weight: Tensor, mask: Tensor | None, dtypes: Sequence[torch.dtype] = VALUE_DTYPES
) -> tuple[Tensor, Tensor]:
    """Check a weight and its mask, and return both detached.

    Raises:
        ValueError: The weight is not a non-empty matrix in one of ``dtypes``, or the mask differs from it in
            shape or device, or is not bool.
    """
    weight = weight.detach()
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(f"weight has shape {list(weight.shape)}; it must be a non-empty matrix [out, in]")
    if weight.dtype not in dtypes:
        names = " or ".join(map(str, dtypes))
        raise ValueError(f"weight is {weight.dtype}; this format stores {names}")
    if mask is None:
        return weight, weight != 0
    mask = mask.detach()
    if mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype}; it must be torch.bool (True = keep)")
    if mask.shape != weight.shape:
        raise ValueError(
            f"mask has shape {list(mask.shape)}; it must be {list(weight.shape)}, like the weight"
        )
    if mask.device != weight.device:
        raise ValueError(f"mask is on {mask.device}; it must be on {weight.device}, like the weight")
    return weight, mask
