"""Six sparse feed-forward blocks against DeepSparse, its own ground: `python -m benchmarks.ffn_stack
[--out FILE]`.

768 -> 3072 -> 768 with ReLU after every layer, six times over; no attention, no layer norm. A stack,
because an engine that changes the layout of activations at its borders would lose unfairly on one layer.
DeepSparse runs in a worker process, its rounds interleaved with ours.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

from benchmarks.goals import goal
from benchmarks.layers import packed_layer
from sparsebert.bench import environment, gate, record
from sparsebert.bench.providers import PROVIDERS
from sparsebert.bench.providers.deepsparse import VARIABLE, DeepSparseWorker
from sparsebert.bench.providers.onednn import PrepackedLinear
from sparsebert.bench.runner import quantiles
from sparsebert.bench.timer import alternate, on_wall
from sparsebert.report.tables import goal_tables
from sparsebert_kernels import ops

BLOCKS = 6
TOKENS = (128, 512)
SPARSITIES = (0.8, 0.9, 0.95)
MUST, AIM = 1.28, 1.45


@torch.inference_mode()
def measure(sparsity: float, tokens: int, budget: float, machine: dict[str, Any]) -> list[record.Record]:
    """A "stack" record, and the goal it is held to at 90 %."""
    shapes = [(3072, 768), (768, 3072)] * BLOCKS
    layers = [
        packed_layer(shape, sparsity, "element", torch.float32, seed) for seed, shape in enumerate(shapes)
    ]
    for linear, packed in layers:
        # Keep activations of the size they began with: a fan-in of a tenth shrinks them at every layer.
        scale = (2 / (linear.weight.square().sum() / linear.out_features)).sqrt()
        linear.weight.mul_(scale)
        packed.values.mul_(scale)
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
            h = torch.ops.mkldnn._linear_pointwise(h, layer.packed, layer.bias, "relu", [], "")
        return h

    with tempfile.TemporaryDirectory() as folder:
        worker = _worker(dense, x, Path(folder))
        try:
            worker.ask(answers=f"{folder}/answers.npz")
            with numpy.load(f"{folder}/answers.npz") as arrays:
                theirs = torch.from_numpy(arrays["0"])
            reference, everywhere = [dense(x)], [torch.ones(1, tokens)]
            answers = {"sparse": ours(), "onednn": onednn(), "deepsparse": theirs}
            gate.require(
                [
                    gate.compare(name, [answer], reference, everywhere, precision="float32")
                    for name, answer in answers.items()
                ]
            )
            runs = {
                "onednn": on_wall(onednn),
                "sparse": on_wall(ours),
                "deepsparse": lambda: float(worker.ask(run=True)["seconds"]),
            }
            timings = alternate(runs, budget=budget, min_rounds=9, in_worker=["deepsparse"])
        finally:
            worker.close()
    busy = bool(timings.busy())
    against = timings.ratio("deepsparse", "sparse")
    rows = [
        record.stamp(
            "stack",
            {
                "environment": machine,
                "sparsity": sparsity,
                "tokens": tokens,
                "threads": 1,
                "rounds": timings.rounds,
                "ratio": {
                    "deepsparse": quantiles(against),
                    "onednn": quantiles(timings.ratio("onednn", "sparse")),
                },
                "latency_ms": {name: quantiles(timings.latency(name), 1e3) for name in runs},
                "busy": busy,
                "busy_reasons": list(timings.busy()),
            },
        )
    ]
    if sparsity == 0.9:
        name = f"FFN stack, {tokens} tokens, element 90 %, against DeepSparse 1.8.0"
        rows.append(goal(name, against.median, must=MUST, aim=AIM, unit="x", environment=machine, busy=busy))
    return rows


def _worker(dense: nn.Module, x: torch.Tensor, folder: Path) -> DeepSparseWorker:
    torch.onnx.export(
        dense,
        (x,),
        f"{folder}/stack.onnx",
        input_names=["x"],
        output_names=["y"],
        opset_version=14,
        dynamo=False,
    )
    numpy.savez(folder / "inputs.npz", **{"0_x": x.numpy()})  # type: ignore[arg-type]
    worker = DeepSparseWorker(os.environ[VARIABLE])
    worker.ask(load=f"{folder}/stack.onnx", inputs=f"{folder}/inputs.npz", batches=1, names=["x"], threads=1)
    return worker


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="append the records to this file")
    parser.add_argument("--budget", type=float, default=8.0, help="seconds of timed rounds a stack")
    options = parser.parse_args()
    lack = PROVIDERS["deepsparse"]().available()
    if lack:
        print(f"no DeepSparse to compare with: {lack}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    machine = environment.detect().record()
    rows: list[record.Record] = []
    for tokens in TOKENS:
        for sparsity in SPARSITIES:
            rows += measure(sparsity, tokens, options.budget, machine)
            row = next(row for row in reversed(rows) if row["kind"] == "stack")
            ratios = {name: f"{ratio['median']:.2f}x" for name, ratio in row["ratio"].items()}
            print(f"{tokens} tokens, {sparsity:.0%}: against {ratios}", file=sys.stderr)
    if options.out:
        record.append(options.out, rows)
    print("\n\n".join(table.markdown() for table in goal_tables(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
