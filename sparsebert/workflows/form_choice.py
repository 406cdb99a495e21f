"""The choice of `optimize`: the verdict on its candidates, the last timing, and the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparsebert import results
from sparsebert.bench.environment import Environment
from sparsebert.bench.runner import time_backends
from sparsebert.quality.held_out import encoder_of
from sparsebert.quality.measures import Quality
from sparsebert.report.optimize_tables import optimize_tables
from sparsebert.results import Record
from sparsebert.tasks.models import load_as_saved, short_name
from sparsebert.tickets.ticket import Ticket
from sparsebert.workflows.form_search import ROUNDING, Candidate, FormSearch
from sparsebert.workflows.pruned_forms import DENSE, all_cores, in_engine

# A form that is faster by less is not worth its loss.
LEAST_GAIN = 1.02


@dataclass(frozen=True)
class Optimized:
    """The result of ``optimize``.

    Attributes:
        model: The chosen form of the model with its head, ready to run.
        ticket: What it keeps; everything of a dense form.
        records: A record of kind "optimize" for each form that was tried.
        chosen: Name of the chosen form.
        note: One line on the choice.
    """

    model: Any
    ticket: Ticket
    records: list[Record]
    chosen: str
    note: str

    def _repr_html_(self) -> str:
        tables = optimize_tables(self.records)
        return "".join(replace(each, notes=(self.note, *each.notes))._repr_html_() for each in tables)


def search_and_choose(
    search: FormSearch, environment: Environment, precisions: Sequence[str], granularities: Sequence[str]
) -> Optimized:
    """Search, choose, and return the chosen form with its timing against the dense ones."""
    candidates = [search.dense(precision) for precision in dict.fromkeys(("fp32", *precisions))]
    for granularity in granularities:
        candidates += search.pruned(granularity, precisions)
    best, verdicts = _choose(candidates, search)
    candidates = _timed_again(candidates, best, search)
    records = [_record(search, environment, each, verdicts, best.name) for each in candidates]
    final = next(each for each in candidates if each.name == best.name)
    note = _note(final, verdicts[best.name], search.keep)
    pruned, ticket = search.forms.make(best.shape)
    # As saved, so that labels keep the order that the user's model has.
    model = load_as_saved(search.judged.name).float()
    model.base_model.load_state_dict(pruned.base_model.state_dict(), strict=False)
    return Optimized(
        in_engine(model, ticket, best.precision, search.judged), ticket, records, best.name, note
    )


def _choose(candidates: Sequence[Candidate], search: FormSearch) -> tuple[Candidate, dict[str, Quality]]:
    """Return the fastest form that holds the bound on both parts of the texts, and the verdicts given.

    Where no form holds, the dense one in fp32 is returned. A sparse form must be faster than the dense one of
    its precision.
    """
    verdicts: dict[str, Quality] = {}

    def judged(candidate: Candidate) -> Quality:
        search.on_step(f"judging {candidate.name} on texts that the search has not seen")
        encoder = encoder_of(search.base(candidate.shape, candidate.precision))
        with all_cores():
            verdicts[candidate.name] = search.judged.verdict.quality_of(search.judged.head, encoder)
        return verdicts[candidate.name]

    holding = [
        each
        for each in candidates
        if each.holds(search.keep) and (each.dense or each.sparsity_gain >= LEAST_GAIN)
    ]
    for candidate in sorted(holding, key=lambda each: -each.speedup):
        if judged(candidate).keep >= search.keep - ROUNDING:
            return candidate, verdicts
    dense = candidates[0]
    if dense.name not in verdicts:
        judged(dense)
    return dense, verdicts


def _timed_again(candidates: Sequence[Candidate], best: Candidate, search: FormSearch) -> list[Candidate]:
    """Return the candidates with the dense ones and the chosen one timed in alternation."""
    search.on_step("timing the chosen form against the dense ones")
    bases = {
        each.name: search.base(each.shape, each.precision)
        for each in candidates
        if each.dense or each is best
    }
    timings = time_backends(
        {name: search.backend(base) for name, base in bases.items()},
        search.settings,
        threads=search.judged.workload.threads,
    )

    def timed(each: Candidate) -> Candidate:
        gain = 1.0 if each.dense else timings.ratio(DENSE.name(each.precision), each.name).median
        return replace(
            each,
            latency_ms=1e3 * timings.latency(each.name).median / len(search.judged.timed),
            speedup=timings.ratio(DENSE.name("fp32"), each.name).median,
            sparsity_gain=gain,
            busy=bool(timings.busy()),
        )

    return [timed(each) if each.name in bases else each for each in candidates]


def _note(best: Candidate, verdict: Quality, keep: float) -> str:
    """Return a line on the choice."""
    if verdict.keep < keep - ROUNDING:
        return f"no form keeps {keep:g}: the result is {best.name}, which keeps {verdict.keep:.4f}"
    gain = (
        f"{best.speedup:.2f}x as fast as the fused dense model in fp32, {best.sparsity_gain:.2f}x of it "
        "from sparsity alone"
    )
    if best.dense:
        return (
            f"no sparse form keeps {keep:g} and is faster: the result is {best.name}, which keeps "
            f"{verdict.keep:.4f}; {gain}"
        )
    return f"{best.name} keeps {verdict.keep:.4f} on texts that the search has not seen; {gain}"


def _record(
    search: FormSearch,
    environment: Environment,
    candidate: Candidate,
    verdicts: Mapping[str, Quality],
    best: str,
) -> Record:
    judged, verdict = search.judged, verdicts.get(candidate.name)
    measure = judged.search.measure
    fields = {**candidate.record(), **candidate.shape._asdict(), "sparsity": candidate.sparsity}
    del fields["shape"]
    return results.stamp(
        "optimize",
        {
            "environment": environment.record(),
            "workload": {**judged.workload.record(), "model": short_name(judged.name)},
            "form": candidate.name,
            **fields,
            "method": search.forms.method,
            "heal_minutes": search.forms.heal_minutes,
            "measure": measure.name,
            "labels": measure.labels,
            "judged": {"search": measure.count, "verdict": judged.verdict.measure.count},
            "keep": search.keep,
            "holds": candidate.holds(search.keep),
            "verdict": None if verdict is None else verdict.record(),
            "chosen": candidate.name == best,
        },
    )
