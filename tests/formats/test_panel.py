"""``PanelSparse``: where blocks go, what fills up a tile, joined weights, and the transposed index."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from sparsebert_kernels import formats
from sparsebert_kernels.formats import PanelSparse
from sparsebert_kernels.formats.base import TILE_COLUMNS
from sparsebert_kernels.formats.panel import join
from sparsebert_kernels.formats.panel_transpose import TRANSPOSED_ROWS
from sparsebert_kernels.formats.transpose import transposed_index
from tests.formats.matrices import matrices, options

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = [(16, 16), (32, 8), (64, 64), (128, 32)]


def block_mask(shape: tuple[int, int], size: tuple[int, int], density: float = 0.4) -> Tensor:
    """Whole blocks, those at the edges cut off."""
    rows, columns = (-(-length // step) for length, step in zip(shape, size, strict=True))
    blocks = torch.rand(rows, columns) < density
    return blocks.repeat_interleave(size[0], 0).repeat_interleave(size[1], 1)[: shape[0], : shape[1]]


class TestLayout:
    def test_groups_of_a_panel_lie_side_by_side_in_tiles(self) -> None:
        blocks = torch.tensor([[1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)
        mask = blocks.repeat_interleave(16, 0).repeat_interleave(32, 1)
        weight = torch.arange(mask.numel()).view(mask.shape).float() + 1
        packed = PanelSparse.from_dense(weight, mask, block_size=(16, 32))
        assert packed.values.shape == (3, 16, 64)
        # Two groups a tile; the last slot of a panel repeats its last group; one tile's worth at the end.
        assert packed.columns.tolist() == [0, 2, 4, 4, 1, 1, 0, 0]
        assert packed.starts.tolist() == [0, 2, 2, 3]
        assert packed.order.tolist() == [0, 2, 1]
        assert torch.equal(packed.values[0], torch.cat((weight[:16, :32], weight[:16, 64:96]), 1))
        assert torch.equal(packed.values[2, :, :32], weight[32:, 32:64])
        assert not packed.values[1, :, 32:].any()
        assert not packed.values[2, :, 32:].any()

    def test_wide_blocks_are_kept_in_pieces_of_64(self) -> None:
        mask = torch.zeros(32, 256, dtype=torch.bool)
        mask[:, 128:] = True
        packed = PanelSparse.from_dense(torch.randn(32, 256), mask, block_size=(32, 128))
        assert packed.columns.tolist() == [2, 3, 0]
        assert packed.aligned

    def test_nothing_kept_leaves_one_tile_of_zeros(self) -> None:
        packed = PanelSparse.from_dense(
            torch.full((40, 70), torch.nan), torch.zeros(40, 70, dtype=torch.bool)
        )
        assert packed.values.shape == (1, 64, 64)
        assert not packed.values.any()
        assert not packed.starts.any()
        assert packed.nnz == 0

    @given(st.data())
    def test_filling_never_names_a_pruned_group(self, data: st.DataObject) -> None:
        matrix = data.draw(matrices())
        packed = PanelSparse.from_dense(matrix.weight, matrix.mask, **data.draw(options("panel")))
        group, per_tile = packed.group_columns, TILE_COLUMNS // packed.group_columns
        for panel in range(packed.panels):
            begin, end = (int(packed.starts[panel + i]) * per_tile for i in (0, 1))
            rows = matrix.mask[panel * packed.panel_rows : (panel + 1) * packed.panel_rows]
            named = packed.columns[begin:end].tolist()
            assert named == sorted(named)
            assert all(rows[:, group * each : group * (each + 1)].any() for each in named)

    @given(st.data())
    def test_order_is_by_length(self, data: st.DataObject) -> None:
        matrix = data.draw(matrices())
        packed = PanelSparse.from_dense(matrix.weight, matrix.mask, **data.draw(options("panel")))
        lengths = torch.diff(packed.starts)[packed.order.long()].tolist()
        assert lengths == sorted(lengths, reverse=True)
        assert sorted(packed.order.tolist()) == list(range(packed.panels))

    @given(st.data())
    def test_coordinates_say_where_every_stored_weight_belongs(self, data: st.DataObject) -> None:
        matrix = data.draw(matrices(dtypes=DTYPES))
        packed = PanelSparse.from_dense(matrix.weight, matrix.mask, **data.draw(options("panel")))
        row, column = packed.coordinates()
        inside = row < packed.shape[0]
        dense = packed.values.new_zeros(packed.shape)
        dense[row[inside], column[inside]] = packed.values.flatten()[inside]
        assert torch.equal(dense, matrix.dense)
        assert not packed.values.flatten()[~inside].any()

    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_a_mask_of_whole_blocks_is_held_exactly(self, size: tuple[int, int]) -> None:
        mask = block_mask((100, 150), size)
        packed = PanelSparse.from_dense(torch.zeros(100, 150), mask, block_size=size)
        assert packed.aligned
        assert torch.equal(packed.kept(), mask)

    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_whole_blocks_take_their_share_of_the_bytes(self, size: tuple[int, int]) -> None:
        mask = block_mask((768, 3072), size, 0.1)
        packed = PanelSparse.from_dense(torch.randn(768, 3072).bfloat16(), mask, block_size=size)
        share = mask.float().mean().item()
        # What is left of the last tile of a panel is less than one tile.
        assert packed.nbytes < (share + 64 / 3072) * 2 * mask.numel() * 1.01


class TestJoin:
    def members(self, size: tuple[int, int] = (32, 16)) -> list[PanelSparse]:
        densities, heights = (0.5, 0.0, 0.3), (64, 32, 50)
        masks = [block_mask((n, 100), size, d) for n, d in zip(heights, densities, strict=True)]
        return [PanelSparse.from_dense(torch.randn(m.shape), m, block_size=size) for m in masks]

    def test_is_the_weights_one_below_the_other(self) -> None:
        weights = self.members()
        joined, members = join(weights)
        expected = torch.cat([weight.to_dense() for weight in weights])
        assert torch.equal(joined.to_dense(), expected)
        assert torch.equal(joined.kept(), torch.cat([weight.kept() for weight in weights]))
        for weight, member in zip(weights, members, strict=True):
            assert torch.equal(member.to_dense(), weight.to_dense())

    def test_members_are_views_of_one_storage(self) -> None:
        joined, members = join(self.members())
        storage = joined.values.untyped_storage().data_ptr()
        views = [member for member in members if int(member.starts[-1])]
        assert len(views) == 2
        assert all(member.values.untyped_storage().data_ptr() == storage for member in views)
        members[0].values.mul_(2)
        assert torch.equal(joined.to_dense()[:64], members[0].to_dense())

    def test_of_weights_that_keep_nothing(self) -> None:
        empty = PanelSparse.from_dense(torch.zeros(64, 64))
        joined, _ = join([empty, empty])
        assert joined.values.shape == (1, 64, 64)
        assert not joined.to_dense().any()

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (((64, 100), torch.float32, (64, 16)), "panel_rows 32 and 64"),
            (((64, 100), torch.float32, (32, 8)), "group_columns 16 and 8"),
            (((64, 100), torch.float16, (32, 16)), "dtype .*float16"),
            (((64, 90), torch.float32, (32, 16)), "100 and 90 in_features"),
        ],
        ids=["panel rows", "group columns", "dtype", "in_features"],
    )
    def test_refuses_weights_that_differ(
        self, other: tuple[tuple[int, int], torch.dtype, tuple[int, int]], message: str
    ) -> None:
        shape, dtype, block_size = other
        weight = PanelSparse.from_dense(torch.ones(shape, dtype=dtype), block_size=block_size)
        with pytest.raises(ValueError, match=message):
            join([self.members()[0], weight])

    def test_refuses_a_member_that_does_not_fill_its_panels(self) -> None:
        with pytest.raises(
            ValueError, match="50 out_features; all but the last need a multiple of their 32 panel rows"
        ):
            join(self.members()[::-1])


class TestTransposedIndex:
    @given(st.data())
    def test_names_the_block_behind_every_piece_of_the_transpose(self, data: st.DataObject) -> None:
        matrix = data.draw(matrices())
        packed = PanelSparse.from_dense(matrix.weight, matrix.mask, **data.draw(options("panel")))
        source, columns, starts, order = transposed_index(packed)
        values = _gathered(packed, source)
        tensors = {"values": values, "columns": columns, "starts": starts, "order": order}
        geometry = {"group_columns": min(packed.panel_rows, TILE_COLUMNS), "aligned": False}
        flipped = formats.PanelSparse(packed.shape[::-1], tensors, geometry)
        assert torch.equal(flipped.to_dense(), matrix.dense.t())


def _gathered(packed: PanelSparse, source: Tensor) -> Tensor:
    """The tiles of W.T (tiles, 64, 64), by the definition of ``transposed_panels``."""
    height, group = packed.panel_rows, packed.group_columns
    unit = min(height, TILE_COLUMNS)
    blocks = packed.values.view(-1, height // unit, unit, TILE_COLUMNS // group, group)
    blocks = blocks.permute(0, 3, 1, 4, 2).reshape(-1, group, unit)  # slot by slot, part by part
    pieces = torch.where((source >= 0)[..., None, None], blocks[source.clamp(min=0).long()], 0)
    return pieces.permute(0, 2, 3, 1, 4).reshape(-1, TRANSPOSED_ROWS, TILE_COLUMNS)
