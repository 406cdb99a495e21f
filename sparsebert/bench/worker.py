"""Memory of one backend, alone in a process: ``python -m sparsebert.bench.worker < spec.json``.

The spec is a JSON object with "workload" (the fields of ``Workload``), "ticket" (path of a ticket file),
"provider" (name of a backend), "format" (a packed format) and, unless they have their defaults, "measure",
"fuse" and "tolerance" of ``sparsebert.sparsify_``. The command prints the fields of
``sparsebert.bench.memory.Memory`` as one line of JSON.
"""

from __future__ import annotations

import json
import sys

from sparsebert.accounting.process_memory import peak_resident
from sparsebert.bench import memory
from sparsebert.bench.providers import BACKENDS
from sparsebert.bench.pruned_model import prepare_pruned_model
from sparsebert.bench.workload import Workload
from sparsebert.tickets.ticket import Ticket

RUNS = 3


def main() -> None:
    """Read the spec, run the backend and print what the process held."""
    spec = json.load(sys.stdin)
    fields = spec["workload"]
    workload = Workload(**{**fields, "lengths": tuple(fields["lengths"])})

    import torch
    import transformers.models.bert.modeling_bert  # noqa: F401  (counts as baseline, not as any backend's)

    torch.set_num_threads(workload.threads)
    memory.reset_peak()
    baseline = peak_resident()
    # No name for the ticket: its masks are to go with `pruned`, before memory is measured.
    pruned = prepare_pruned_model(
        workload,
        Ticket.load(spec["ticket"]),
        format=spec["format"],
        measure=spec.get("measure", True),
        fuse=spec.get("fuse"),
        tolerance=spec.get("tolerance", "fp32"),
    )
    backend = BACKENDS[spec["provider"]]().build(pruned, consume=True)
    del pruned
    peak = peak_resident()
    memory.reset_peak()
    for _ in range(RUNS):
        backend.run()
    running = peak_resident()
    print(json.dumps({"baseline": baseline, "peak": max(peak, running), "running": running}))


if __name__ == "__main__":
    main()
