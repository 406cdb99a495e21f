"""The fastest form of a model on this machine whose quality stays above a bound: ``optimize``."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sparsebert import results
from sparsebert.atomic import replacing
from sparsebert.bench.environment import Environment, detect
from sparsebert.bench.judged_texts import Batch, JudgedTexts, LabelledRows, prepare_judged_texts
from sparsebert.bench.runner import Settings, time_backends
from sparsebert.cost.precision import PRECISIONS, require_tolerance
from sparsebert.one_shot.layer_problem import LAYER_METHODS
from sparsebert.pruning.granularity import kinds_in, parse_granularity, spelled_out
from sparsebert.quality.held_out import encoder_of
from sparsebert.quality.measures import Quality
from sparsebert.results import Record
from sparsebert.tasks.models import load_as_saved, short_name
from sparsebert.tasks.texts import read_texts
from sparsebert.tickets.provenance import weight_hash
from sparsebert.tickets.ticket import Ticket
from sparsebert.workflows.export import export_model
from sparsebert.workflows.form_search import ROUNDING, Candidate, FormSearch, Journal, fuse_option, in_engine
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
    batch: int = 8,
    threads: int = 1,
    budget: float = 3.0,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda step: None,
) -> Optimized:
    """Search for the fastest form of a model on this machine whose quality stays above a bound.

    Forms differ in precision, granularity and sparsity; all run fused and skip padding. Each granularity is
    pruned once, by calibration without training, to the highest sparsity that holds the bound on the texts of
    the search. The fastest form that holds is judged on texts that the search has not seen, and the next one
    after it if it fails there. The dense form in fp32 holds every bound.

    Args:
        model: Hub id or folder of a dense model: of sentence-transformers, for classes of texts or tokens,
            for questions, or an encoder alone.
        texts: A file of texts, or the texts.
        keep: Bound on quality after / before, above 0 and at most 1. Without labels, the mean cosine to the
            dense model's embeddings or logits. With labels, the lower end of the 90 % bootstrap interval of
            the metric above a constant guess, as a share of the dense model's.
        out: Folder to write, which loads as any other; None writes nothing. ``OUT.search.jsonl`` beside it
            keeps what was measured until the search has ended: a killed search goes on from there.
        labels: Labelled rows to judge by.
        precisions: Precisions to try: of "fp32", "bf16" and "int8".
        granularities: Granularities to try, as for :func:`sparsebert.prune`; none tries dense forms alone.
        method: One-shot method of ``sparsebert.one_shot``. Heads, neurons and MLPs are pruned by magnitude.
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
    _check(keep, folder, precisions, granularities, method)
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
        "options": {"keep": keep, "method": method, "batch": batch, "threads": threads, "seed": seed},
    }
    journal = Journal(None if folder is None else _journal_of(folder), identity)
    settings = Settings(budget=budget, retries=1)
    search = FormSearch(judged, method, keep, journal, settings, on_step)
    candidates = [search.dense(precision) for precision in precisions]
    if "fp32" not in precisions:
        candidates.insert(0, search.dense("fp32"))
    for granularity in granularities:
        candidates += search.pruned(granularity, precisions)
    chosen, verdicts = _choose(candidates, search, keep)
    pruned, ticket = search.model_and_ticket(chosen.granularity, chosen.target)
    candidates = _timed_again(candidates, chosen, search)
    records = [
        _record(judged, environment, candidate, verdicts, chosen.name, keep, method)
        for candidate in candidates
    ]
    final = next(each for each in candidates if each.name == chosen.name)
    note = _note(final, verdicts[chosen.name], keep)
    if folder is not None:
        on_step(f"writing {folder}")
        _write(judged, pruned, ticket, chosen, folder, records)
        journal.delete()
    form = in_engine(copy.deepcopy(pruned), ticket, chosen.precision, judged)
    return Optimized(form, ticket, records, chosen.name, note)


def _check(
    keep: float, folder: Path | None, precisions: Sequence[str], granularities: Sequence[str], method: str
) -> None:
    if not 0 < keep <= 1:
        hint = f"; did you mean {keep / 100:g}?" if 1 < keep <= 100 else ""
        raise ValueError(f"keep must be above 0 and at most 1, got {keep:g}{hint}")
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


def _choose(
    candidates: Sequence[Candidate], search: FormSearch, keep: float
) -> tuple[Candidate, dict[str, Quality]]:
    """Return the fastest form that holds the bound on both parts of the texts, and the verdicts given.

    Where no form holds, the dense one in fp32 is returned.
    """
    dense = next(each for each in candidates if each.granularity is None and each.precision == "fp32")
    verdicts: dict[str, Quality] = {}
    for candidate in sorted(_worth_it(candidates, keep), key=lambda each: -each.speedup):
        quality = _verdict(candidate, search, verdicts)
        if quality.keep >= keep - ROUNDING:
            return candidate, verdicts
    _verdict(dense, search, verdicts)
    return dense, verdicts


def _worth_it(candidates: Sequence[Candidate], keep: float) -> list[Candidate]:
    """Return the forms that hold the bound in the search: dense ones, and sparse ones that beat them."""
    holding = [each for each in candidates if each.holds(keep)]
    return [each for each in holding if each.granularity is None or each.sparsity_gain >= LEAST_GAIN]


def _verdict(candidate: Candidate, search: FormSearch, verdicts: dict[str, Quality]) -> Quality:
    if candidate.name not in verdicts:
        search.on_step(f"judging {candidate.name} on texts that the search has not seen")
        judged = search.judged
        model, ticket = search.model_and_ticket(candidate.granularity, candidate.target)
        form = in_engine(copy.deepcopy(model), ticket, candidate.precision, judged)
        verdicts[candidate.name] = judged.verdict.quality_of(judged.head, encoder_of(form.base_model))
    return verdicts[candidate.name]


def _timed_again(candidates: Sequence[Candidate], chosen: Candidate, search: FormSearch) -> list[Candidate]:
    """Return the candidates with the dense ones and the chosen one timed in alternation."""
    search.on_step("timing the chosen form against the dense ones")
    final = [each for each in candidates if each.granularity is None or each is chosen]
    bases = {}
    for each in final:
        model, ticket = search.model_and_ticket(each.granularity, each.target)
        bases[each.name] = in_engine(copy.deepcopy(model), ticket, each.precision, search.judged).base_model
    timings = time_backends(
        {name: search.backend(base) for name, base in bases.items()},
        search.settings,
        threads=search.judged.workload.threads,
    )
    timed = []
    for each in candidates:
        if each.name in bases:
            dense = f"dense {each.precision}"
            each = replace(
                each,
                latency_ms=1e3 * timings.latency(each.name).median / len(search.judged.timed),
                speedup=timings.ratio("dense fp32", each.name).median,
                sparsity_gain=timings.ratio(dense, each.name).median if each.granularity else 1.0,
                busy=bool(timings.busy()),
            )
        timed.append(each)
    return timed


def _note(chosen: Candidate, verdict: Quality, keep: float) -> str:
    """Return a line on the choice."""
    if verdict.keep < keep - ROUNDING:
        return f"no form keeps {keep:g}: the result is {chosen.name}, which keeps {verdict.keep:.4f}"
    gain = (
        f"{chosen.speedup:.2f}x as fast as the fused dense model in fp32, {chosen.sparsity_gain:.2f}x of it "
        "from sparsity alone"
    )
    if chosen.granularity is None:
        return (
            f"no sparse form keeps {keep:g} and is faster: the result is {chosen.name}, which keeps "
            f"{verdict.keep:.4f}; {gain}"
        )
    return f"{chosen.name} keeps {verdict.keep:.4f} on texts that the search has not seen; {gain}"


def _record(
    judged: JudgedTexts,
    environment: Environment,
    candidate: Candidate,
    verdicts: Mapping[str, Quality],
    chosen: str,
    keep: float,
    method: str,
) -> Record:
    verdict, workload = verdicts.get(candidate.name), judged.workload
    fields = {name: value for name, value in asdict(candidate).items() if name != "quality"}
    return results.stamp(
        "optimize",
        {
            "environment": environment.record(),
            "workload": {**workload.record(), "model": short_name(judged.name)},
            "form": candidate.name,
            **fields,
            "method": method,
            "measure": judged.search.measure.name,
            "labels": judged.search.measure.labels,
            "judged": {"search": judged.search.measure.count, "verdict": judged.verdict.measure.count},
            "keep": keep,
            "quality": candidate.quality.record(),
            "holds": candidate.holds(keep),
            "verdict": None if verdict is None else verdict.record(),
            "chosen": candidate.name == chosen,
        },
    )


def _write(
    judged: JudgedTexts,
    pruned: Any,
    ticket: Ticket,
    chosen: Candidate,
    folder: Path,
    records: Sequence[Record],
) -> None:
    """Write the chosen form, with tokenizer and modules of sentence-transformers, and what was tried."""
    batch = judged.workload.batch
    options: dict[str, Any] = {
        "sparse": True,
        "batch": batch,
        "length": max(1, round(judged.tokens / batch)),
        "tolerance": chosen.precision,
        "fuse": fuse_option(judged),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, replacing(folder) as unfinished:
        source = judged.name
        if chosen.granularity is not None:
            # As saved, so that labels keep the order that the user's model has.
            changed = load_as_saved(judged.name).float()
            changed.base_model.load_state_dict(pruned.base_model.state_dict(), strict=False)
            source = str(Path(temporary) / "changed")
            export_model(judged.name, Path(source), None, sparse=False)
            changed.save_pretrained(source)
        export_model(source, unfinished, ticket, **options)
        results.append(unfinished / RECORDS, records)


def _journal_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.search.jsonl")


def _digest(batches: Sequence[Batch]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for batch in batches:
        digest.update(batch["input_ids"].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
