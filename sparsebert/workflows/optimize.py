"""The fastest form of a model on this machine whose quality stays above a bound: ``optimize``."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sparsebert import results
from sparsebert.bench.environment import Environment, detect
from sparsebert.bench.judged_texts import Batch, LabelledRows, prepare_judged_texts
from sparsebert.bench.runner import Settings, time_backends
from sparsebert.cost.precision import PRECISIONS, require_tolerance
from sparsebert.hf.model_card import extend_card
from sparsebert.one_shot.layer_problem import LAYER_METHODS
from sparsebert.pruning.granularity import kinds_in, parse_granularity, spelled_out
from sparsebert.quality.held_out import encoder_of
from sparsebert.quality.measures import Quality
from sparsebert.results import Record
from sparsebert.tasks.models import load_as_saved, short_name
from sparsebert.tasks.texts import read_texts
from sparsebert.tickets.provenance import weight_hash
from sparsebert.tickets.ticket import Ticket
from sparsebert.workflows.export import write_folder
from sparsebert.workflows.form_search import ROUNDING, Candidate, FormSearch, Journal
from sparsebert.workflows.pruned_forms import DENSE, PrunedForms, in_engine
from sparsebert_kernels.errors import unknown

# Single weights for fp32; panels that the paired engine reads in bf16 and in int8; whole neurons, which
# compaction removes.
GRANULARITIES = ("element", "panel(32,2)", "panel(32,4)", "neuron")
# File in the written folder: what was tried.
RECORDS = "optimize.jsonl"
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


def optimize(
    model: str | Path,
    texts: str | Path | Sequence[str],
    *,
    keep: float = 0.99,
    out: str | Path | None = None,
    labels: LabelledRows | None = None,
    precisions: Sequence[str] = PRECISIONS,
    granularities: Sequence[str] = GRANULARITIES,
    method: str = "sparsegpt",
    heal_minutes: float = 0.0,
    batch: int = 8,
    threads: int = 1,
    budget: float = 3.0,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda step: None,
) -> Optimized:
    """Search for the fastest form of a model on this machine whose quality stays above a bound.

    Forms differ in precision, granularity and sparsity; all run fused and skip padding. For each granularity,
    bisection finds the highest sparsity that holds the bound on the texts of the search, pruned in one shot
    by calibration and, with ``heal_minutes``, healed. The fastest form that holds is judged on texts that the
    search has not seen, and the next one after it if it fails there. The dense form in fp32 holds every
    bound.

    Args:
        model: Hub id or folder of a dense model: of sentence-transformers, for classes of texts or tokens,
            for questions, or an encoder alone.
        texts: A file of texts, or the texts.
        keep: Bound on quality after / before, above 0 and at most 1. Without labels, the mean cosine to the
            dense model's embeddings or logits. With labels, the lower end of the 90 % bootstrap interval of
            the metric above a constant guess, as a share of the dense model's.
        out: Folder to write, which loads as any other; None writes nothing. The folder ``OUT.search`` beside
            it keeps what was measured and healed until the search has ended: a killed one goes on from there.
        labels: Labelled rows to judge by.
        precisions: Precisions to try: of "fp32", "bf16" and "int8".
        granularities: Granularities to try, as for :func:`sparsebert.prune`; none tries dense forms alone.
        method: One-shot method for weights: "sparsegpt", "alps", "wanda" or "obs". Heads and neurons are
            pruned by ZipLM.
        heal_minutes: Minutes to train the weights that stay on the texts, at each of about four sparsities
            of a granularity; 0 trains nothing.
        batch: Texts per batch.
        threads: CPU threads.
        budget: Seconds of each timing.
        seed: Seed of the division of the texts.
        on_step: Called with a description of each step.

    Returns:
        The chosen form, and a record of each form that was tried.

    Raises:
        ValueError: An option is invalid, ``out`` exists, or as
            :func:`sparsebert.bench.judged_texts.prepare_judged_texts`.
        OSError: The model or the texts cannot be read.
    """
    folder = None if out is None else Path(out)
    _check(keep, folder, precisions, granularities, method, heal_minutes)
    lines = read_texts(texts) if isinstance(texts, str | Path) else list(texts)
    on_step(f"loading {model}")
    judged = prepare_judged_texts(str(model), lines, labels=labels, batch=batch, threads=threads, seed=seed)
    environment = detect()
    identity = {
        "weights": weight_hash(judged.model),
        "calibration": _digest(judged.calibration),
        "judged": _digest(judged.search.batches),
        "measure": judged.search.measure.name,
        "machine": environment.machine,
        "options": {
            "keep": keep,
            "method": method,
            "heal_minutes": heal_minutes,
            "batch": batch,
            "threads": threads,
            "seed": seed,
        },
    }
    with tempfile.TemporaryDirectory() as temporary:
        store = Path(temporary) / "search" if folder is None else folder.with_name(f"{folder.name}.search")
        journal = Journal(store, identity)
        forms = PrunedForms(judged, method, heal_minutes, store, on_step)
        search = FormSearch(judged, forms, keep, journal, Settings(budget=budget, retries=1), on_step)
        found = _search(search, environment, precisions, granularities)
        if folder is not None:
            on_step(f"writing {folder}")
            _write(found, str(model), folder)
        journal.delete()
    return found


def _search(
    search: FormSearch, environment: Environment, precisions: Sequence[str], granularities: Sequence[str]
) -> Optimized:
    """Search, choose, and return the chosen form with its timing against the dense ones."""
    candidates = [search.dense(precision) for precision in dict.fromkeys(("fp32", *precisions))]
    for granularity in granularities:
        candidates += search.pruned(granularity, precisions)
    chosen, verdicts = _choose(candidates, search)
    candidates = _timed_again(candidates, chosen, search)
    records = [_record(search, environment, each, verdicts, chosen.name) for each in candidates]
    final = next(each for each in candidates if each.name == chosen.name)
    note = _note(final, verdicts[chosen.name], search.keep)
    pruned, ticket = search.forms.make(chosen.shape)
    # As saved, so that labels keep the order that the user's model has.
    model = load_as_saved(search.judged.name).float()
    model.base_model.load_state_dict(pruned.base_model.state_dict(), strict=False)
    return Optimized(
        in_engine(model, ticket, chosen.precision, search.judged), ticket, records, chosen.name, note
    )


def _check(
    keep: float,
    folder: Path | None,
    precisions: Sequence[str],
    granularities: Sequence[str],
    method: str,
    heal_minutes: float,
) -> None:
    if not 0 < keep <= 1:
        hint = f"; did you mean {keep / 100:g}?" if 1 < keep <= 100 else ""
        raise ValueError(f"keep must be above 0 and at most 1, got {keep:g}{hint}")
    if not 0 <= heal_minutes < math.inf:
        raise ValueError(f"heal_minutes must be a finite number from 0, got {heal_minutes:g}")
    if folder is not None and folder.exists():
        raise ValueError(f"output folder {folder} already exists; choose another")
    if not precisions:
        raise ValueError(f"precisions must name at least one of {', '.join(PRECISIONS)}, got none")
    for precision in precisions:
        require_tolerance(precision)
    for granularity in granularities:
        if not kinds_in(granularity):
            parse_granularity(*spelled_out(granularity, None), None)
    if method not in LAYER_METHODS:
        raise unknown("one-shot method", method, LAYER_METHODS)


def _choose(candidates: Sequence[Candidate], search: FormSearch) -> tuple[Candidate, dict[str, Quality]]:
    """Return the fastest form that holds the bound on both parts of the texts, and the verdicts given.

    Where no form holds, the dense one in fp32 is returned. A sparse form must be faster than the dense one of
    its precision.
    """
    verdicts: dict[str, Quality] = {}

    def judged(candidate: Candidate) -> Quality:
        search.on_step(f"judging {candidate.name} on texts that the search has not seen")
        encoder = encoder_of(search.form(candidate.shape, candidate.precision).base_model)
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


def _timed_again(candidates: Sequence[Candidate], chosen: Candidate, search: FormSearch) -> list[Candidate]:
    """Return the candidates with the dense ones and the chosen one timed in alternation."""
    search.on_step("timing the chosen form against the dense ones")
    bases = {
        each.name: search.form(each.shape, each.precision).base_model
        for each in candidates
        if each.dense or each is chosen
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


def _note(chosen: Candidate, verdict: Quality, keep: float) -> str:
    """Return a line on the choice."""
    if verdict.keep < keep - ROUNDING:
        return f"no form keeps {keep:g}: the result is {chosen.name}, which keeps {verdict.keep:.4f}"
    gain = (
        f"{chosen.speedup:.2f}x as fast as the fused dense model in fp32, {chosen.sparsity_gain:.2f}x of it "
        "from sparsity alone"
    )
    if chosen.dense:
        return (
            f"no sparse form keeps {keep:g} and is faster: the result is {chosen.name}, which keeps "
            f"{verdict.keep:.4f}; {gain}"
        )
    return f"{chosen.name} keeps {verdict.keep:.4f} on texts that the search has not seen; {gain}"


def _record(
    search: FormSearch,
    environment: Environment,
    candidate: Candidate,
    verdicts: Mapping[str, Quality],
    chosen: str,
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
            "chosen": candidate.name == chosen,
        },
    )


def _write(found: Optimized, name: str, folder: Path) -> None:
    """Write the chosen form, with tokenizer and modules of sentence-transformers, and what was tried."""

    def card(text: str | None, unfinished: Path) -> str:
        results.append(unfinished / RECORDS, found.records)
        return extend_card(text, unfinished, name=folder.name)

    write_folder(found.model, name, folder, card, sparse=True)


def _digest(batches: Sequence[Batch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(batch["input_ids"].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
