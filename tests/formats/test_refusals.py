"""What cannot be packed is refused in one line that names the value and what would be right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsebert_kernels import formats

FORMATS = sorted(formats.FORMATS)
ON_A_GPU = ("panel", "bitmap", "column_panel", "dense", "compact")  # float16 as well
WEIGHT = torch.ones(6, 8)
MASK = torch.ones(6, 8, dtype=torch.bool)


def _assert_refused(
    message: str, weight: Tensor = WEIGHT, mask: Tensor | None = MASK, **options: Any
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        formats.pack(weight, mask, **options)
    assert "\n" not in str(caught.value)


class TestNames:
    def test_unknown_format(self) -> None:
        _assert_refused(
            "^unknown format 'elemnt'; known: [^;]*compact, csr, dense, element, .*; did you mean 'element'",
            format="elemnt",
        )
        _assert_refused("^unknown format 'coo'; known: [a-z0-9_:, ]+$", format="coo")

    @pytest.mark.parametrize("name", FORMATS)
    def test_unknown_option(self, name: str) -> None:
        _assert_refused("^unknown option 'colour'; known: ", format=name, colour="red")

    def test_the_nearest_option_is_offered(self) -> None:
        _assert_refused("did you mean 'vector_rows'", format="vector", vector_row=4)
        _assert_refused("did you mean 'tokens'", format="dense", token=4)


@pytest.mark.parametrize("name", sorted(formats.ANY_MASK))
class TestTensors:
    def test_mask_of_another_shape(self, name: str) -> None:
        _assert_refused(r"mask has shape \[8, 6\]; it must be \[6, 8\]", mask=MASK.t(), format=name)
        _assert_refused(r"mask has shape \[6, 1\]; it must be \[6, 8\]", mask=MASK[:, :1], format=name)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64], ids=str)
    def test_mask_of_another_dtype(self, name: str, dtype: torch.dtype) -> None:
        _assert_refused(f"mask is {dtype}; it must be torch.bool", mask=MASK.to(dtype), format=name)

    def test_mask_on_another_device(self, name: str) -> None:
        _assert_refused("mask is on meta; it must be on cpu", mask=MASK.to("meta"), format=name)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int8], ids=str)
    def test_weight_of_another_dtype(self, name: str, dtype: torch.dtype) -> None:
        if name in ON_A_GPU and dtype == torch.float16:
            assert formats.pack(WEIGHT.to(dtype), MASK, format=name).dtype == dtype
            return
        _assert_refused(
            f"weight is {dtype}; .* torch.float32 or torch.bfloat16", WEIGHT.to(dtype), format=name
        )

    @pytest.mark.parametrize("shape", [(), (6,), (2, 3, 4), (0, 4), (4, 0)], ids=str)
    def test_weight_that_is_no_matrix(self, name: str, shape: tuple[int, ...]) -> None:
        _assert_refused(
            r"it must be a non-empty matrix \[out, in\]",
            torch.ones(shape),
            None,
            format=name,
        )


class TestBlockSizes:
    @pytest.mark.parametrize(("rows", "columns"), [(0, 8), (32768, 8), (8, 0), (8, 257), (-8, 8)])
    def test_of_element(self, rows: int, columns: int) -> None:
        _assert_refused(
            f"blocks must have 1 to 32767 rows and 1 to 256 columns, got {rows} x {columns}",
            format="element",
            block_rows=rows,
            block_columns=columns,
        )

    @pytest.mark.parametrize("rows", [0, 1, 3, 16, -4])
    def test_vector_rows(self, rows: int) -> None:
        message = f"vector_rows must be 2, 4 or 8, got {rows}"
        _assert_refused(message, format="vector", vector_rows=rows)

    @pytest.mark.parametrize("rows", [0, 6, -4, 32772])
    def test_block_rows_of_vector(self, rows: int) -> None:
        message = f"block_rows must be a multiple of 4 up to 32768, got {rows}"
        _assert_refused(message, format="vector", vector_rows=4, block_rows=rows)

    @pytest.mark.parametrize("columns", [0, 65537, -1])
    def test_block_columns_of_vector(self, columns: int) -> None:
        message = f"block_columns must be between 1 and 65536, got {columns}"
        _assert_refused(message, format="vector", block_columns=columns)

    @pytest.mark.parametrize(
        "size", [(8, 64), (0, 8), (256, 64), (64, 4), (64, 0), (64, 96), (-64, -64)], ids=str
    )
    def test_of_panel(self, size: tuple[int, int]) -> None:
        message = rf"block_size must have 16, 32, 64 or 128 rows .* got \({size[0]}, {size[1]}\)"
        _assert_refused(message, format="panel", block_size=size)
