"""Real CUDA graphs, on a GPU."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsebert import fuse_, graphs, prune, sparsify_
from tests.cuda_graphs.models import FAMILIES, batch, call, close, let_it_wait, make
from tests.cuda_graphs.test_packed import row

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("error:the model runs without a CUDA graph")]
TRANSFORMERS = pytest.importorskip("transformers")
WIDE = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 256, "num_hidden_layers": 2}


def on_gpu(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cuda() for name, tensor in inputs.items()}


def wide(sparse: bool) -> Any:
    torch.manual_seed(0)
    model = TRANSFORMERS.BertModel(TRANSFORMERS.BertConfig(**WIDE, vocab_size=50)).eval()
    ticket = prune(model, "magnitude", sparsity=0.75, granularity="block", block_size=(64, 64))
    ticket.apply_(model)
    model = model.bfloat16().cuda()
    return sparsify_(model, ticket, format="panel", fuse=False) if sparse else model


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_replays(name: str) -> None:
    model = make(name).cuda()
    run = graphs(model, [(4, 24)])
    for seed, (rows, length) in enumerate([(4, 24), (3, 7), (1, 23), (4, 24)]):
        inputs = on_gpu(batch(rows, length, seed=seed))
        assert close(call(run, inputs), call(model, inputs), 1e-3)
    assert run.captured == ((4, 24),)


@pytest.mark.parametrize("sparse", [False, True])
def test_ragged_batches_of_a_dense_and_a_sparse_model(sparse: bool) -> None:
    model = wide(sparse)
    run = graphs(model, max_graphs=3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="bucket .* is captured again")
        for seed in range(24):
            inputs = on_gpu(batch(1 + seed % 9, 5 + 7 * seed, seed=seed, mask=seed % 2 == 0))
            assert close(call(run, inputs), call(model, inputs), 0.1)
    assert len(run.captured) == 3
    assert run.nbytes > 0


@pytest.mark.parametrize("sparse", [False, True])
def test_padded_batches_and_rows_of_fused_models(sparse: bool) -> None:
    model = wide(sparse)
    fuse_(model)
    run = graphs(model)
    for seed in range(8):
        inputs = on_gpu(batch(1 + seed, 5 + 7 * seed, seed=seed))
        assert close(call(run, inputs), call(model, inputs), 0.1)
        lengths = [3 + seed, 20, 1, 9 * seed + 1]
        in_row = {
            name: value.cuda() if isinstance(value, Tensor) else value
            for name, value in row(lengths, seed).items()
        }
        assert close(call(run, in_row), call(model, in_row), 0.1)


def test_a_pool_of_few_bytes_runs_without_graphs() -> None:
    model = wide(sparse=True)
    run = graphs(model, [(4, 24)], max_bytes=1)
    inputs = on_gpu(batch(4, 24))
    with pytest.warns(UserWarning, match="max_bytes=1$"):
        assert close(call(run, inputs), call(model, inputs), 0.1)


def test_a_capture_that_waits_fails_and_leaves_cuda_usable() -> None:
    model = make("BertModel").cuda()
    let_it_wait(model.encoder.layer[0])
    run = graphs(model, [(4, 24)])
    inputs = on_gpu(batch(4, 24))
    stream = torch.cuda.current_stream()
    with pytest.warns(UserWarning, match="bucket 4 x 24 cannot be captured"):
        assert close(call(run, inputs), call(model, inputs), 1e-3)
    assert torch.cuda.current_stream() == stream
    del model.encoder.layer[0].forward
    again = graphs(model, [(4, 24)])
    assert close(call(again, inputs), call(model, inputs), 1e-3)


def test_a_model_moved_away_and_back() -> None:
    model = make("BertModel").cuda()
    run = graphs(model, [(4, 24)])
    inputs = batch(3, 20)
    expected = call(run, on_gpu(inputs))
    model.cpu()
    with pytest.warns(UserWarning, match="the model was moved from cuda:0 to cpu after the capture"):
        assert close(call(run, inputs), [each.cpu() for each in expected], 1e-3)
    model.cuda()
    with pytest.warns(UserWarning, match="the model was moved from cpu to cuda:0 after the capture"):
        assert close(call(run, on_gpu(inputs)), expected, 1e-3)


def test_threads_on_streams_of_their_own() -> None:
    model = wide(sparse=True)
    run = graphs(model, [(4, 24), (8, 64)])
    batches = [on_gpu(batch(1 + n % 8, 5 + n, seed=n)) for n in range(32)]
    expected = [call(model, inputs) for inputs in batches]
    answers: dict[int, list[Tensor]] = {}

    def work(first: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for number in range(first, 32, 4):
                answers[number] = call(run, batches[number])
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(close(answers[number], expected[number], 0.1) for number in range(32))
