"""Whole models on a GPU: Hugging Face's BERT, dense and with sparse layers, under CUDA graphs."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.comparison import (
    MAX_BASELINE_ERROR,
    SLACK,
    TIMES_TORCH,
    TIMES_TORCH_DRY,
    Side,
    compare,
)
from benchmarks.gpu.device import Device, Work
from sparsebert.bench.memory import weight_bytes
from sparsebert.bench.output_check import OutputCheck, require
from sparsebert.bench.runner import quantiles
from sparsebert.bench.timer import alternate, on_cuda, on_wall
from sparsebert.bench.workload import Workload
from sparsebert.cuda_graphs import graphs
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.pruning import prune
from sparsebert.sparsify import sparsify_
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.timing import MAX_SPREAD

LENGTH = 128
# Batches of sentences; their lengths are those of English sentences in word pieces, about.
REQUESTS, MEDIAN_LENGTH, LENGTH_SPREAD, MIN_LENGTH = 16, 27, 0.6, 4


class PrunedBert:
    """A BERT with random weights whose encoder matrices are pruned, and batches for it."""

    def __init__(
        self,
        device: Device,
        model: str,
        batch: int,
        block: Sequence[int],
        sparsity: float,
        lengths: tuple[int, ...] = (),
    ) -> None:
        self.device = device
        length = 8 if device.dry_run else LENGTH
        self.workload = Workload(model, batch, lengths or (length,) * batch)
        self.tokens = batch * length
        dense = self.workload.load_model()
        self.ticket: Ticket = prune(
            dense, "random", sparsity=sparsity, granularity="block", block_size=tuple(block)
        )
        self.ticket.apply_(dense)
        self.dense = dense.to(device.device, device.dtype).requires_grad_(False)
        self.batches = [
            {name: tensor.to(device.device) for name, tensor in batch.items()}
            for batch in self.workload.make_batches(dense.config.vocab_size)
        ]
        # A mask would keep attention from its fastest kernel, and without lengths there is no padding.
        self.ids = self.batches[0]["input_ids"]

    def sparse(self, format: str, trainable: bool = False) -> nn.Module:
        model = copy.deepcopy(self.dense)
        return sparsify_(model, self.ticket, format=format, tokens=self.tokens, trainable=trainable)

    def work(self, model: Any) -> Work:
        return torch.inference_mode()(lambda: model(input_ids=self.ids).last_hidden_state)

    def exact(self) -> Tensor:
        with torch.inference_mode():
            return copy.deepcopy(self.dense).double()(input_ids=self.ids).last_hidden_state


def measure_model(
    device: Device, *, model: str, batch: int, block: Sequence[int], sparsity: float
) -> dict[str, Any]:
    """Measure the sparse model against the dense one, both in eager mode and with torch.compile."""
    pruned = PrunedBert(device, model, batch, block, sparsity)
    sparse = pruned.sparse("panel")

    def compiled(module: nn.Module) -> Work:
        return pruned.work(device.compile(module, dynamic=False))

    sides = {
        "dense": Side(lambda: pruned.work(pruned.dense), required=True),
        "sparse": Side(lambda: pruned.work(sparse), required=True),
        "torch.compile dense": Side(lambda: compiled(pruned.dense)),
        "torch.compile sparse": Side(lambda: compiled(sparse)),
        "plan": Side(lambda: pruned.work(pruned.sparse("auto"))),
    }
    fields = compare(device, sides, [pruned.exact()], baseline="dense", budget=2.0)
    against = "torch.compile dense"
    ours = [name for name in ("sparse", "torch.compile sparse") if name in fields["us"]]
    best = min(ours, key=lambda name: fields["us"][name]["median"])
    speedup = (
        fields["us"][against]["median"] / fields["us"][best]["median"] if against in fields["us"] else None
    )
    return {
        **fields,
        "tokens": pruned.tokens,
        "length": pruned.tokens // batch,
        "side": best,
        "speedup": speedup,
        "samples_per_s": batch / fields["us"][best]["median"] * 1e6,
        **_weights(pruned, sparse),
    }


def measure_requests(
    device: Device, *, model: str, batch: int, block: Sequence[int], sparsity: float
) -> dict[str, Any]:
    """Measure calls from Python with batches of ragged lengths, plain and through ``sparsebert.graphs``.

    Launches count here, and so does what a runner does besides: checks, padding, copies. The main baseline is
    the dense model in graphs of the same buckets, so that the gain of sparsity stands apart from theirs.
    """
    pruned = PrunedBert(device, model, batch, block, sparsity, _lengths(batch, device.dry_run))
    sparse = pruned.sparse("panel")
    sides: dict[str, Callable[..., Any]] = {
        "dense": pruned.dense,
        "sparse": sparse,
        "graphs dense": graphs(pruned.dense),
        "graphs sparse": graphs(sparse),
    }
    exact = _hidden_states(copy.deepcopy(pruned.dense).double(), pruned.batches)
    checks: dict[str, OutputCheck] = {}
    for name, call in sides.items():
        with warnings.catch_warnings():
            # A call without a graph would be timed in the name of one.
            warnings.filterwarnings("error", message="the model runs without a CUDA graph|.*captured again")
            answers = _hidden_states(call, pruned.batches)
        error = max(
            ((answer - true).abs().max() / true.abs().max()).item()
            for answer, true in zip(answers, exact, strict=True)
        )
        times = TIMES_TORCH_DRY if device.dry_run else TIMES_TORCH
        limit = times * checks["dense"].error + SLACK if checks else MAX_BASELINE_ERROR
        checks[name] = OutputCheck(name, error, limit)
        require([checks[name]])

    @torch.inference_mode()
    def serve(call: Callable[..., Any]) -> None:
        for inputs in pruned.batches:
            call(**inputs)

    timed = on_wall if device.dry_run else on_cuda
    runs = {name: timed(lambda call=call: serve(call)) for name, call in sides.items()}
    timings = alternate(runs, budget=0 if device.dry_run else 2.0, min_rounds=1 if device.dry_run else 7)
    baseline, side = "graphs dense", "graphs sparse"
    spread = {name: timings.latency(name).spread for name in runs}
    return {
        "baseline": baseline,
        "side": side,
        "us": {name: quantiles(timings.latency(name), 1e6 / len(pruned.batches)) for name in runs},
        "ratio": {name: quantiles(timings.ratio(baseline, name)) for name in runs if name != baseline},
        "gate": {name: check.record() for name, check in checks.items()},
        "rounds": timings.rounds,
        "busy": max(spread.values()) > MAX_SPREAD,
        "spread": spread,
        "batches": len(pruned.batches),
        "tokens": pruned.workload.real_tokens,
        "padded_tokens": pruned.workload.padded_tokens,
        "buckets": [list(shape) for shape in sides[side].captured],  # type: ignore[attr-defined]
        **_weights(pruned, sparse),
    }


def _lengths(batch: int, dry_run: bool) -> tuple[int, ...]:
    """Return the lengths of the sequences of all batches."""
    draw = random.Random(0)
    count, longest = (2, 12) if dry_run else (REQUESTS, LENGTH)
    drawn = (MEDIAN_LENGTH * draw.lognormvariate(0, LENGTH_SPREAD) for _ in range(count * batch))
    return tuple(min(longest, max(MIN_LENGTH, round(length))) for length in drawn)


@torch.inference_mode()
def _hidden_states(call: Callable[..., Any], batches: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """Return the last hidden states at the tokens of each batch, [tokens, hidden] in float64."""
    kept = [inputs["attention_mask"].bool() for inputs in batches]
    return [
        call(**inputs).last_hidden_state[mask].double() for inputs, mask in zip(batches, kept, strict=True)
    ]


def measure_memory(device: Device, *, model: str, batch: int) -> dict[str, Any]:
    """Measure bytes of weights and the peaks of a forward pass and a training step, dense and sparse."""
    pruned = PrunedBert(device, model, batch, (64, 64), 0.9)
    sides: dict[str, Any] = {}
    makers = {
        "dense": lambda trainable: copy.deepcopy(pruned.dense),
        "sparse": lambda trainable: pruned.sparse("panel", trainable=trainable),
    }
    weights = _weights(pruned, pruned.sparse("panel"))
    for name, make in makers.items():
        held, forward = device.peak_bytes(pruned.work(make(False)))
        trained = make(True)
        for parameter in trained.parameters():
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-5)

        def step(trained: Any = trained, optimizer: Any = optimizer) -> None:
            trained(input_ids=pruned.ids).last_hidden_state.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        step()  # allocates the optimizer's state
        ready, training = device.peak_bytes(step)
        sides[name] = {
            "held_before_forward": held,
            "forward_peak": forward,
            "activations": forward - held,
            "held_before_step": ready,
            "step_peak": training,
            "gradients_and_activations": training - ready,
            "parameters": sum(parameter.nbytes for parameter in trained.parameters()),
        }
        del trained, optimizer, step
    return {**weights, "sides": sides}


def _weights(pruned: PrunedBert, sparse: nn.Module) -> dict[str, Any]:
    layers = [module for module in sparse.modules() if isinstance(module, SparseLinear)]
    dense = sum(mask.numel() * pruned.device.dtype.itemsize for mask in pruned.ticket.masks.values())
    return {
        "weight_bytes": sum(map(weight_bytes, layers)),
        "dense_weight_bytes": dense,
        "formats": sorted({layer.format for layer in layers}),
    }
