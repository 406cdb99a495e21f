"""Fused models, which run packed on a GPU, in graphs: padded batches, and sequences in one row."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsebert import fuse_, graphs, sparsify_
from sparsebert.cuda_graphs.buckets import Buckets
from sparsebert.nn import packed_model
from tests.cuda_graphs.fake_cuda import FakeCuda
from tests.cuda_graphs.models import batch, call, close
from tests.fuse.packed_models import NAMES, as_on_a_gpu, blocks, made, wide

__all__ = ["as_on_a_gpu"]
pytestmark = [
    pytest.mark.usefixtures("as_on_a_gpu"),
    pytest.mark.filterwarnings("error:the fused encoder"),
    pytest.mark.filterwarnings("error:the model runs without a CUDA graph"),
]


@pytest.fixture(autouse=True)
def _unobserved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake observes operators in a capture, as a tracer would; the driver does not."""
    monkeypatch.setattr(packed_model, "plain_inference", lambda *tensors: True)


def row(lengths: list[int], seed: int = 0, longest: int | None = None) -> dict[str, Any]:
    """Sequences of these lengths in one row."""
    generator = torch.Generator().manual_seed(seed)
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    limit = longest or max(lengths)
    return {
        "input_ids": torch.randint(3, 50, (1, sum(lengths)), generator=generator),
        **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), bounds),
        **dict.fromkeys(("max_length_q", "max_length_k"), limit),
    }


@pytest.mark.parametrize("name", NAMES)
def test_padded_batches_never_wait_in_a_graph(name: str, cuda: FakeCuda) -> None:
    model = fuse_(made(name))
    run = graphs(model, [(4, 24)])
    for seed, (rows, length) in enumerate([(4, 24), (3, 7), (1, 23)]):
        inputs = batch(rows, length, seed=seed)
        assert close(call(run, inputs), call(model, inputs), 2e-5)
    assert cuda.log.count("replay on the main stream") == 3


@pytest.mark.parametrize("sparse", [False, True])
def test_sequences_in_one_row_share_a_bucket(sparse: bool, cuda: FakeCuda) -> None:
    model = wide()
    model = sparsify_(model, blocks(model), format="panel", fuse=True) if sparse else fuse_(model)
    run = graphs(model, [64])
    for seed, lengths in enumerate([[9, 1, 17], [5, 20, 3], [30, 1], [16] * 4, [1], [12, 12, 12]]):
        inputs = row(lengths, seed)
        assert close(call(run, inputs), call(model, inputs), 2e-5), lengths
    # The number of sequences and the longest one are rounded up.
    assert set(run.captured) == {(3, 64), (2, 64), (4, 64), (1, 64)}
    assert cuda.log.count("replay on the main stream") == 6


def test_a_row_gives_what_the_padded_batch_gives(cuda: FakeCuda) -> None:
    model = fuse_(wide())
    run = graphs(model)
    lengths = [9, 4, 17]
    inputs = row(lengths)
    states, pooled = call(run, inputs)
    for number, (start, end) in enumerate(itertools.pairwise(inputs["cu_seq_lens_q"].tolist())):
        alone = call(model, {"input_ids": inputs["input_ids"][:, start:end]})
        assert close([states[:, start:end], pooled[number][None]], alone, 2e-5)
    assert run.captured == ((3, 32),)


def test_what_a_longer_row_left_changes_nothing(cuda: FakeCuda) -> None:
    model = fuse_(wide())
    used, fresh = graphs(model, [64]), graphs(model, [64])
    inputs = row([9, 1, 5], longest=30)
    call(used, row([30, 20, 14]))
    call(used, row([2, 2, 2], longest=30))
    answers: list[list[Tensor]] = [call(run, inputs) for run in (used, fresh)]
    assert all(map(torch.equal, *answers))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"max_length_q": 0}, "sequences in one row need a positive integer max_length_q"),
        (
            {"cu_seq_lens_q": torch.zeros(1, dtype=torch.int32)},
            r"inputs of one row and bounds \[sequences \+ 1\]",
        ),
        ({"attention_mask": torch.ones(1, 15, dtype=torch.long)}, "an attention mask beside the bounds"),
    ],
)
@pytest.mark.filterwarnings("ignore:the fused encoder", "ignore:cpu has no CUDA graphs")
def test_a_row_that_is_no_row_is_the_models_to_refuse(more: dict[str, Any], message: str) -> None:
    run = graphs(fuse_(wide()))
    # The model may refuse it as well.
    with pytest.warns(UserWarning, match=message), contextlib.suppress(ValueError, RuntimeError, IndexError):
        call(run, row([9, 1, 5]) | more)
    assert not run.captured


@pytest.mark.filterwarnings("default:the model runs without a CUDA graph")
def test_a_row_larger_than_each_bucket(cuda: FakeCuda) -> None:
    model = fuse_(wide())
    run = graphs(model, [(2, 8), 10])
    inputs = row([9, 1, 5])
    with pytest.warns(
        UserWarning, match="a row of 15 tokens in 3 sequences is larger than each bucket: 2 x 8, 10"
    ):
        assert close(call(run, inputs), call(model, inputs), 2e-5)


def test_buckets_of_rows() -> None:
    assert Buckets.parse(None).row_for(5, 100) == (6, 128)
    buckets = Buckets.parse([(8, 128), 4096])
    assert buckets.row_for(8, 1024) == (8, 1024)
    assert buckets.row_for(9, 1024) == (12, 4096)
    assert buckets.row_for(1, 4097) is None
