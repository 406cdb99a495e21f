"""The cost model's times of BERT-base's layers on a GPU. Nothing is measured, and no GPU is needed.

    python -m benchmarks.roofline [--out benchmarks/results/roofline.jsonl]

The records say what bounds each layer; `python -m sparsebert.report.render_docs --write` makes the tables of
`kernels/README.md` from them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.output import show
from sparsebert.atomic import write_text
from sparsebert.cost.gpu_roofline import KNOWN, Roofline
from sparsebert.cost.mask_statistics import BlockStatistics, MaskStatistics
from sparsebert.cost.work import WorkEstimate, estimate_panel_work, estimate_work
from sparsebert.report.roofline_tables import roofline_tables
from sparsebert.results import Record, stamp

DEVICE, DTYPE = "h200", torch.bfloat16
# Layer -> (out, in), and the activation that follows.
LAYERS = {
    "QKV": ((2304, 768), "none"),
    "output": ((768, 768), "none"),
    "FFN up": ((3072, 768), "none"),
    "FFN up, GELU": ((3072, 768), "gelu"),
    "FFN down": ((768, 3072), "none"),
}
TOKENS = (512, 4096, 16384)
SPARSITIES = (0.5, 0.75, 0.9, 0.95)
HEIGHTS = (16, 32, 64, 128)
WIDTH = 64  # columns of the blocks


def modelled() -> Iterator[dict[str, Any]]:
    """Yield the fields of a record for each layer, number of tokens, sparsity and height of the blocks."""
    device = KNOWN[DEVICE]
    for tokens, (name, (shape, activation)) in itertools.product(TOKENS, LAYERS.items()):
        model = Roofline(device, DTYPE, tokens, activation)
        mask = MaskStatistics.of(torch.ones(1, 1, dtype=torch.bool).expand(shape))
        (dense,) = estimate_work(mask, DTYPE, ("dense",))
        for sparsity, height in itertools.product(SPARSITIES, HEIGHTS):
            blocks = BlockStatistics.spread(*shape, 1 - sparsity)
            work = next(
                each for each in estimate_panel_work(mask, blocks, DTYPE) if each.block == (height, WIDTH)
            )
            yield {
                "device": device.name,
                "source": device.source,
                # FLOP/s and bytes/s that bound every layer.
                "limits": {"matmul": device.matmul, "memory": device.memory, "l2": device.l2},
                "layer": name,
                "shape": shape,
                "tokens": tokens,
                "activation": activation,
                "block": [height, WIDTH],
                "sparsity": sparsity,
                "dense_us": _microseconds(model.seconds(dense)),
                "dense_weight_bytes": dense.nbytes,
                "weight_bytes": work.nbytes,
                "useful_weights": work.stored,
                **_panel(model, work),
            }


def _panel(model: Roofline, work: WorkEstimate) -> dict[str, Any]:
    bounds = model.panel_bounds(work)
    return {
        "us": _microseconds(model.seconds(work)),
        "kernel_us": _microseconds(model.device.kernel),
        "bounds_us": {name: _microseconds(seconds) for name, seconds in asdict(bounds).items()},
        "bound": bounds.tightest,
        "configuration": asdict(model.configuration(work)),
        "programs_at_once": model.programs_at_once(work),
    }


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 2)


def records() -> list[Record]:
    """Return all records."""
    return [stamp("roofline", fields) for fields in modelled()]


def main() -> int:
    """Print the tables and, with ``--out``, write the records."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write the records to this file and replace its content")
    options = parser.parse_args()
    rows = records()
    if options.out:
        write_text(options.out, "".join(json.dumps(row) + "\n" for row in rows))
    show(roofline_tables(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
