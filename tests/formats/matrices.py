"""Random masked matrices and format options for property tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import torch
from torch import Tensor

from sparsebert_kernels import formats

DTYPES = (torch.float32, torch.bfloat16)
POISON = (torch.nan, torch.inf, -torch.inf, -0.0)


@dataclass(frozen=True)
class Matrix:
    """A weight [out, in] that is poison where it is masked, and its mask."""

    weight: Tensor
    mask: Tensor

    @property
    def dense(self) -> Tensor:
        return torch.where(self.mask, self.weight, 0)


@st.composite
def matrices(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Matrix:
    """Any small shape, density from nothing to everything, kept zeros, empty rows and columns."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    density = draw(st.sampled_from((0.0, None, 0.1, 0.5, 1.0)))
    if density is None:  # one weight
        mask = torch.zeros(rows * columns, dtype=torch.bool)
        mask[draw(st.integers(0, rows * columns - 1))] = True
        mask = mask.view(rows, columns)
    else:
        mask = torch.rand(rows, columns, generator=generator) < density
    if draw(st.booleans()):
        mask = mask.clone()
        mask[draw(st.integers(0, rows - 1))] = False
        mask[:, draw(st.integers(0, columns - 1))] = False
    weight = torch.randn(rows, columns, generator=generator)
    if draw(st.booleans()):
        weight[weight.abs() < 0.2] = 0
    weight = torch.where(mask, weight, draw(st.sampled_from(POISON))).to(draw(st.sampled_from(dtypes)))
    if draw(st.booleans()):
        weight = weight.t().contiguous().t()
    return Matrix(weight, mask)


@st.composite
def options(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Options of the format of that name, small blocks included."""
    if draw(st.booleans()):
        return {}
    if name == "element":
        return {"block_rows": draw(st.integers(1, 50)), "block_columns": draw(st.integers(1, 80))}
    if name == "vector":
        height = draw(st.sampled_from((2, 4, 8)))
        block_rows, block_columns = height * draw(st.integers(1, 6)), draw(st.integers(1, 80))
        return {"vector_rows": height, "block_rows": block_rows, "block_columns": block_columns}
    if name == "panel":
        height = draw(st.sampled_from((16, 32, 64, 128)))
        return {"block_size": (height, draw(st.sampled_from((8, 16, 32, 64, 128))))}
    if name == "row_panel":
        dtype = draw(st.sampled_from(("bf16", "int8")))
        group = draw(st.sampled_from((1, 2, 4, 8, 16, 32, 64) if dtype == "bf16" else (4, 8, 16, 32, 64)))
        return {"block": (draw(st.sampled_from((16, 32, 64))), group), "dtype": dtype}
    if name == "column_panel":
        orders = st.sampled_from(("best", "count", "greedy"))
        return {"panel_rows": draw(st.sampled_from((64, 128))), "row_order": draw(orders)}
    return {"tokens": draw(st.integers(1, 300))} if name in ("compact", "dense") else {}


def values(packed: formats.PackedWeight) -> Tensor:
    """Every stored value, as a plain tensor."""
    return packed.values.to_dense() if packed.values.is_mkldnn else packed.values
