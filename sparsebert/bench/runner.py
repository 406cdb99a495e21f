"""A complete benchmark: build the backends, compare outputs, time, measure memory, and make records."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsebert.bench import memory, output_check
from sparsebert.bench.contention import load_average
from sparsebert.bench.environment import Environment
from sparsebert.bench.providers import BACKENDS, Backend, BuiltBackend
from sparsebert.bench.pruned_model import PrunedModel
from sparsebert.bench.timer import Timings, alternate
from sparsebert.results import Record, stamp
from sparsebert_kernels.errors import one_line
from sparsebert_kernels.timing import Quantiles

OURS = "sparse"
Step = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """Effort of a benchmark.

    Attributes:
        budget: Seconds of timed rounds.
        min_rounds: Minimum number of rounds, whatever the budget.
        max_rounds: Maximum number of rounds.
        memory: Whether to measure memory, in worker processes.
        retries: How often to time again on a busy machine before the records are marked as busy.
        leave_out: Whether baselines that cannot be built or whose outputs are wrong are left out, with the
            reason in every record. Otherwise they raise.

    Raises:
        ValueError: The budget is negative, infinite or NaN.
    """

    budget: float = 10.0
    min_rounds: int = 7
    max_rounds: int = 200
    memory: bool = True
    retries: int = 2
    leave_out: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.budget < math.inf:
            raise ValueError(f"budget must be a finite number of seconds from 0, got {self.budget}")


def run(
    pruned: PrunedModel,
    baselines: Sequence[str],
    environment: Environment,
    settings: Settings = Settings(),
    on_step: Step = lambda step: None,
    missing: Mapping[str, str] | None = None,
) -> list[Record]:
    """Benchmark the sparse backend and the baselines.

    Args:
        pruned: Model, ticket and batches.
        baselines: Names in ``BACKENDS``.
        environment: Description of this machine, for the records.
        settings: Effort.
        on_step: Called with a description of each step.
        missing: Reasons of baselines that cannot run here, for the records.

    Returns:
        One record for each backend, the sparse one first.

    Raises:
        ValueError: A baseline cannot run this workload.
        OutputMismatchError: A backend's outputs are wrong; nothing is timed then.
    """
    torch.set_num_threads(pruned.workload.threads)
    names = [OURS, *(name for name in baselines if name != OURS)]
    left_out = dict(missing or {})
    with _built_backends(pruned, names, on_step, left_out if settings.leave_out else None) as backends:
        checks = _check_outputs(pruned, backends, on_step, left_out if settings.leave_out else None)
        backends = {name: backend for name, backend in backends.items() if name in checks}
        timings = time_backends(
            backends,
            settings,
            threads=pruned.workload.threads,
            in_worker=[name for name in backends if _backend(name).in_worker],
            on_step=on_step,
        )
        held = {}
        if settings.memory:
            held = _memory(pruned, backends, on_step)
    return [
        _record(pruned, environment, name, backend, timings, checks[name], held.get(name), left_out)
        for name, backend in backends.items()
    ]


@contextlib.contextmanager
def _built_backends(
    pruned: PrunedModel, names: Sequence[str], on_step: Step, left_out: dict[str, str] | None
) -> Iterator[dict[str, BuiltBackend]]:
    with contextlib.ExitStack() as stack:
        backends = {}
        for name in names:
            on_step(f"building {name}")
            try:
                backends[name] = BACKENDS[name]().build(pruned)
            except Exception as error:  # whatever a baseline's library raises
                if left_out is None or name == OURS:
                    raise
                left_out[name] = one_line(error)
            else:
                stack.callback(backends[name].close)
        yield backends


def _check_outputs(
    pruned: PrunedModel, backends: dict[str, BuiltBackend], on_step: Step, left_out: dict[str, str] | None
) -> dict[str, output_check.OutputCheck]:
    on_step("comparing outputs")
    reference = pruned.reference()
    masks = [batch["attention_mask"] for batch in pruned.batches]
    checks = {}
    for name, backend in backends.items():
        try:
            check = output_check.compare(
                name, backend.answers(), reference, masks, precision=_backend(name).precision(pruned)
            )
        except Exception as error:  # whatever a baseline's library raises
            if left_out is None or name == OURS:
                raise
            left_out[name] = one_line(error)
        else:
            if left_out is None or name == OURS or check.passed:
                checks[name] = check
            else:
                left_out[name] = str(check)
    output_check.require(list(checks.values()))
    return checks


def time_backends(
    backends: Mapping[str, BuiltBackend],
    settings: Settings,
    *,
    threads: int,
    in_worker: Collection[str] = (),
    on_step: Step = lambda step: None,
) -> Timings:
    """Time backends in alternation, again while the machine is busy, and return the calmest timing.

    Args:
        backends: The backends by name.
        settings: Effort.
        threads: Threads of each.
        in_worker: Those that run in another process of ours.
        on_step: Called with a description of each step.
    """

    def once() -> Timings:
        return alternate(
            {name: backend.run for name, backend in backends.items()},
            budget=settings.budget,
            min_rounds=settings.min_rounds,
            max_rounds=settings.max_rounds,
            threads=threads,
            in_worker=in_worker,
        )

    on_step("timing")
    best = once()
    for attempt in range(1, 1 + settings.retries):
        if not best.busy():
            break
        on_step(f"timing again, the machine was busy ({attempt} of {settings.retries})")
        best = min(best, once(), key=lambda timings: len(timings.busy()))
    return best


def _memory(
    pruned: PrunedModel, backends: dict[str, BuiltBackend], on_step: Step
) -> dict[str, memory.Memory]:
    held = {}
    with tempfile.TemporaryDirectory() as folder:
        ticket = Path(folder) / "ticket.safetensors"
        pruned.ticket.save(ticket)
        for name, backend in backends.items():
            on_step(f"memory of {name}")
            if backend.memory is not None:
                held[name] = backend.memory()
                continue
            held[name] = memory.measure(memory_spec(pruned, name, ticket))
    return held


def memory_spec(pruned: PrunedModel, name: str, ticket: Path) -> dict[str, Any]:
    """Return what ``sparsebert.bench.memory.measure`` needs of a backend.

    Args:
        pruned: The model; its ticket must have been saved.
        name: Name of the backend.
        ticket: File of the ticket.
    """
    return {
        "workload": {**vars(pruned.workload)},
        "ticket": str(ticket),
        "provider": name,
        "format": pruned.format,
        "measure": pruned.measure,
        "fuse": pruned.fuse,
        "tolerance": pruned.tolerance,
    }


def _record(
    pruned: PrunedModel,
    environment: Environment,
    name: str,
    backend: BuiltBackend,
    timings: Timings,
    check: output_check.OutputCheck,
    held: memory.Memory | None,
    left_out: Mapping[str, str],
) -> Record:
    workload = pruned.workload
    latency = timings.latency(name)
    busy = timings.busy()
    baselines = [each for each in timings.seconds if each != OURS]
    return stamp(
        "bench",
        {
            "environment": environment.record(),
            "load": load_average(),
            "workload": workload.record(),
            "ticket": describe(pruned.ticket),
            "format": pruned.format,
            "provider": name,
            "summary": _backend(name).summary,
            "precision": _backend(name).precision(pruned),
            "tolerance": pruned.tolerance,
            "in_worker": _backend(name).in_worker,
            "notes": backend.notes,
            "rounds": timings.rounds,
            # One run covers all batches; the latency is that of one batch.
            "latency_ms": quantiles(latency, 1e3 / len(workload.shapes)),
            "ratio": {baseline: quantiles(timings.ratio(baseline, name)) for baseline in baselines},
            "samples_per_s": len(workload.lengths) / latency.median,
            "tokens_per_s": workload.real_tokens / latency.median,
            "padded_tokens_per_s": workload.padded_tokens / latency.median,
            "weight_bytes": backend.weight_bytes,
            "model_bytes": backend.model_bytes,
            "memory": None if held is None else held.record(),
            "gate": check.record(),
            "left_out": dict(left_out),
            "contention": vars(timings.contention),
            "busy": bool(busy),
            "busy_reasons": list(busy),
        },
    )


def describe(ticket: Any) -> dict[str, Any]:
    """Return a record's description of a ticket: method, granularity, actual sparsity and identity."""
    metadata = ticket.metadata or {}
    return {
        "method": metadata.get("method"),
        "granularity": metadata.get("granularity"),
        "block_size": metadata.get("block_size"),
        "round_to": metadata.get("round_to"),
        "scope": metadata.get("scope"),
        "sparsity": ticket.sparsity,
        "density": ticket.density,
        "matrices": len(ticket.masks),
        "masks_sha256": ticket.digest,
    }


def quantiles(values: Quantiles, scale: float = 1.0) -> dict[str, float]:
    """Return median, p20 and p80 times ``scale`` as plain JSON values."""
    return {"median": values.median * scale, "p20": values.p20 * scale, "p80": values.p80 * scale}


def _backend(name: str) -> Backend:
    return BACKENDS[name]()
