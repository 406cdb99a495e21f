"""Runs a DeepSparse engine for `deepsparse.py`. Needs deepsparse and numpy only: no torch, no sparsebert.

Requests and answers are JSON lines on stdin and stdout:
{"load": graph, "inputs": npz, "batches": n, "names": [...], "threads": n} -> {"version": ...}
{"run": true} -> {"seconds": one pass over all batches}
{"answers": npz to write} -> {}
{"memory": true} -> {"baseline": bytes, "peak": bytes, "running": bytes}
"""

import json
import os
import sys
import time

# The engine prints a banner on stdout: keep that descriptor for the protocol alone.
replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import deepsparse  # noqa: E402
import numpy  # noqa: E402


def peak_resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


class Engines:
    """One engine a batch shape: DeepSparse compiles for fixed sizes."""

    def __init__(self, request):
        self.passes = []
        built = {}
        with numpy.load(request["inputs"]) as arrays:
            for index in range(request["batches"]):
                batch = [arrays[f"{index}_{name}"] for name in request["names"]]
                shape = batch[0].shape
                if shape not in built:
                    built[shape] = deepsparse.Engine(
                        model=request["load"],
                        batch_size=shape[0],
                        num_cores=request["threads"],
                        input_shapes=[list(shape)] * len(batch),
                    )
                self.passes.append((built[shape], batch))

    def run(self):
        return [engine.run(batch, val_inp=False)[0] for engine, batch in self.passes]


def main():
    baseline = peak_resident()
    engines = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "load" in request:
                engines = Engines(request)
                answer = {"version": deepsparse.__version__}
            elif "run" in request:
                start = time.perf_counter()
                engines.run()
                answer = {"seconds": time.perf_counter() - start}
            elif "answers" in request:
                numpy.savez(request["answers"], **{str(i): a for i, a in enumerate(engines.run())})
                answer = {}
            else:
                peak = peak_resident()
                answer = {"baseline": baseline, "peak": peak, "running": peak}
        except Exception as error:  # the parent must hear of everything that goes wrong here
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=replies, flush=True)


if __name__ == "__main__":
    main()
