"""Layers in int8: `python -m benchmarks.int8_layers [--quick] [--out FILE]`.

A cell is a weight shape and a number of tokens. Three figures of the 4x1 layer at 90 % count every weight,
zeros included, as two operations (2 M N K / time):

- ``layer``: fp32 in, fp32 out; quantisation, products, dequantisation and bias.
- ``added``: a further layer over the same tokens, as query, key and value are: without the quantisation.
- ``dense``: the same kernels with every column kept.

They run in turn with the 4x1 layer in fp32, prepacked oneDNN in fp32, and oneDNN's int8 layer on tokens that
are int8 already, with one scale for all of them. In its turn, an int8 side is called several times: single
calls would start with the caches that slow dense calls left. Every int8 side must first equal its integers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.goals import goal
from benchmarks.layers import packed_layer
from benchmarks.output import add_out_option, append, show
from sparsebert import results
from sparsebert.bench import environment, output_check
from sparsebert.bench.contention import load_average
from sparsebert.bench.providers.onednn import PrepackedLinear
from sparsebert.bench.runner import quantiles
from sparsebert.bench.timer import alternate, on_wall, repeated
from sparsebert.report.layer_tables import goal_tables, int8_tables
from sparsebert_kernels import formats, ops, quantization
from sparsebert_kernels.cpu import int8
from sparsebert_kernels.formats import VectorInt8

SHAPES = ((768, 3072), (3072, 768), (768, 768))  # (out, in)
TOKENS = (64, 80, 100, 128)
SPARSITY = 0.9
ADDED = 2  # layers that share the tokens of a first one
CALLS = 8  # of an int8 side in its turn
MUST, AIM = 3.5, 4.5  # 10^12 operations a second and core
MUST_DIP, AIM_DIP = 0.10, 0.05


def onednn_int8(weight: Tensor, bias: Tensor, x: Tensor) -> tuple[Callable[[], Tensor], Tensor] | None:
    """Return oneDNN's int8 layer over x and the result that it must have; None if torch lacks it."""
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return None
    rows = quantization.quantize_rows(weight)
    scale = float(x.abs().max() / quantization.LEVELS)
    values = (x / scale).round()
    tokens = (values + 128).to(torch.uint8)
    packed = torch.ops.onednn.qlinear_prepack(rows.values, list(x.shape))
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    arguments = (tokens, scale, 128, packed, rows.scales, zeros, bias, 1.0, 0, torch.float32, "none", [], "")
    exact = values.double() @ rows.values.double().t() * (scale * rows.scales.double()) + bias.double()
    return lambda: torch.ops.onednn.qlinear_pointwise(*arguments), exact


@torch.inference_mode()
def measure(shape: tuple[int, int], tokens: int, budget: float, machine: dict[str, Any]) -> results.Record:
    """Return the record of a cell.

    Raises:
        OutputMismatchError: An output is wrong.
    """
    linear, vector = packed_layer(shape, SPARSITY, "vector", torch.float32)
    weight, bias = linear.weight.detach(), linear.bias.detach()
    x = torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(1))
    sparse = formats.pack(weight, format="vector_int8")
    dense = formats.pack(weight, torch.ones_like(weight, dtype=torch.bool), format="vector_int8")
    assert isinstance(sparse, VectorInt8)
    prepacked = PrepackedLinear(linear, tokens)
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    integers = quantization.integer_linear(quantization.quantize_tokens(x), sparse.quantized(), bias)
    others = [packed_layer(shape, SPARSITY, "vector", torch.float32, seed)[0] for seed in range(1, 1 + ADDED)]
    together = (sparse, *(formats.pack(each.weight, format="vector_int8") for each in others))
    biases = (bias,) * (1 + ADDED)
    sides: dict[str, tuple[Callable[[], Any], Tensor]] = {
        "layer": (lambda: ops.linear(x, sparse, bias), integers),
        "together": (lambda: ops.linear_shared(x, together, biases), integers),
        "dense": (lambda: ops.linear(x, dense, bias), integers),
        "vector_fp32": (lambda: ops.linear(x, vector, bias), exact),
        "onednn_fp32": (lambda: prepacked(x), exact),
    }
    if rival := onednn_int8(weight, bias, x):
        sides["onednn_int8"] = rival
    output_check.require(
        [
            output_check.compare(
                name,
                [(answer[0] if isinstance(answer, tuple) else answer)[None]],
                [reference[None]],
                [torch.ones(1, tokens)],
                precision="float32",
            )
            for name, (side, reference) in sides.items()
            for answer in [side()]
        ]
    )
    runs = {name: on_wall(side) for name, (side, _) in sides.items()}
    runs |= {name: repeated(runs[name], CALLS) for name in ("layer", "together", "dense")}
    timings = alternate(runs, budget=budget)
    seconds = {name: timings.latency(name).median for name in sides}
    seconds["added"] = (seconds["together"] - seconds["layer"]) / ADDED
    operations = 2 * tokens * shape[0] * shape[1]
    return results.stamp(
        "int8_layer",
        {
            "environment": machine,
            "unit": int8.unit(),
            "shape": list(shape),
            "tokens": tokens,
            "sparsity": SPARSITY,
            "threads": torch.get_num_threads(),
            "rounds": timings.rounds,
            "latency_us": {name: quantiles(timings.latency(name), 1e6) for name in sides},
            "tops": {name: operations / each / 1e12 for name, each in seconds.items() if each > 0},
            "error_fp32": float((integers - exact).norm() / exact.norm()),
            "load": load_average(),
            "busy": bool(timings.busy()),
            "busy_reasons": list(timings.busy()),
        },
    )


def goals(cells: Sequence[results.Record], machine: dict[str, Any]) -> list[results.Record]:
    """Return the goals of the shape 768x3072: the slowest number of tokens, and the dip at 80 and 100."""
    tops = {row["tokens"]: row["tops"] for row in cells if tuple(row["shape"]) == SHAPES[0]}
    busy = any(row["busy"] for row in cells)
    made = []
    for side, name in (("added", "tokens in int8"), ("layer", "tokens in fp32")):
        speed = {count: each[side] for count, each in tops.items() if side in each}
        if set(speed) != set(TOKENS):
            continue
        worst = min(speed.values())
        text = f"4x1 int8 90 %, 768x3072, {name}, worst of M = 64, 80, 100, 128"
        made.append(goal(text, worst, must=MUST, aim=AIM, unit="TOP/s", environment=machine, busy=busy))
        dip = 1 - min(speed[80], speed[100]) / min(speed[64], speed[128])
        text = f"4x1 int8 90 %, 768x3072, {name}, dip at M = 80 or 100"
        made.append(
            goal(
                text,
                dip,
                must=MUST_DIP,
                aim=AIM_DIP,
                unit="of the speed",
                environment=machine,
                at_most=True,
                busy=busy,
            )
        )
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the first shape only, for a quick look")
    add_out_option(parser)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds of timed rounds for each cell")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = environment.detect().record()
    shapes = SHAPES[:1] if options.quick else SHAPES
    cells = [measure(shape, tokens, options.budget, machine) for shape in shapes for tokens in TOKENS]
    rows = cells + goals(cells, machine)
    append(options.out, rows)
    show(int8_tables(rows) + goal_tables(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
