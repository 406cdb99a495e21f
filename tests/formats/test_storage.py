"""A format takes the bytes that it says, and no more than the documentation promises."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from sparsebert_kernels import formats
from sparsebert_kernels.formats import (
    BitmapSparse,
    ColumnPanelSparse,
    CompactDense,
    CsrSparse,
    DensePrepacked,
    ElementSparse,
    PanelSparse,
    RowPanelSparse,
    VectorSparse,
)
from sparsebert_kernels.formats.dense import prepack, prepacking_works
from tests.formats.matrices import matrices, options


def _documented(packed: formats.PackedWeight) -> int:
    """Bytes by the formulas of kernels/README.md."""
    n, k = packed.shape
    v = packed.dtype.itemsize
    match packed:
        case ElementSparse():
            s, r, g = packed.coordinates()[0].numel(), packed.rows.numel(), packed.groups.shape[0]
            blocks = -(-n // packed.block_rows) * -(-k // packed.block_columns)
            return (s + 64) * (v + 1) + 2 * r + 8 * g + 24 * (blocks + 1)
        case VectorSparse():
            s, height = packed.vectors()[0].numel(), packed.vector_rows
            panels = -(-n // packed.block_rows) * packed.block_rows // height
            panels *= -(-k // packed.block_columns)
            return (s + 64 // v) * height * v + 2 * (s + 32) + 4 * (panels + 1)
        case CompactDense():
            rows, columns = packed.live_rows.numel(), packed.live_columns.numel()
            return rows * columns * v + 8 * (rows + columns)
        case DensePrepacked():
            return n * k * v
        case CsrSparse():
            return packed.values.numel() * (v + 4) + 4 * (n + 1)
        case PanelSparse():
            slots, tiles = 64 // packed.group_columns, int(packed.starts[-1])
            panels = -(-n // packed.panel_rows)
            return max(tiles, 1) * packed.panel_rows * 64 * v + 4 * (tiles + 1) * slots + 4 * (2 * panels + 1)
        case RowPanelSparse():
            steps, panels, height = int(packed.starts[-1]), packed.starts.numel() - 1, packed.panel_rows
            index = 2 * steps * (64 // v) // packed.group_columns + 4 * (panels + 1)
            return 64 * height * max(steps, 1) + index + (4 * height * panels if v == 1 else 0)
        case BitmapSparse():
            kept = max(int(packed.kept().sum()), 1)
            return kept * v + 4 * n * -(-k // 32) + 2 * n * -(-k // 64) + 4 * n
        case ColumnPanelSparse():
            tiles, panels = int(packed.starts[-1]), -(-n // packed.panel_rows)
            index = 64 * (tiles + 1) + panels + 1 + panels * packed.panel_rows
            return max(tiles, 1) * packed.panel_rows * 64 * v + 4 * index
    raise NotImplementedError(packed.name)


@pytest.mark.parametrize("name", [*sorted(formats.ANY_MASK), "row_panel"])
class TestBytes:
    @given(st.data())
    def test_are_those_of_the_formula(self, name: str, data: st.DataObject) -> None:
        matrix = data.draw(matrices())
        packed = formats.pack(matrix.weight, matrix.mask, format=name, **data.draw(options(name)))
        assert packed.nbytes == _documented(packed)

    def test_are_those_of_the_tensors(self, name: str) -> None:
        packed = formats.pack(torch.randn(100, 130), torch.rand(100, 130) < 0.2, format=name)
        opaque = packed.values.is_mkldnn
        tensors = {
            key: tensor for key, tensor in packed.tensors().items() if not (opaque and key == "values")
        }
        stored = sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
        if opaque:
            stored += packed.values.numel() * packed.values.element_size()
        assert packed.nbytes == stored, "no view of something larger"

    def test_are_shown(self, name: str) -> None:
        packed = formats.pack(torch.randn(10, 20), format=name)
        assert f"10x20, {packed.dtype}, {packed.nbytes} bytes" in repr(packed)


class TestTargets:
    """Share of the dense float32 matrix, at 768 x 3072."""

    @pytest.mark.parametrize(
        ("dtype", "sparsity", "share"),
        [
            (torch.float32, 0.9, 0.14),
            (torch.float32, 0.95, 0.08),
            (torch.bfloat16, 0.9, 0.09),
            (torch.bfloat16, 0.95, 0.06),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("shape", [(768, 3072), (3072, 768), (768, 768)], ids=str)
    def test_element(self, shape: tuple[int, int], dtype: torch.dtype, sparsity: float, share: float) -> None:
        mask = torch.rand(shape) >= sparsity
        packed = ElementSparse.from_dense(torch.randn(shape).to(dtype), mask)
        assert packed.nbytes <= share * 4 * mask.numel()

    @pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.115), (torch.bfloat16, 0.065)], ids=str)
    def test_vector(self, dtype: torch.dtype, share: float) -> None:
        mask = (torch.rand(192, 3072) < 0.1).repeat_interleave(4, 0)
        packed = VectorSparse.from_dense(torch.randn(768, 3072).to(dtype), mask)
        assert packed.nbytes <= share * 4 * mask.numel()

    @pytest.mark.parametrize("name", ["element", "vector", "csr", "compact"])
    def test_an_empty_mask_costs_next_to_nothing(self, name: str) -> None:
        packed = formats.pack(torch.randn(768, 768), torch.zeros(768, 768, dtype=torch.bool), format=name)
        assert packed.nbytes < 0.005 * 4 * 768 * 768

    @pytest.mark.parametrize(("sparsity", "share"), [(0.5, 0.59), (0.75, 0.34), (0.9, 0.185), (0.95, 0.135)])
    @pytest.mark.parametrize("shape", [(768, 3072), (3072, 768), (768, 768)], ids=str)
    def test_bitmap(self, shape: tuple[int, int], sparsity: float, share: float) -> None:
        """Of the dense bfloat16 matrix: the density, a bit of mask and a quarter bit of offsets a weight."""
        mask = torch.rand(shape) >= sparsity
        packed = BitmapSparse.from_dense(torch.randn(shape).bfloat16(), mask)
        assert packed.nbytes <= share * 2 * mask.numel()


@pytest.mark.skipif(not prepacking_works(torch.float32), reason="torch has no working oneDNN linear here")
def test_a_dense_weight_of_a_cpu_is_in_the_layout_of_onednn() -> None:
    weight = torch.randn(48, 40)
    assert DensePrepacked.from_dense(weight, torch.ones(48, 40, dtype=torch.bool)).values.is_mkldnn
    assert not prepack(weight.to("meta"), 32).is_mkldnn
