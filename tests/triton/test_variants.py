"""Two tickets of one shape run the same compiled kernels: no count of theirs is compiled in."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.triton.test_aot import ROOT

# Recorded in a process of its own: this one may have imported the kernels for the interpreter.
RECORD = """
import functools, json
import torch
from sparsebert_kernels.cuda import bitmap, masked_gradient, panel_backward, panel_forward
from sparsebert_kernels.cuda.aot.compile_case import example, recorded_case
from sparsebert_kernels.cuda.tile_rule import Shape, by_rule
from sparsebert_kernels.formats import BitmapSparse

BF16, FP32, INT = torch.bfloat16, torch.float32, torch.int32
variants = {}


def add(name, kernel, launch, *arguments):
    case = recorded_case(kernel, functools.partial(launch, *arguments), family=name, label=name)
    variants.setdefault(name, []).append([case.arguments, case.constants, case.aligned])


for tiles, splits in ((48, 16), (45, 3), (31 + 8, 2)):
    for height in (16, 64):
        shape = Shape("panel forward", height, 64, 4096, 12, tiles, "bfloat16")
        packed = panel_forward.example_panels(shape, BF16)
        (N, K), M = packed.shape, 4096
        x, y, bias = example(BF16, M, K), example(BF16, M, N), example(BF16, N)
        config = by_rule(shape)
        add(f"forward {height}", panel_forward.panel_forward, panel_forward._launch,
            x, packed, bias, "gelu", None, y, config, "ieee", M, K, None)
        partial, out = example(FP32, splits, *packed.values.shape), example(BF16, *packed.values.shape)
        config = by_rule(Shape("panel values gradient", height, 64, M, 12, tiles, "bfloat16"))
        add(f"gradient {height}", panel_backward.panel_values_gradient,
            panel_backward._launch_values_gradient, y, x, packed, partial, 512 * splits, config, "ieee")
        add(f"sum {height}", panel_backward.sum_splits, panel_backward._launch_sum, partial, out)
        source = example(INT, tiles + 5, 64 // min(height, 64), 1)
        add(f"transpose {height}", panel_backward.panel_transpose, panel_backward._launch_transpose,
            packed, source, example(BF16, tiles + 5, 64, 64))
    weight, words = example(BF16, 768, 768), example(INT, 768, 24)
    flags = {"NEEDS_WEIGHT": True, "MASKED": True, "NEEDS_SCORES": False}
    add("masked sum", masked_gradient.reduce_masked_weight_gradient, masked_gradient._launch_reduction,
        weight, words, weight, weight, example(FP32, splits, 768, 768), flags)
    tensors = {"values": example(BF16, 1000 * tiles + splits), "words": words,
               "offsets": example(torch.int16, 768, 12), "starts": example(INT, 768)}
    add("bitmap", bitmap.decompress_bitmap, bitmap._launch, BitmapSparse((768, 768), tensors, {}), weight)
print(json.dumps(variants))
"""


@pytest.fixture(scope="module")
def variants() -> dict[str, list[object]]:
    """For each kernel, what Triton compiles for each of three tickets."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", RECORD]
    done = subprocess.run(command, env={**environment, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_tickets_of_one_shape_compile_one_variant(variants: dict[str, list[object]]) -> None:
    assert len(variants) == 10
    for name, of_tickets in variants.items():
        assert len(of_tickets) == 3
        assert of_tickets[0] == of_tickets[1] == of_tickets[2], name
