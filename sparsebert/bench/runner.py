"""One benchmark from end to end: build all sides, pass the gate, time, measure memory, record."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsebert.bench import memory, output_check
from sparsebert.bench.contention import load_average
from sparsebert.bench.environment import Environment
from sparsebert.bench.providers import BACKENDS, Backend, BuiltBackend
from sparsebert.bench.pruned_model import Subject
from sparsebert.bench.timer import Timings, alternate
from sparsebert.results import Record, stamp
from sparsebert_kernels.timing import Quantiles

OURS = "sparse"
Step = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How long and how thoroughly: `budget` seconds of timed rounds, `memory` in worker processes or not.

    On a busy machine the rounds are timed again up to `retries` times, then marked as not to be quoted.
    """

    budget: float = 10.0
    min_rounds: int = 7
    max_rounds: int = 200
    memory: bool = True
    retries: int = 2


def run(
    subject: Subject,
    rivals: Sequence[str],
    environment: Environment,
    settings: Settings = Settings(),
    on_step: Step = lambda step: None,
) -> list[Record]:
    """Records of our side and of each rival, ours first.

    Raises ValueError where a rival cannot run this workload, GateError where a side's answers are wrong: then
    there are no figures at all.
    """
    torch.set_num_threads(subject.workload.threads)
    names = [OURS, *(name for name in rivals if name != OURS)]
    with _sides(subject, names, on_step) as sides:
        verdicts = _judge(subject, sides, on_step)
        timings = _time(subject, sides, settings, on_step)
        held = {}
        if settings.memory:
            held = _memory(subject, sides, on_step)
    return [
        _record(subject, environment, name, sides[name], timings, verdicts[name], held.get(name))
        for name in names
    ]


@contextlib.contextmanager
def _sides(subject: Subject, names: Sequence[str], on_step: Step) -> Iterator[dict[str, BuiltBackend]]:
    with contextlib.ExitStack() as stack:
        sides = {}
        for name in names:
            on_step(f"building {name}")
            sides[name] = BACKENDS[name]().build(subject)
            stack.callback(sides[name].close)
        yield sides


def _judge(
    subject: Subject, sides: dict[str, BuiltBackend], on_step: Step
) -> dict[str, output_check.Verdict]:
    on_step("checking that all sides give the same answers")
    reference = subject.reference()
    masks = [batch["attention_mask"] for batch in subject.batches]
    verdicts = {
        name: output_check.compare(
            name, side.answers(), reference, masks, precision=_provider(name).precision(subject)
        )
        for name, side in sides.items()
    }
    output_check.require(list(verdicts.values()))
    return verdicts


def _time(subject: Subject, sides: dict[str, BuiltBackend], settings: Settings, on_step: Step) -> Timings:
    def once() -> Timings:
        return alternate(
            {name: side.run for name, side in sides.items()},
            budget=settings.budget,
            min_rounds=settings.min_rounds,
            max_rounds=settings.max_rounds,
            threads=subject.workload.threads,
            in_worker=[name for name in sides if _provider(name).in_worker],
        )

    on_step("timing")
    best = once()
    for attempt in range(1, 1 + settings.retries):
        if not best.busy():
            break
        on_step(f"timing again, the machine was busy ({attempt} of {settings.retries})")
        best = min(best, once(), key=lambda timings: len(timings.busy()))
    return best


def _memory(subject: Subject, sides: dict[str, BuiltBackend], on_step: Step) -> dict[str, memory.Memory]:
    held = {}
    with tempfile.TemporaryDirectory() as folder:
        ticket = Path(folder) / "ticket.safetensors"
        subject.ticket.save(ticket)
        for name, side in sides.items():
            on_step(f"memory of {name}")
            if side.memory is not None:
                held[name] = side.memory()
                continue
            spec = {
                "workload": {**vars(subject.workload)},
                "ticket": str(ticket),
                "provider": name,
                "format": subject.format,
            }
            held[name] = memory.measure(spec)
    return held


def _record(
    subject: Subject,
    environment: Environment,
    name: str,
    side: BuiltBackend,
    timings: Timings,
    verdict: output_check.Verdict,
    held: memory.Memory | None,
) -> Record:
    workload = subject.workload
    latency = timings.latency(name)
    busy = timings.busy()
    rivals = [rival for rival in timings.seconds if rival != OURS]
    return stamp(
        "bench",
        {
            "environment": environment.record(),
            "load": load_average(),
            "workload": workload.record(),
            "ticket": describe(subject.ticket),
            "format": subject.format,
            "provider": name,
            "summary": _provider(name).summary,
            "precision": _provider(name).precision(subject),
            "in_worker": _provider(name).in_worker,
            "notes": side.notes,
            "rounds": timings.rounds,
            # One run answers all batches; the latency is that of one batch.
            "latency_ms": quantiles(latency, 1e3 / len(workload.shapes)),
            "ratio": {rival: quantiles(timings.ratio(rival, name)) for rival in rivals},
            "samples_per_s": len(workload.lengths) / latency.median,
            "tokens_per_s": workload.real_tokens / latency.median,
            "padded_tokens_per_s": workload.padded_tokens / latency.median,
            "weight_bytes": side.weight_bytes,
            "model_bytes": side.model_bytes,
            "memory": None if held is None else held.record(),
            "gate": verdict.record(),
            "contention": vars(timings.contention),
            "busy": bool(busy),
            "busy_reasons": list(busy),
        },
    )


def describe(ticket: Any) -> dict[str, Any]:
    """What a record says about a ticket: method, granularity, and the share of zeros it really has."""
    metadata = ticket.metadata or {}
    return {
        "method": metadata.get("method"),
        "granularity": metadata.get("granularity"),
        "block_size": metadata.get("block_size"),
        "scope": metadata.get("scope"),
        "sparsity": ticket.sparsity,
        "density": ticket.density,
        "matrices": len(ticket.masks),
    }


def quantiles(values: Quantiles, scale: float = 1.0) -> dict[str, float]:
    """Median, p20 and p80 times `scale`, as plain numbers."""
    return {"median": values.median * scale, "p20": values.p20 * scale, "p80": values.p80 * scale}


def _provider(name: str) -> Backend:
    return BACKENDS[name]()
