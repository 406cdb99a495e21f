"""Worker of ``deepsparse.py``, which runs a DeepSparse engine. It imports deepsparse and numpy only.

Requests and replies are JSON lines on stdin and stdout:
{"load": graph, "inputs": npz, "batches": n, "names": [...], "threads": n} -> {"version": ...}
{"run": true} -> {"seconds": one pass over all batches}
{"answers": npz to write} -> {}
{"memory": true} -> {"baseline": bytes, "peak": bytes, "running": bytes}
"""

import json
import os
import sys
import time
from typing import Any

# Modules in this folder would shadow the engine's.
sys.path.pop(0)
# The engine prints a banner on stdout; this descriptor is reserved for replies.
replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import deepsparse  # noqa: E402
import numpy  # noqa: E402


def peak_resident() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


class Engines:
    """One engine for each batch shape, because DeepSparse compiles for fixed sizes."""

    def __init__(self) -> None:
        self.passes: list[tuple[Any, list[Any]]] = []

    def load(self, request: dict[str, Any]) -> None:
        built: dict[tuple[int, ...], Any] = {}
        with numpy.load(request["inputs"]) as arrays:
            for index in range(request["batches"]):
                batch = [arrays[f"{index}_{name}"] for name in request["names"]]
                shape = batch[0].shape
                if shape not in built:
                    built[shape] = deepsparse.Engine(
                        model=request["load"],
                        batch_size=shape[0],
                        num_cores=request["threads"],
                        input_shapes=[list(array.shape) for array in batch],
                    )
                self.passes.append((built[shape], batch))

    def run(self) -> list[Any]:
        return [engine.run(batch, val_inp=False)[0] for engine, batch in self.passes]


def answer(request: dict[str, Any], engines: Engines, baseline: int) -> dict[str, Any]:
    """Return the reply to a request."""
    if "load" in request:
        engines.load(request)
        return {"version": deepsparse.__version__}
    if "run" in request:
        start = time.perf_counter()
        engines.run()
        return {"seconds": time.perf_counter() - start}
    if "answers" in request:
        numpy.savez(request["answers"], **{str(index): array for index, array in enumerate(engines.run())})
        return {}
    peak = peak_resident()
    return {"baseline": baseline, "peak": peak, "running": peak}


def main() -> None:
    """Answer requests until stdin ends."""
    baseline, engines = peak_resident(), Engines()
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line), engines, baseline)
        except Exception as error:  # every failure must reach the parent process
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
