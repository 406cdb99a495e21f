"""The fastest form of a model on this machine whose quality stays above a bound: ``optimize``."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebert.accounting.run_account import RunAccount
from sparsebert.cost.precision import PRECISIONS, require_tolerance
from sparsebert_kernels.errors import unknown

if TYPE_CHECKING:
    from sparsebert.bench.judged_texts import Batch, LabelledRows
    from sparsebert.workflows.form_choice import Optimized

# Single weights for fp32; panels that the paired engine reads in bf16 and in int8; whole neurons, which
# compaction removes.
GRANULARITIES = ("element", "panel(32,2)", "panel(32,4)", "neuron")
# File in the written folder: what was tried.
RECORDS = "optimize.jsonl"


def optimize(
    model: str | Path,
    texts: str | Path | Sequence[str],
    *,
    keep: float = 0.99,
    out: str | Path | None = None,
    labels: LabelledRows | None = None,
    precisions: Sequence[str] = PRECISIONS,
    granularities: Sequence[str] = GRANULARITIES,
    method: str = "alps",
    heal_minutes: float = 0.0,
    batch: int = 8,
    threads: int = 1,
    budget: float = 3.0,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda step: None,
    account: RunAccount | None = None,
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
            it keeps what was measured, pruned and healed until the search has ended: a killed one goes on
            from there.
        labels: Labelled rows to judge by.
        precisions: Precisions to try: of "fp32", "bf16" and "int8".
        granularities: Granularities to try, as for :func:`sparsebert.prune`; none tries dense forms alone.
        method: One-shot method for weights: "alps", "sparsegpt", "wanda" or "obs". Heads and neurons are
            pruned by ZipLM.
        heal_minutes: Minutes to train the weights that stay on the texts, at each of about four sparsities
            of a granularity; 0 trains nothing.
        batch: Texts per batch.
        threads: CPU threads.
        budget: Seconds of each timing.
        seed: Seed of the division of the texts.
        on_step: Called with a description of each step.
        account: Measures the search; None for one of its own.

    Returns:
        The chosen form, and a record of each form that was tried.

    Raises:
        ValueError: An option is invalid, ``out`` exists, or as
            :func:`sparsebert.bench.judged_texts.prepare_judged_texts`.
        OSError: The model or the texts cannot be read.
    """
    from sparsebert.bench.environment import detect
    from sparsebert.bench.judged_texts import prepare_judged_texts
    from sparsebert.bench.runner import Settings
    from sparsebert.healing.texts import MIN_TEXTS
    from sparsebert.tasks.texts import read_texts
    from sparsebert.tickets.provenance import weight_hash
    from sparsebert.workflows.form_choice import search_and_choose
    from sparsebert.workflows.form_search import FormSearch, Journal
    from sparsebert.workflows.pruned_forms import PrunedForms

    folder = None if out is None else Path(out)
    _check(keep, folder, precisions, granularities, method, heal_minutes)
    lines = read_texts(texts) if isinstance(texts, str | Path) else list(texts)
    account = account or RunAccount()
    store = None if folder is None else folder.with_name(f"{folder.name}.search")
    with (
        account.metered(folder, unfinished=[] if store is None else [store]),
        tempfile.TemporaryDirectory() as temporary,
    ):
        on_step(f"loading {model}")
        judged = prepare_judged_texts(
            str(model), lines, labels=labels, batch=batch, threads=threads, seed=seed
        )
        if heal_minutes and len(judged.training) < MIN_TEXTS:
            raise ValueError(
                f"healing needs {MIN_TEXTS} texts beside those that judge, got {len(judged.training)}: pass "
                "more texts, or no minutes to heal"
            )
        account.identify(
            model=judged.model,
            tokenizer=judged.tokenizer,
            texts=lines,
            labels=None if labels is None else labels.rows,
        )
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
        store = store or Path(temporary) / "search"
        journal = Journal(store, identity)
        forms = PrunedForms(judged, method, heal_minutes, store, on_step)
        search = FormSearch(judged, forms, keep, journal, Settings(budget=budget, retries=1), on_step)
        result = search_and_choose(search, environment, precisions, granularities)
        _add_account(result, account)
        if folder is not None:
            on_step(f"writing {folder}")
            _write(result, str(model), folder)
        journal.delete()
    return result


def _check(
    keep: float,
    folder: Path | None,
    precisions: Sequence[str],
    granularities: Sequence[str],
    method: str,
    heal_minutes: float,
) -> None:
    import sparsebert.one_shot.all_methods  # noqa: F401  (registers the methods)
    from sparsebert.one_shot.layer_problem import LAYER_METHODS
    from sparsebert.pruning.granularity import kinds_in, parse_granularity, spelled_out

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


def _add_account(result: Optimized, account: RunAccount) -> None:
    """Add the fingerprints to all records, and the resources of the search to that of the chosen form."""
    accounted = account.record()
    for row in result.records:
        row["fingerprints"] = accounted["fingerprints"]
        row["resources"] = accounted["resources"] if row["chosen"] else None


def _write(result: Optimized, name: str, folder: Path) -> None:
    """Write the chosen form, with tokenizer and modules of sentence-transformers, and what was tried."""

    from sparsebert import results
    from sparsebert.hf.model_card import extend_card
    from sparsebert.workflows.export import write_folder

    def card(text: str | None, unfinished: Path) -> str:
        results.append(unfinished / RECORDS, result.records)
        return extend_card(text, unfinished, name=folder.name)

    write_folder(result.model, name, folder, card, sparse=True)


def _digest(batches: Sequence[Batch]) -> str:
    import torch

    digest = hashlib.sha256()
    for batch in batches:
        digest.update(batch["input_ids"].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
