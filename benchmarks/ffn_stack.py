"""Six sparse feed-forward blocks against DeepSparse: `python -m benchmarks.ffn_stack [--out FILE]`.

Each block is 768 -> 3072 -> 768 with ReLU after every layer, without attention and layer norm. A whole stack
is timed because DeepSparse changes the layout of activations on entry and exit, which would be unfair to it
on a single layer. DeepSparse runs in a worker process; its rounds are interleaved with ours.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

from benchmarks.goals import goal
from benchmarks.layers import packed_layer
from benchmarks.output import add_out_option, append, show
from sparsebert import results
from sparsebert.bench import environment, output_check
from sparsebert.bench.onnx_export import export_module
from sparsebert.bench.providers import BACKENDS
from sparsebert.bench.providers.deepsparse import VARIABLE, DeepSparseWorker
from sparsebert.bench.providers.onednn import PrepackedLinear
from sparsebert.bench.runner import quantiles
from sparsebert.bench.timer import Run, alternate, on_wall
from sparsebert.report.layer_tables import goal_tables, stack_tables
from sparsebert_kernels import ops

BLOCKS = 6
TOKENS = (128, 512)
SPARSITIES = (0.8, 0.9, 0.95)
MUST, AIM = 1.28, 1.45


@torch.inference_mode()
def measure(sparsity: float, tokens: int, budget: float, machine: dict[str, Any]) -> list[results.Record]:
    """Return a "stack" record and, at 90 % with DeepSparse available, its goal record."""
    layers = stack(sparsity)
    dense = nn.Sequential(*(module for linear, _ in layers for module in (linear, nn.ReLU())))
    prepacked = [PrepackedLinear(linear, tokens) for linear, _ in layers]
    x = torch.randn(1, tokens, 768, generator=torch.Generator().manual_seed(0))

    def ours() -> torch.Tensor:
        h = x
        for linear, packed in layers:
            h = ops.linear(h, packed, linear.bias, activation="relu")
        return h

    def onednn() -> torch.Tensor:
        h = x
        for layer in prepacked:
            h = layer(h, activation="relu")
        return h

    runs = {"onednn": on_wall(onednn), "sparse": on_wall(ours)}
    answers = {"onednn": onednn, "sparse": ours}
    with contextlib.ExitStack() as held:
        if BACKENDS["deepsparse"]().available() is None:
            run, answer = held.enter_context(_deepsparse(dense, x))
            runs["deepsparse"], answers["deepsparse"] = run, answer
        reference, everywhere = [dense(x)], [torch.ones(1, tokens)]
        output_check.require(
            [
                output_check.compare(name, [answer()], reference, everywhere, precision="float32")
                for name, answer in answers.items()
            ]
        )
        timings = alternate(runs, budget=budget, min_rounds=9, in_worker=runs.keys() - {"onednn", "sparse"})
    busy = bool(timings.busy())
    ratios = {name: timings.ratio(name, "sparse") for name in runs if name != "sparse"}
    fields = {
        "environment": machine,
        "sparsity": sparsity,
        "tokens": tokens,
        "threads": 1,
        "rounds": timings.rounds,
        "ratio": {name: quantiles(ratio) for name, ratio in ratios.items()},
        "latency_ms": {name: quantiles(timings.latency(name), 1e3) for name in runs},
        "busy": busy,
        "busy_reasons": list(timings.busy()),
    }
    rows = [results.stamp("stack", fields)]
    if sparsity == 0.9 and "deepsparse" in ratios:
        name = f"FFN stack, {tokens} tokens, element 90 %, against DeepSparse 1.8.0"
        value = ratios["deepsparse"].median
        rows.append(goal(name, value, must=MUST, aim=AIM, unit="x", environment=machine, busy=busy))
    return rows


def stack(sparsity: float) -> list[tuple[nn.Linear, Any]]:
    """Return the layers, masked dense and packed, scaled to preserve the magnitude of activations."""
    shapes = [(3072, 768), (768, 3072)] * BLOCKS
    layers = [
        packed_layer(shape, sparsity, "element", torch.float32, seed) for seed, shape in enumerate(shapes)
    ]
    for linear, packed in layers:
        scale = (2 * linear.out_features / linear.weight.square().sum()).sqrt()
        linear.weight.mul_(scale)
        packed.values.mul_(scale)
    return layers


@contextlib.contextmanager
def _deepsparse(dense: nn.Module, x: torch.Tensor) -> Iterator[tuple[Run, Callable[[], torch.Tensor]]]:
    """Start the engine in a worker; yield its run and its output function."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, written = f"{folder}/inputs.npz", f"{folder}/answers.npz"
        graph = str(export_module(dense, {"x": x}, Path(folder) / "stack.onnx"))
        numpy.savez(inputs, **{"0_x": x.numpy()})  # type: ignore[arg-type]
        worker = DeepSparseWorker(os.environ[VARIABLE])

        def answer() -> torch.Tensor:
            worker.ask(answers=written)
            with numpy.load(written) as arrays:
                return torch.from_numpy(arrays["0"])

        try:
            worker.ask(load=graph, inputs=inputs, batches=1, names=["x"], threads=1)
            yield lambda: float(worker.ask(run=True)["seconds"]), answer
        finally:
            worker.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_out_option(parser)
    parser.add_argument("--budget", type=float, default=8.0, help="seconds of timed rounds for each stack")
    options = parser.parse_args()
    reason = BACKENDS["deepsparse"]().available()
    if reason:
        print(f"against oneDNN only, without DeepSparse: {reason}", file=sys.stderr)
    torch.set_num_threads(1)
    machine = environment.detect().record()
    rows: list[results.Record] = []
    for tokens in TOKENS:
        for sparsity in SPARSITIES:
            rows += measure(sparsity, tokens, options.budget, machine)
    append(options.out, rows)
    show([*stack_tables(rows), *goal_tables(rows)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
