"""One side alone in a process, to see what it holds: `python -m sparsebert.bench.worker < spec.json`.

The spec: {"workload": fields of `Workload`, "ticket": path of a ticket file, "provider": name, "format":
name}. Prints one line of JSON with the fields of `sparsebert.bench.memory.Memory`.
"""

from __future__ import annotations

import json
import sys

from sparsebert.bench import memory
from sparsebert.bench.providers import BACKENDS
from sparsebert.bench.pruned_model import prepare_pruned_model
from sparsebert.bench.workload import Workload
from sparsebert.tickets.ticket import Ticket

RUNS = 3


def main() -> None:
    spec = json.load(sys.stdin)
    import torch
    import transformers.models.bert.modeling_bert  # noqa: F401  (part of the baseline, not of any side)

    fields = spec["workload"]
    workload = Workload(**{**fields, "lengths": tuple(fields["lengths"])})
    torch.set_num_threads(workload.threads)
    memory.forget_peak()
    baseline = memory.peak_resident()
    pruned = prepare_pruned_model(workload, Ticket.load(spec["ticket"]), format=spec["format"])
    side = BACKENDS[spec["provider"]]().build(pruned, consume=True)
    del pruned
    peak = memory.peak_resident()
    memory.forget_peak()
    for _ in range(RUNS):
        side.run()
    running = memory.peak_resident()
    print(json.dumps({"baseline": baseline, "peak": max(peak, running), "running": running}))


if __name__ == "__main__":
    main()
