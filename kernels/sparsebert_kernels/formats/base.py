"""What every packed weight format has in common."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sparsebert_kernels.errors import unknown

VALUE_DTYPES = (torch.float32, torch.bfloat16)
# Of formats that a GPU computes.
GPU_DTYPES = (*VALUE_DTYPES, torch.float16)


class PackedWeight(abc.ABC):
    """A weight matrix ``[out_features, in_features]`` in one storage format.

    A packed weight is a handful of plain tensors (``TENSORS`` names them) plus the integers that say how to
    read them (``GEOMETRY``), so modules can register, move, copy and pickle it piece by piece.
    """

    name: ClassVar[str]
    TENSORS: ClassVar[tuple[str, ...]]
    GEOMETRY: ClassVar[tuple[str, ...]]

    shape: tuple[int, int]
    values: Tensor

    def __init__(self, shape: tuple[int, int], tensors: dict[str, Tensor], geometry: dict[str, Any]) -> None:
        self.shape = shape
        for name in self.TENSORS:
            setattr(self, name, tensors[name])
        for name in self.GEOMETRY:
            setattr(self, name, geometry[name])

    @classmethod
    @abc.abstractmethod
    def from_dense(cls, weight: Tensor, mask: Tensor | None = None, **options: Any) -> Self:
        """Pack ``weight`` [out, in]; ``mask`` (bool, same shape, True = keep) defaults to ``weight != 0``.

        Masked weights are never read into the packed values, so NaN or inf there does no harm.
        """

    @abc.abstractmethod
    def to_dense(self) -> Tensor:
        """The dense matrix ``[out, in]``, exact zeros where nothing is kept."""

    @abc.abstractmethod
    def kept(self) -> Tensor:
        """The mask ``[out, in]`` (bool, True = keep) that the format holds."""

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
        """Bytes of every tensor the format stores, index and padding included."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.TENSORS}

    def geometry(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.GEOMETRY}

    def replace(self, **tensors: Tensor) -> Self:
        """The same structure over other tensors, e.g. a trainable ``values``."""
        return type(self)(self.shape, {**self.tensors(), **tensors}, self.geometry())

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"{type(self).__name__}({rows}x{columns}, {self.dtype}, {self.nbytes} bytes)"


def refuse_options(cls: type[PackedWeight], options: Iterable[str]) -> None:
    """Raise ValueError if any option is left that `cls.from_dense` does not have."""
    parameters = inspect.signature(cls.from_dense).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for name in options:
        raise unknown("option", name, known)


def checked(
    weight: Tensor, mask: Tensor | None, dtypes: Sequence[torch.dtype] = VALUE_DTYPES
) -> tuple[Tensor, Tensor]:
    """``weight`` and its mask, both detached, after the checks every format needs.

    Raises ValueError for a weight that is not a non-empty matrix in one of ``dtypes``, or a mask of another
    shape, dtype or device.
    """
    weight = weight.detach()
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(
            f"weight has shape {list(weight.shape)}; a matrix [out_features, in_features] is needed"
        )
    if weight.dtype not in dtypes:
        known = " or ".join(map(str, dtypes))
        raise ValueError(f"weight is {weight.dtype}; packed formats store {known}")
    if mask is None:
        return weight, weight != 0
    mask = mask.detach()
    if mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype}; it must be torch.bool (True = keep)")
    if mask.shape != weight.shape:
        raise ValueError(f"mask has shape {list(mask.shape)}, the weight {list(weight.shape)}")
    if mask.device != weight.device:
        raise ValueError(f"mask is on {mask.device}, the weight on {weight.device}")
    return weight, mask
