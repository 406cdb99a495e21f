"""Batches of ragged lengths on a GPU: whole models called from Python, plain and through CUDA graphs."""

from __future__ import annotations

import contextlib
import copy
import functools
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.comparison import error_limit, timing_fields
from benchmarks.gpu.device import Device
from benchmarks.gpu.models import in_one_row
from sparsebert.bench.output_check import OutputCheck, require
from sparsebert.bench.timer import alternate, on_cuda, on_wall
from sparsebert.bench.workload import Workload
from sparsebert.cuda_graphs import graphs
from sparsebert.cuda_graphs.runner import GraphRunner
from sparsebert.fuse import fuse_
from sparsebert.nn.packed_layers import on_cpu
from sparsebert.pruning import prune
from sparsebert.sparsify import sparsify_

# Batches of sentences; their lengths are about those of English sentences in word pieces.
REQUESTS, MEDIAN_LENGTH, LENGTH_SPREAD = 16, 27, 0.6
MIN_LENGTH, MAX_LENGTH = 4, 128


def measure_requests(
    device: Device, *, model: str, batch: int, block: Sequence[int], sparsity: float
) -> dict[str, Any]:
    """Measure calls from Python with batches of ragged lengths, plain and through ``sparsebert.graphs``.

    Launches count here, and so does what a runner does besides: checks, padding, copies. The models in graphs
    are fused, dense and sparse, and get padded batches or the same sequences in one row. The main baseline is
    the dense model in the same graphs, so that the gain of sparsity stands apart from theirs.
    """
    workload = Workload(model, batch, _lengths(batch, device.dry_run))
    dense: Any = workload.load_model()
    ticket = prune(dense, "random", sparsity=sparsity, granularity="block", block_size=tuple(block))
    ticket.apply_(dense)
    dense = dense.to(device.device, device.dtype).requires_grad_(False)
    padded = [
        {name: tensor.to(device.device) for name, tensor in inputs.items()}
        for inputs in workload.make_batches(dense.config.vocab_size)
    ]
    rows = [in_one_row(inputs["input_ids"], inputs["attention_mask"].bool()) for inputs in padded]
    tokens = workload.padded_tokens // len(padded)
    exact = _hidden_states(copy.deepcopy(dense).double(), padded)
    with on_cpu() if device.dry_run else contextlib.nullcontext():
        fused = fuse_(copy.deepcopy(dense))
        sparse = sparsify_(copy.deepcopy(dense), ticket, format="panel", tokens=tokens, fuse=True)
        sides: dict[str, tuple[Callable[..., Any], list[dict[str, Any]]]] = {
            "dense": (dense, padded),
            "fused dense": (fused, padded),
            "fused sparse": (sparse, padded),
            "graphs dense": (graphs(fused), padded),
            "graphs sparse": (graphs(sparse), padded),
            "graphs dense, one row": (graphs(fused), rows),
            "graphs sparse, one row": (graphs(sparse), rows),
        }
        return {
            **_compared(device, sides, exact),
            "batches": len(padded),
            "tokens": workload.real_tokens,
            "padded_tokens": workload.padded_tokens,
        }


def _compared(
    device: Device,
    sides: dict[str, tuple[Callable[..., Any], list[dict[str, Any]]]],
    exact: Sequence[Tensor],
) -> dict[str, Any]:
    """Return the fields of a record: the errors and times of all sides."""
    checks: dict[str, OutputCheck] = {}
    for name, (call, batches) in sides.items():
        with warnings.catch_warnings():
            # A call without a graph, or not fused, would be timed in the name of one.
            for message in ("the model runs without a CUDA graph", ".*captured again", "the fused encoder"):
                warnings.filterwarnings("error", message=message)
            answers = _hidden_states(call, batches)
        error = max(
            ((answer - true).abs().max() / true.abs().max()).item()
            for answer, true in zip(answers, exact, strict=True)
        )
        checks[name] = OutputCheck(name, error, error_limit(checks, "dense", device.dry_run))
        require([checks[name]])

    @torch.inference_mode()
    def serve(call: Callable[..., Any], batches: list[dict[str, Any]]) -> None:
        for inputs in batches:
            call(**inputs)

    timed = on_wall if device.dry_run else on_cuda
    runs = {name: timed(functools.partial(serve, *side)) for name, side in sides.items()}
    timings = alternate(runs, budget=0 if device.dry_run else 2.0, min_rounds=1 if device.dry_run else 7)
    return {
        **timing_fields(timings, checks, "graphs dense, one row", calls=len(exact)),
        "side": "graphs sparse, one row",
        "buckets": {
            name: call.captured for name, (call, _) in sides.items() if isinstance(call, GraphRunner)
        },
    }


def _lengths(batch: int, dry_run: bool) -> tuple[int, ...]:
    """Return the lengths of the sequences of all batches."""
    draw = random.Random(0)
    count, longest = (2, 12) if dry_run else (REQUESTS, MAX_LENGTH)
    drawn = (MEDIAN_LENGTH * draw.lognormvariate(0, LENGTH_SPREAD) for _ in range(count * batch))
    return tuple(min(longest, max(MIN_LENGTH, round(length))) for length in drawn)


@torch.inference_mode()
def _hidden_states(call: Callable[..., Any], batches: Sequence[dict[str, Any]]) -> list[Tensor]:
    """Return the last hidden states at the tokens of each batch, [tokens, hidden] in float64."""
    found = []
    for inputs in batches:
        states = call(**inputs).last_hidden_state
        mask = inputs.get("attention_mask")
        found.append((states[0] if mask is None else states[mask.bool()]).double())
    return found
