"""The process that measures: `python -m benchmarks.gpu.worker --out FOLDER --until TIME [--dry-run]`.

A faulty kernel can destroy the CUDA context or hang; `benchmarks.gpu.__main__` then records the point as
failed and starts another worker.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.points import Point
from benchmarks.gpu.session import Session, measure_all

CONTEXT_LOST = 3


def main() -> int:
    """Return exit code 3 if points are missing but this process can no longer measure them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--until", type=float, required=True, help="seconds since 1970")
    parser.add_argument("--only", action="append", help="only points of this kind")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    session = Session(options.out, options.dry_run)
    end_with_parent(os.getppid())

    from benchmarks.gpu.device import Cuda, DryRun
    from benchmarks.gpu.tuning import write_configurations
    from sparsebert.bench import environment
    from sparsebert_kernels.cuda import on_cpu, tile_configs

    device = DryRun() if options.dry_run else Cuda()
    measures = _measures()
    machine = environment.detect().record()

    def measure(point: Point) -> dict[str, Any]:
        device.begin_point()
        return measures[point.kind](device, **dict(point.arguments))

    def always() -> dict[str, Any]:
        return {"environment": machine, "device": device.record(), "clocks": device.clocks}

    def tune() -> None:
        """Apply the configurations found so far to the following points."""
        if write_configurations(session.records(), device.name, session.folder / "configs"):
            tile_configs.use_folder(session.folder / "configs")

    def measure_and_tune(point: Point) -> dict[str, Any]:
        tune()
        return measure(point)

    missing = session.missing(device.name)
    selected = [point for point in missing if not options.only or point.kind in options.only]
    with on_cpu() if options.dry_run else contextlib.nullcontext():
        sound = measure_all(session, selected, measure_and_tune, always, options.until, alive=device.alive)
    tune()
    return 0 if sound else CONTEXT_LOST


def end_with_parent(parent: int, every: float = 0.5) -> None:
    """End this process and its children once its parent is gone, which may be killed without a warning.

    The worker has a process group of its own, so that it would go on alone and measure beside the next call.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _measures() -> dict[str, Callable[..., dict[str, Any]]]:
    from benchmarks.gpu import layers, limits, models, suite, tuning

    return {
        "limits": limits.measure_limits,
        "layer": layers.measure_layer,
        "dense": layers.measure_dense,
        "masked": layers.measure_masked,
        "activation": layers.measure_activation,
        "occupancy": tuning.measure_occupancy,
        "planned": layers.measure_planned,
        "bitmap": layers.measure_bitmap,
        "model": models.measure_model,
        "memory": models.measure_memory,
        "tuning": tuning.measure_tuning,
        "tests": suite.measure_tests,
        "sanitizer": suite.measure_sanitizer,
    }


if __name__ == "__main__":
    sys.exit(main())
