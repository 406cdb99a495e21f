"""Size of packed weights and packing time of BERT-base: `python -m benchmarks.storage [--out FILE]`."""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.goals import goal
from benchmarks.layers import SHAPES, packed_layer
from benchmarks.output import add_out_option, append, show
from sparsebert.bench import environment
from sparsebert.bench.workload import Workload
from sparsebert.pruning import prune
from sparsebert.report.layer_tables import goal_tables
from sparsebert.sparsify import sparsify_
from sparsebert.tickets.ticket import Ticket

SPARSITY = 0.9
PACKINGS = 3


def stored_share(dtype: torch.dtype) -> float:
    """Return the bytes of element-sparse weights of all ``SHAPES`` at 90 %, as a share of dense fp32."""
    stored = sum(packed_layer(shape, SPARSITY, "element", dtype)[1].nbytes for shape in SHAPES)
    return stored / sum(4 * rows * columns for rows, columns in SHAPES)


def packing_seconds() -> float:
    """Return the least seconds, of several attempts, to load a 90 % ticket and pack BERT-base."""
    model = Workload("bert-base").load_model()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ticket.safetensors"
        prune(model, "magnitude", sparsity=SPARSITY).save(path)
        seconds = []
        for _ in range(PACKINGS):
            fresh = copy.deepcopy(model)
            start = time.perf_counter()
            sparsify_(fresh, Ticket.load(path), format="element")
            seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_out_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = environment.detect().record()
    shares = {"fp32": (torch.float32, 0.16, 0.13), "bf16": (torch.bfloat16, 0.11, 0.08)}
    rows = [
        goal(
            f"weight bytes, element 90 %, {name} values, share of dense fp32",
            stored_share(dtype),
            must=must,
            aim=aim,
            unit="x",
            environment=machine,
            at_most=True,
        )
        for name, (dtype, must, aim) in shares.items()
    ]
    rows.append(
        goal(
            "packing BERT-base from a ticket, 90 %",
            packing_seconds(),
            must=3,
            aim=1,
            unit="s",
            environment=machine,
            at_most=True,
        )
    )
    append(options.out, rows)
    show(goal_tables(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
