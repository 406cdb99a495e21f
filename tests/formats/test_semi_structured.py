"""2:4 weights: what is refused everywhere, and on a GPU what torch's tensors answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsebert_kernels import ops
from sparsebert_kernels.formats import SemiStructured
from tests.ops.problem import assert_as_good_as_torch

ROWS, COLUMNS = 64, 128


def mask_2_4(rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    """Two random places of every four; some groups keep one or none."""
    mask = torch.rand(rows, columns // 4, 4).argsort(-1).argsort(-1) < 2
    mask[:, 1, :2] = False
    mask[0] = False
    return mask.view(rows, columns)


class TestRefusals:
    def refused(self, message: str, weight: Tensor, mask: Tensor | None) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            SemiStructured.from_dense(weight, mask)
        assert "\n" not in str(caught.value)

    def test_a_mask_that_is_not_2_4(self) -> None:
        mask = mask_2_4()
        mask[3, 8:12] = torch.tensor([True, True, False, True])
        weight = torch.ones(ROWS, COLUMNS).bfloat16()
        self.refused("not 2:4: row 3 keeps more than 2 of the 4 columns from 8 on", weight, mask)
        self.refused("not 2:4: row 0 .* from 0 on", weight, None)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_other_dtypes(self, dtype: torch.dtype) -> None:
        weight = torch.ones(ROWS, COLUMNS, dtype=dtype)
        self.refused(f"weight is {dtype}; .* torch.bfloat16 or torch.float16", weight, mask_2_4())

    @pytest.mark.parametrize("shape", [(48, 128), (64, 96), (16, 64)], ids=str)
    def test_sizes_that_no_library_packs(self, shape: tuple[int, int]) -> None:
        weight = torch.ones(shape).bfloat16()
        self.refused(f"weight is {shape[0]} x {shape[1]}; .* multiples of 32 x 64", weight, mask_2_4(*shape))

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_kept_weights_that_are_not_finite(self, value: float) -> None:
        mask = mask_2_4()
        weight = torch.where(mask, value, 1.0).bfloat16()
        self.refused("a kept weight is NaN or inf", weight, mask)

    def test_a_device_that_cannot_pack(self) -> None:
        """Masked NaN is no reason to refuse: this is as far as a CPU comes."""
        mask = mask_2_4()
        weight = torch.where(mask, 1.0, torch.nan).bfloat16()
        self.refused("weight is on cpu; move it to an NVIDIA GPU, which packs 2:4 weights", weight, mask)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
class TestOnAGpu:
    def packed(self, dtype: torch.dtype) -> tuple[SemiStructured, Tensor]:
        """With NaN and -0.0 where it is masked, and what it should hold."""
        mask = mask_2_4().cuda()
        weight = torch.where(mask, torch.randn(ROWS, COLUMNS, device="cuda"), torch.nan)
        weight[~mask & (torch.rand(ROWS, COLUMNS, device="cuda") < 0.5)] = -0.0
        weight = weight.to(dtype)
        return SemiStructured.from_dense(weight, mask), torch.where(mask, weight, 0)

    def test_round_trip(self, dtype: torch.dtype) -> None:
        packed, dense = self.packed(dtype)
        assert torch.equal(packed.to_dense(), dense)
        assert torch.equal(packed.kept(), dense != 0)

    def test_storage(self, dtype: torch.dtype) -> None:
        """Half the weights, and two bits for the place of each."""
        packed, dense = self.packed(dtype)
        assert packed.nbytes == pytest.approx((0.5 + 1 / 16) * dense.nbytes, rel=0.05)

    @pytest.mark.parametrize("tokens", [0, 1, 33, 256])
    def test_linear(self, dtype: torch.dtype, tokens: int) -> None:
        packed, dense = self.packed(dtype)
        x = torch.randn(tokens, COLUMNS, device="cuda", dtype=dtype)
        bias = torch.randn(ROWS, device="cuda", dtype=dtype)
        with torch.no_grad():
            answer = ops.linear(x, packed, bias)
        torchs = torch.nn.functional.linear(x, dense, bias)
        exact = torch.nn.functional.linear(x.double(), dense.double(), bias.double())
        assert_as_good_as_torch(answer, torchs, exact)

    def test_x_gets_its_gradient(self, dtype: torch.dtype) -> None:
        packed, dense = self.packed(dtype)
        x = torch.randn(32, COLUMNS, device="cuda", dtype=dtype, requires_grad=True)
        gradient = torch.randn(32, ROWS, device="cuda", dtype=dtype)
        ops.linear(x, packed).backward(gradient)
        assert x.grad is not None
        assert_as_good_as_torch(x.grad, gradient @ dense, gradient.double() @ dense.double())

    def test_values_cannot_be_cast(self, dtype: torch.dtype) -> None:
        packed, _ = self.packed(dtype)
        with pytest.raises(ValueError, match="cannot be cast; pack them again"):
            packed.replace(values=packed.values.float())
