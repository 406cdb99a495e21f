"""What every engine of the native encoder does with padding, and with sequences that are not finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparsebert_kernels.cpu.encoder import NativeEncoder

Small = tuple[NativeEncoder, Tensor, Tensor]


class Sequences:
    """Tests of the fixtures ``small`` (encoder, x and mask of three sequences) and ``instruction_set``."""

    def test_padding_is_zero_and_never_read(self, small: Small, instruction_set: str) -> None:
        encoder, x, mask = small
        answer = encoder(x, mask)
        assert not answer[~mask].any()
        assert torch.equal(encoder(torch.where(mask[..., None], x, torch.nan), mask), answer)

    def test_padding_alone_gives_zeros(self, small: Small) -> None:
        encoder, x, mask = small
        assert not encoder(x, torch.zeros_like(mask)).any()

    @pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)], ids=str)
    def test_an_empty_batch(self, small: Small, shape: tuple[int, int]) -> None:
        encoder, x, _ = small
        assert encoder(x.new_zeros(*shape, x.shape[2])).shape == (*shape, x.shape[2])

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
    def test_nan_and_inf_stay_in_their_sequence(
        self, small: Small, value: float, instruction_set: str
    ) -> None:
        encoder, x, mask = small
        clean = encoder(x, mask)
        x[1, 2, 3] = value
        answer = encoder(x, mask)
        assert torch.equal(answer[[0, 2]], clean[[0, 2]])
        assert answer[1].isnan().any()
        assert torch.equal(encoder(x[[0, 2]], mask[[0, 2]]), clean[[0, 2]])
