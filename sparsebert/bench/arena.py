"""Quality and speed of every form of one model: dense libraries, our dense engines, and pruned models.

Every form runs the encoder. The head, which is the same work for all, is computed in float32 by torch and is
not timed. A form that cannot be built or that fails is left out, with its reason in every record.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sparsebert.bench.environment import Environment
from sparsebert.bench.judged_texts import JudgedTexts, load_judged
from sparsebert.bench.memory import model_bytes
from sparsebert.bench.providers import BACKENDS, BuiltBackend
from sparsebert.bench.pruned_model import PrunedModel
from sparsebert.bench.runner import OURS, Settings, Step, quantiles, time_backends
from sparsebert.bench.timer import Timings, on_wall
from sparsebert.cost.precision import PRECISIONS
from sparsebert.lottery.find_runs import load_ticket
from sparsebert.quality.heads import Head, head_of
from sparsebert.quality.measures import Quality
from sparsebert.results import Record, stamp
from sparsebert.tasks import Task
from sparsebert.tasks.models import short_name
from sparsebert.tickets import TICKET_FILE
from sparsebert.tickets.ticket import Ticket
from sparsebert_kernels.errors import one_line

# Decimals of a quality that count: forms in fp32 differ by rounding errors.
DIGITS = 4


@dataclass(frozen=True)
class Form:
    """A form of the model.

    Attributes:
        name: Name in tables.
        ours: Whether this package runs it.
        precision: Precision of the arithmetic.
        sparsity: Share of pruned weights; None if unknown.
        head: What follows the encoder.
        backend: The form, ready to run.
    """

    name: str
    ours: bool
    precision: str
    sparsity: float | None
    head: Head
    backend: BuiltBackend


Build = Callable[[], Form]


def run(
    judged: JudgedTexts,
    baselines: Sequence[str],
    environment: Environment,
    settings: Settings,
    *,
    also: Sequence[Path] = (),
    task: Task | None = None,
    on_step: Step = lambda step: None,
    missing: Mapping[str, str] | None = None,
) -> list[Record]:
    """Build all forms, judge their outputs on the texts of the verdict, and time them in alternation.

    Args:
        judged: The dense model and its texts.
        baselines: Names in ``BACKENDS``, the main one first.
        environment: Description of this machine, for the records.
        settings: Effort of the timing.
        also: Tickets of the model, or folders of models made of it.
        task: Task that judges, whose labels the folders' heads must know.
        on_step: Called with a description of each step.
        missing: Reasons of baselines that cannot run here, for the records.

    Returns:
        One record of kind "arena" for each form.
    """
    torch.set_num_threads(judged.workload.threads)
    left_out = dict(missing or {})
    forms: dict[str, Form] = {}
    qualities: dict[str, Quality] = {}
    with contextlib.ExitStack() as stack:
        for name, build in _builders(judged, baselines, also, task).items():
            on_step(f"building and judging {name}")
            try:
                form = build()
                stack.callback(form.backend.close)
                qualities[name] = judged.verdict.quality(form.head, form.backend.answers())
            except Exception as error:  # whatever a library raises
                left_out[name] = one_line(error)
            else:
                forms[name] = form
        if not forms:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
            raise ValueError(f"no form of {judged.name} can run here: {reasons}")
        timings = time_backends(
            {name: form.backend for name, form in forms.items()},
            settings,
            threads=judged.workload.threads,
            on_step=on_step,
        )
    front = pareto_front(
        {name: (round(qualities[name].keep, DIGITS), timings.latency(name).median) for name in forms}
    )
    return [
        _record(judged, environment, form, qualities[name], timings, name in front, left_out, forms)
        for name, form in forms.items()
    ]


def pareto_front(forms: Mapping[str, tuple[float, float]]) -> set[str]:
    """Return the forms that no other one beats in quality and time at once.

    Args:
        forms: Quality (more is better) and time (less is better) by name.
    """
    return {
        name
        for name, (quality, time) in forms.items()
        if not any(
            other >= quality and seconds <= time and (other, seconds) != (quality, time)
            for other, seconds in forms.values()
        )
    }


def _builders(
    judged: JudgedTexts, baselines: Sequence[str], also: Sequence[Path], task: Task | None
) -> dict[str, Build]:
    """Return the functions that build the forms, by the forms' names."""
    builders: dict[str, Build] = {}
    for baseline in baselines:
        builders[baseline] = _of_backend(judged, judged.as_pruned_model(), baseline, baseline, None)
    for precision in PRECISIONS:
        name = f"dense {precision}"
        builders[name] = _of_backend(judged, judged.as_pruned_model(precision), name, OURS, 0.0)
    for path in also:
        if (path / TICKET_FILE).is_file() and (path / "config.json").is_file():
            for precision in PRECISIONS:
                name = f"{path.name} {precision}"
                name = name if name not in builders else f"{path} {precision}"
                builders[name] = _of_pruned_folder(judged, path, name, precision, task)
        elif (path / "config.json").is_file():
            name = path.name if path.name not in builders else str(path)
            builders[name] = _of_folder(judged, path, name, task)
        else:
            ticket = load_ticket(path, judged.model)
            for precision in PRECISIONS:
                name = f"{path.stem} {precision}"
                name = name if name not in builders else f"{path} {precision}"
                builders[name] = _of_ticket(judged, ticket, name, precision)
    return builders


def _of_backend(
    judged: JudgedTexts, pruned: PrunedModel, name: str, backend: str, sparsity: float | None
) -> Build:
    def build() -> Form:
        made = BACKENDS[backend]()
        precision = made.precision(pruned)
        return Form(name, backend == OURS, precision, sparsity, judged.head, made.build(pruned))

    return build


def _of_pruned_folder(
    judged: JudgedTexts, folder: Path, name: str, precision: str, task: Task | None
) -> Build:
    """Return the function that builds a folder of dense weights with zeros, run by the ticket beside them."""

    def build() -> Form:
        model = load_judged(str(folder), task).eval()
        form = _of_ticket(judged, load_ticket(folder, model), name, precision, model.base_model)()
        return replace(form, head=head_of(model, str(folder)))

    return build


def _of_ticket(
    judged: JudgedTexts, ticket: Ticket, name: str, precision: str, base: Any | None = None
) -> Build:
    """Return the function that builds the dense model, or another base model, with a ticket."""

    def build() -> Form:
        dense = judged.as_pruned_model(precision)
        masked: Any = ticket.apply_(copy.deepcopy(judged.base if base is None else base))
        pruned = PrunedModel(
            dense.workload, masked, ticket, dense.batches, tolerance=precision, judged=dense.judged
        )
        return _of_backend(judged, pruned, name, OURS, ticket.sparsity)()

    return build


def _of_folder(judged: JudgedTexts, folder: Path, name: str, task: Task | None) -> Build:
    def build() -> Form:
        model = load_judged(str(folder), task).eval()
        return Form(
            name,
            ours=True,
            precision=str(_saved_precision(model)),
            sparsity=_saved_sparsity(model),
            head=head_of(model, str(folder)),
            backend=running(model.base_model, judged),
        )

    return build


def running(base: Any, judged: JudgedTexts) -> BuiltBackend:
    """Return a base model as it is as a backend, which answers for the texts of the verdict."""

    @torch.inference_mode()
    def forward() -> None:
        for batch in judged.timed:
            base(**batch)

    @torch.inference_mode()
    def answers() -> list[torch.Tensor]:
        return [base(**batch).last_hidden_state for batch in judged.verdict.batches]

    return BuiltBackend(run=on_wall(forward), answers=answers, model_bytes=model_bytes(base))


def _saved_precision(model: Any) -> str:
    config = getattr(model.config, "quantization_config", None)
    return str(getattr(config, "tolerance", "fp32"))


def _saved_sparsity(model: Any) -> float | None:
    config = getattr(model.config, "quantization_config", None)
    sparsity = getattr(config, "sparsity", None)
    return None if sparsity is None else float(sparsity)


def _record(
    judged: JudgedTexts,
    environment: Environment,
    form: Form,
    quality: Quality,
    timings: Timings,
    on_front: bool,
    left_out: Mapping[str, str],
    forms: Mapping[str, Form],
) -> Record:
    workload, latency, busy = judged.workload, timings.latency(form.name), timings.busy()
    return stamp(
        "arena",
        {
            "environment": environment.record(),
            "workload": {**workload.record(), "model": short_name(judged.name)},
            "form": form.name,
            "ours": form.ours,
            "precision": form.precision,
            "sparsity": form.sparsity,
            "measure": judged.verdict.measure.name,
            "labels": judged.verdict.measure.labels,
            "judged": judged.verdict.measure.count,
            "quality": quality.record(),
            "rounds": timings.rounds,
            # One run covers all batches; the latency is that of one batch.
            "latency_ms": quantiles(latency, 1e3 / len(workload.shapes)),
            "ratio": {
                name: quantiles(timings.ratio(name, form.name))
                for name, each in forms.items()
                if not each.ours
            },
            "samples_per_s": len(workload.lengths) / latency.median,
            "model_bytes": form.backend.model_bytes,
            "notes": form.backend.notes,
            "front": on_front,
            "left_out": dict(left_out),
            "contention": vars(timings.contention),
            "busy": bool(busy),
            "busy_reasons": list(busy),
        },
    )
