"""CUDA graphs, captured and replayed on CPU tensors by a fake torch.cuda that also fails on demand."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparsebert import graphs, prune, sparsify_
from tests.cuda_graphs.fake_cuda import FakeCuda
from tests.cuda_graphs.models import FAMILIES, batch, call, close, let_it_wait, make

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines")


def quietly(run: Any, inputs: dict[str, Any], **options: Any) -> list[torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call(run, inputs, **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_graph_replays_what_the_model_computes_and_never_waits(name: str, cuda: FakeCuda) -> None:
    """The fake fails where an operator would wait for the GPU, and replays no Python."""
    model = make(name)
    run = graphs(model, [(4, 24)])
    for seed, (rows, length) in enumerate([(4, 24), (3, 7), (1, 23), (4, 24)]):
        inputs = batch(rows, length, seed=seed)
        assert close(quietly(run, inputs), call(model, inputs))
    assert cuda.log.count("replay on the main stream") == 4
    assert run.captured == ((4, 24),)


@pytest.mark.parametrize("format", ["panel", "bitmap", "element"])
def test_a_sparse_model_replays_too(format: str, cuda: FakeCuda) -> None:
    model = make("BertModel")
    granularity = {"granularity": "block", "block_size": (8, 8)} if format == "panel" else {}
    ticket = prune(model, "magnitude", sparsity=0.5, **granularity)
    sparsify_(model, ticket, format=format, fuse=False)
    run = graphs(model)
    for seed in range(3):
        inputs = batch(3, 20, seed=seed)
        assert close(quietly(run, inputs), call(model, inputs))
    assert run.captured == ((3, 24),)


def test_warm_up_and_capture_run_on_a_stream_of_their_own(cuda: FakeCuda) -> None:
    run = graphs(make("BertModel"), [(2, 16)])
    quietly(run, batch(2, 9))
    assert cuda.log == [
        "stream 1 waits for the main stream",
        "the main stream waits for stream 1",
        "capture on stream 1, pool 1, thread_local",
        "replay on the main stream",
    ]
    assert cuda.current is cuda.main


def test_graphs_share_a_pool_and_run_one_after_the_other_on_any_streams(cuda: FakeCuda) -> None:
    run = graphs(make("BertModel"), [(2, 16), (2, 32)])
    quietly(run, batch(2, 9))
    quietly(run, batch(2, 30))
    assert [line for line in cuda.log if "pool" in line] == ["capture on stream 1, pool 1, thread_local"] * 2
    other = torch.cuda.Stream()
    cuda.log.clear()
    with cuda.stream(other):
        quietly(run, batch(2, 9))
    quietly(run, batch(2, 9))
    assert cuda.log == [
        "stream 2 waits for the last call, on the main stream",
        "replay on stream 2",
        "the main stream waits for the last call, on stream 2",
        "replay on the main stream",
    ]


class Launches(TorchDispatchMode):
    """The operators outside of graphs, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(function._schema.name.partition("::")[2])
        return function(*args, **(kwargs or {}))


def test_a_repeated_call_launches_the_graph_and_one_copy_for_each_input_and_output(cuda: FakeCuda) -> None:
    run = graphs(make("BertModel"), [(2, 16)])
    inputs = batch(2, 9)
    quietly(run, inputs)
    with Launches() as launches:
        quietly(run, inputs)
    views = {"slice", "narrow"}
    assert [name for name in launches.names if name not in views] == ["copy_", "copy_", "clone", "clone"]


def test_the_least_recently_used_graph_is_dropped(cuda: FakeCuda) -> None:
    model = make("BertModel")
    run = graphs(model, [(1, 16), (2, 16), (3, 16)], max_graphs=2)
    quietly(run, batch(1, 16))
    quietly(run, batch(2, 16))
    quietly(run, batch(1, 16))
    assert run.captured == ((2, 16), (1, 16))
    cuda.log.clear()
    quietly(run, batch(3, 16))
    assert run.captured == ((1, 16), (3, 16))
    assert cuda.log[0] == "the host waits for the last call"
    with pytest.warns(UserWarning, match="^bucket 2 x 16 is captured again: .* max_graphs=2 graphs, or"):
        call(run, batch(2, 16))
    inputs = batch(1, 16, seed=3)
    assert close(quietly(run, inputs), call(model, inputs))


def test_a_bucket_without_memory_runs_without_a_graph(cuda: FakeCuda) -> None:
    model = make("BertModel")
    run = graphs(model, [(2, 16)])
    cuda.failures["capture"] = [OUT_OF_MEMORY]
    inputs = batch(2, 9)
    message = "^the model runs without a CUDA graph: bucket 2 x 16 does not fit into the memory of cpu$"
    with pytest.warns(UserWarning, match=message):
        assert close(call(run, inputs), call(model, inputs))
    assert cuda.current is cuda.main, "a failed capture leaves its stream current"
    cuda.log.clear()
    assert close(quietly(run, inputs), call(model, inputs))
    assert not cuda.log, "a bucket that failed is not tried again"


def test_a_comparison_without_memory_is_no_error(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("BertModel")
    run = graphs(model, [(2, 16)])
    inputs = batch(2, 9)
    expected = call(model, inputs)
    plain, failures = model.forward, [OUT_OF_MEMORY]

    def forward(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].shape == (2, 9) and failures:
            raise failures.pop()
        return plain(*args, **kwargs)

    monkeypatch.setattr(model, "forward", forward)
    with pytest.warns(UserWarning, match="bucket 2 x 16 does not fit into the memory of cpu$"):
        assert close(call(run, inputs), expected)


@pytest.mark.parametrize("where", ["warm-up", "capture"])
def test_a_bucket_that_needs_the_memory_of_others_gets_it(where: str, cuda: FakeCuda) -> None:
    model = make("BertModel")
    run = graphs(model, [(2, 16), (4, 32)])
    quietly(run, batch(2, 9))
    cuda.failures[where] = [OUT_OF_MEMORY]
    inputs = batch(4, 32)
    assert close(quietly(run, inputs), call(model, inputs))
    assert run.captured == ((4, 32),)
    assert cuda.log.count("the host waits for the last call") == 1
    assert run.nbytes == 1000, "in a pool of its own"
    with pytest.warns(UserWarning, match="bucket 2 x 16 is captured again"):
        call(run, batch(2, 9))


def test_the_only_graph_makes_room_in_a_new_pool(cuda: FakeCuda) -> None:
    """torch begins no capture in a pool whose graphs have all been freed, if one of their tensors is left."""
    run = graphs(make("BertModel"), [(1, 16), (2, 16)], max_graphs=1)
    quietly(run, batch(1, 16))
    quietly(run, batch(2, 16))
    assert run.captured == ((2, 16),)
    captures = [line for line in cuda.log if line.startswith("capture")]
    assert captures == [f"capture on stream 1, pool {number}, thread_local" for number in (1, 2)]


def test_a_bucket_after_a_failed_one_is_captured(cuda: FakeCuda) -> None:
    run = graphs(make("BertModel"), [(1, 16), (2, 16), (3, 16)])
    quietly(run, batch(1, 16))
    cuda.failures["capture"] = [RuntimeError("a kernel failed")]
    with pytest.warns(UserWarning, match="bucket 2 x 16 cannot be captured: a kernel failed$"):
        call(run, batch(2, 16))
    quietly(run, batch(3, 16))
    assert run.captured == ((1, 16), (3, 16))
    assert run.nbytes == 3000, "torch keeps the memory of a failed capture"


def test_buckets_without_memory_stay_without_a_graph_and_cost_the_others_nothing(cuda: FakeCuda) -> None:
    run = graphs(make("BertModel"), [(1, 16), (2, 16), (3, 16)], max_bytes=2500)
    cuda.graph_bytes = 3000
    for rows in (2, 3):
        with pytest.warns(UserWarning, match=f"with bucket {rows} x 16, graphs hold 3,000 bytes"):
            call(run, batch(rows, 16))
        assert run.nbytes == 0
    cuda.graph_bytes = 1000
    quietly(run, batch(1, 16))
    cuda.log.clear()
    for rows in (1, 2, 3, 1):
        quietly(run, batch(rows, 16))
    assert run.captured == ((1, 16),)
    assert not any(line.startswith("capture") for line in cuda.log)


def test_a_bucket_without_memory_is_not_tried_again_when_another_has_none_either(cuda: FakeCuda) -> None:
    run = graphs(make("BertModel"), [(1, 16), (2, 16), (3, 16)], max_bytes=2500)
    quietly(run, batch(1, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rows in (2, 1, 3, 1):
            cuda.graph_bytes = 1000 if rows == 1 else 3000
            call(run, batch(rows, 16))
        cuda.log.clear()
        for rows in (2, 1, 3, 1):
            call(run, batch(rows, 16))
    assert run.captured == ((1, 16),)
    assert not any(line.startswith("capture") for line in cuda.log)


def test_the_pool_stays_within_its_bytes(cuda: FakeCuda) -> None:
    run = graphs(make("BertModel"), [(1, 16), (2, 16), (3, 16)], max_bytes=2500)
    quietly(run, batch(1, 16))
    quietly(run, batch(2, 16))
    assert run.nbytes == 2000
    quietly(run, batch(3, 16))
    assert run.captured == ((3, 16),)
    assert run.nbytes == 1000
    cuda.graph_bytes = 3000
    with pytest.warns(UserWarning, match="^bucket|^the model") as caught:
        call(run, batch(1, 16))
    assert [str(each.message) for each in caught] == [
        "bucket 1 x 16 is captured again: these batches need more than max_graphs=16 graphs, or more memory "
        "than there is",
        "the model runs without a CUDA graph: with bucket 1 x 16, graphs hold 3,000 bytes; max_bytes=2,500",
    ]


def test_a_pool_takes_a_quarter_of_the_memory_by_default(cuda: FakeCuda) -> None:
    run = graphs(make("BertModel"), [(1, 16)])
    cuda.graph_bytes = (1 << 30) + 1
    with pytest.warns(UserWarning, match="max_bytes=1,073,741,824$"):
        call(run, batch(1, 16))


def test_an_operator_that_waits_is_named_and_the_plain_path_runs(cuda: FakeCuda) -> None:
    model = make("BertModel")
    let_it_wait(model.encoder.layer[0])
    run = graphs(model, [(2, 16)])
    inputs = batch(2, 9)
    message = "bucket 2 x 16 cannot be captured: CUDA error: operation not permitted when stream is capturing"
    with pytest.warns(UserWarning, match=re.escape(message)):
        assert close(call(run, inputs), call(model, inputs))
    assert cuda.current is cuda.main
    assert run.captured == ()


def test_a_capture_that_cannot_end_is_a_failure_too(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("BertModel")
    run = graphs(model, [(2, 16)])
    monkeypatch.setattr(cuda, "pools", {})  # the fake's own failure at the end of the capture
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 9))
    inputs = batch(2, 9)
    with pytest.warns(UserWarning, match="bucket 2 x 16 cannot be captured"):
        assert close(call(run, inputs), call(model, inputs))


def test_weights_changed_after_capture_are_used(cuda: FakeCuda) -> None:
    """Loaded in place, or replaced by packed ones: the graphs are captured again, with one warning each."""
    model = make("BertModel")
    run = graphs(model, [(2, 16)])
    inputs = batch(2, 9)
    before = quietly(run, inputs)
    state = {name: tensor * 0.5 for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    with pytest.warns(
        UserWarning, match="^weights of the model were changed after the capture of CUDA graphs"
    ):
        after = call(run, inputs)
    assert not close(before, after)
    assert close(after, call(model, inputs))
    assert close(quietly(run, inputs), after)
    ticket = prune(model, "magnitude", sparsity=0.5)
    sparsify_(model, ticket, format="element", fuse=False)
    with pytest.warns(UserWarning, match="^modules of the model were replaced after the capture"):
        assert close(call(run, inputs), call(model, inputs))


def test_inside_another_capture_the_model_is_called(cuda: FakeCuda) -> None:
    model = make("BertModel")
    run = graphs(model, [(2, 16)])
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    inputs = batch(2, 9)
    with (
        torch.inference_mode(),
        torch.cuda.graph(
            graph, pool=torch.cuda.graph_pool_handle(), stream=stream, capture_error_mode="global"
        ),
    ):
        run(**inputs)
    assert run.captured == ()
    assert "replay on stream 1" not in cuda.log


def test_clear_waits_for_the_gpu_and_drops_the_pool(cuda: FakeCuda) -> None:
    run = graphs(make("BertModel"), [(2, 16)])
    quietly(run, batch(2, 9))
    run.clear()
    assert (run.captured, run.nbytes) == ((), 0)
    assert cuda.log[-1] == "the host waits for the last call"
    quietly(run, batch(2, 9))
    assert "capture on stream 2, pool 2, thread_local" in cuda.log
