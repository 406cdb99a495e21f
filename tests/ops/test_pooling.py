"""The native pooling of sentence vectors against torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsebert_kernels.cpu.pooling import pool
from tests.ops.backends import INSTRUCTION_SETS

pytestmark = pytest.mark.skipif(not INSTRUCTION_SETS, reason="no native library")

STATES = torch.randn(4, 9, 37, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 9, [1] + [0] * 8, [0, 0, 1, 1, 0, 1, 0, 0, 0], [0] * 9])


def reference(states: Tensor, mask: Tensor, mean: bool, normalize: bool) -> Tensor:
    states, mask = states.double(), mask.double()
    if mean:
        result = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1e-9)
    else:
        result = states[torch.arange(len(states)), mask.argmax(1)]
    return F.normalize(result, dim=-1) if normalize else result


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_is_what_torch_computes(
    dtype: torch.dtype, mean: bool, normalize: bool, instruction_set: str
) -> None:
    answer = pool(STATES, MASK.to(dtype), mean=mean, normalize=normalize)
    assert answer is not None
    assert (answer - reference(STATES, MASK, mean, normalize)).abs().max() < 1e-6


@pytest.mark.parametrize("mean", [False, True])
def test_of_bfloat16_states(mean: bool, instruction_set: str) -> None:
    states = STATES.bfloat16()
    answer = pool(states, MASK, mean=mean, normalize=True)
    assert answer is not None
    assert answer.dtype == torch.bfloat16
    assert torch.allclose(answer.double(), reference(states, MASK, mean, True), rtol=2**-8, atol=1e-6)


def test_without_a_mask_all_tokens_count() -> None:
    answer = pool(STATES, None, mean=True)
    assert answer is not None
    assert torch.allclose(answer, STATES.mean(1), atol=1e-6)


def test_threads_change_no_bit() -> None:
    torch.set_num_threads(1)
    alone = pool(STATES, MASK, mean=True)
    torch.set_num_threads(3)
    threaded = pool(STATES, MASK, mean=True)
    torch.set_num_threads(1)
    assert alone is not None
    assert threaded is not None
    assert torch.equal(alone, threaded)


def test_nan_stays_in_its_sequence() -> None:
    states = STATES.clone()
    states[1] = torch.nan
    answer, clean = pool(states, MASK, mean=True), pool(STATES, MASK, mean=True)
    assert answer is not None
    assert clean is not None
    assert answer[1].isnan().all()
    assert torch.equal(answer[[0, 2, 3]], clean[[0, 2, 3]])


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8)], ids=str)
def test_empty_batches(shape: tuple[int, ...]) -> None:
    answer = pool(torch.zeros(shape), None, mean=True)
    assert answer is not None
    assert answer.shape == (shape[0], 8)
    assert not answer.any()


def test_a_mask_that_weights_tokens_is_left_to_torch() -> None:
    assert pool(STATES, 2 * MASK, mean=True) is None


def test_refusals() -> None:
    with pytest.raises(
        ValueError, match=r"must be \[batch, tokens, hidden\] of torch.float32 or torch.bfloat16 on cpu"
    ):
        pool(STATES.double(), None, mean=True)
    with pytest.raises(ValueError, match=r"must be \[4, 9\] of torch.bool or torch.int64"):
        pool(STATES, MASK.float(), mean=True)
