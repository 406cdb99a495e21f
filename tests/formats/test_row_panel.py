"""``RowPanelSparse``: where kept columns go, what fills up a k-step, int8 scales, and refusals."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from sparsebert_kernels import formats
from sparsebert_kernels.formats import RowPanelSparse
from tests.formats.matrices import matrices, options


def columns(packed: RowPanelSparse, panel: int) -> list[int]:
    """Return the stored index of one panel."""
    per_step = packed.values.shape[2] // packed.group_columns
    begin, end = (int(packed.starts[panel + i]) * per_step for i in (0, 1))
    return (packed.columns[begin:end].int() & 0xFFFF).tolist()


class TestLayout:
    def test_kept_columns_of_a_panel_lie_side_by_side_in_steps_of_32(self) -> None:
        groups = torch.zeros(2, 50, dtype=torch.bool)
        groups[0, [1, 4, 49]] = True
        mask = groups.repeat_interleave(32, 0).repeat_interleave(2, 1)
        weight = torch.randn(64, 100).bfloat16()
        packed = RowPanelSparse.from_dense(weight, mask)
        assert packed.values.shape == (1, 32, 32)
        assert packed.starts.tolist() == [0, 1, 1]
        # The rest of a step repeats the panel's last group, with zero weights.
        assert columns(packed, 0) == [1, 4, *[49] * 14]
        assert torch.equal(packed.values[0, :, :6], weight[:32, [2, 3, 8, 9, 98, 99]])
        assert not packed.values[0, :, 6:].any()

    def test_the_index_counts_pairs_of_columns_in_bf16_and_quads_in_int8(self) -> None:
        mask = torch.zeros(16, 128, dtype=torch.bool)
        mask[:, 64:] = True
        for dtype, line in (("bf16", 2), ("int8", 4)):
            packed = RowPanelSparse.from_dense(torch.randn(16, 128), mask, block=(16, 16), dtype=dtype)
            assert columns(packed, 0) == [first // line for first in (64, 80, 96, 112)]

    def test_single_columns_take_places_of_their_own_kind_as_far_as_both_last(self) -> None:
        mask = torch.zeros(16, 40, dtype=torch.bool)
        kept = [0, 2, 5, 6, 8, 10, 11]
        mask[:, kept] = True
        weight = torch.randn(16, 40).bfloat16()
        packed = RowPanelSparse.from_dense(weight, mask, block=(16, 1))
        order = [0, 5, 2, 11, 6, 8, 10]
        assert columns(packed, 0)[:7] == order
        assert torch.equal(packed.values[0, :, :7], weight[:, order])

    def test_rows_are_padded_to_whole_panels_and_to_32(self) -> None:
        for out, height, rows in ((1, 16, 32), (33, 16, 64), (33, 32, 64), (65, 64, 128)):
            packed = RowPanelSparse.from_dense(torch.randn(out, 8), block=(height, 2))
            assert packed.panels * height == rows

    def test_wide_blocks_are_stored_in_pieces_of_one_step(self) -> None:
        mask = torch.zeros(32, 256, dtype=torch.bool)
        mask[:, 128:] = True
        packed = RowPanelSparse.from_dense(torch.randn(32, 256), mask, block=(32, 128))
        assert columns(packed, 0) == [64, 80, 96, 112]
        assert packed.aligned

    def test_nothing_kept_leaves_one_step_of_zeros(self) -> None:
        nothing = torch.zeros(40, 70, dtype=torch.bool)
        packed = RowPanelSparse.from_dense(torch.full((40, 70), torch.nan), nothing)
        assert packed.values.shape == (1, 32, 32)
        assert not packed.values.any()
        assert not packed.starts.any()
        assert packed.nnz == 0

    @given(st.data())
    def test_padding_never_names_a_pruned_group(self, data: st.DataObject) -> None:
        matrix = data.draw(matrices())
        packed = RowPanelSparse.from_dense(matrix.weight, matrix.mask, **data.draw(options("row_panel")))
        width, line = packed.group_columns, 2 if packed.dtype == torch.bfloat16 else 4
        for panel in range(packed.panels):
            rows = matrix.mask[panel * packed.panel_rows : (panel + 1) * packed.panel_rows]
            firsts = [each * (line if width > 1 else 1) for each in columns(packed, panel)]
            assert all(rows[:, first : first + width].any() for first in firsts)


class TestValues:
    @given(st.data())
    def test_come_back_rounded_to_bf16(self, data: st.DataObject) -> None:
        matrix = data.draw(matrices())
        chosen = data.draw(options("row_panel")) | {"dtype": torch.bfloat16}
        packed = formats.pack(matrix.weight, matrix.mask, format="row_panel", **chosen)
        assert torch.equal(packed.to_dense(), matrix.dense.bfloat16())
        expected = matrix.mask if packed.aligned else matrix.dense.bfloat16() != 0  # type: ignore[attr-defined]
        assert torch.equal(packed.kept(), expected)

    @given(st.data())
    def test_in_int8_are_within_half_a_step_of_their_row(self, data: st.DataObject) -> None:
        matrix = data.draw(matrices())
        height = data.draw(st.sampled_from((16, 32, 64)))
        group = data.draw(st.sampled_from((4, 8, 16, 32, 64)))
        packed = RowPanelSparse.from_dense(matrix.weight, matrix.mask, block=(height, group), dtype="int8")
        dense = matrix.dense.float()
        step = dense.abs().amax(1, keepdim=True) / 127
        assert ((packed.to_dense() - dense).abs() <= 0.5001 * step).all()
        assert not packed.scales[matrix.mask.shape[0] :].any()
        assert not packed.to_dense()[~matrix.mask].any()

    def test_survive_as_bytes_for_distributed_backends(self) -> None:
        packed = RowPanelSparse.from_dense(torch.randn(40, 70))
        sent = packed.replace(columns=formats.base.as_bytes(packed.columns))
        assert torch.equal(sent.to_dense(), packed.to_dense())


class TestRefusals:
    @pytest.mark.parametrize(
        ("chosen", "message"),
        [
            (
                {"block": (8, 2)},
                r"16, 32 or 64 rows and 1, 2, 4, 8, 16 or a multiple of 32 columns for",
            ),
            ({"block": (32, 3)}, r"for bfloat16, got \(32, 3\)"),
            ({"block": (32, 2), "dtype": "int8"}, r"4, 8, 16, 32 or a multiple of 64 columns for int8, got"),
            ({"dtype": "fp16"}, "unknown dtype of row panels 'fp16'; known: bf16, bfloat16, int8"),
            ({"size": 2}, "unknown option 'size'; known: block, dtype"),
        ],
        ids=str,
    )
    def test_name_the_value_and_what_would_be_right(self, chosen: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            RowPanelSparse.from_dense(torch.randn(32, 64), **chosen)
        assert "\n" not in str(caught.value)

    def test_too_many_columns(self) -> None:
        with pytest.raises(ValueError, match="weight has 65537 columns; this format stores at most 65536"):
            RowPanelSparse.from_dense(torch.ones(1, 65537))
