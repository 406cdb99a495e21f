"""The search of `optimize`: which sparsity each granularity and precision bears, and how fast the form is."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sparsebert import results
from sparsebert.bench.judged_texts import JudgedTexts
from sparsebert.bench.memory import model_bytes
from sparsebert.bench.providers import BuiltBackend
from sparsebert.bench.runner import Settings, Step, time_backends
from sparsebert.bench.timer import on_wall
from sparsebert.one_shot.prune_in_place import prune_
from sparsebert.planning.engine_choice import why_not_fusible
from sparsebert.pruning import prune
from sparsebert.pruning.granularity import kinds_in
from sparsebert.quality.held_out import encoder_of
from sparsebert.quality.measures import Quality
from sparsebert.sparsify import sparsify_
from sparsebert.tickets.ticket import Ticket

# Sparsities that a search may settle on.
SPARSITIES = tuple(round(0.05 * step, 2) for step in range(2, 20))
# Rounding errors of a dense model in fp32 are not a loss of quality.
ROUNDING = 1e-6
# Sparsities that are tried below the one that holds in fp32, where a lower precision costs quality too.
MAX_STEPS_BACK = 3
# Pruned models that are kept in memory; others are pruned again, with the same result.
MAX_KEPT = 2


@dataclass(frozen=True)
class Candidate:
    """A form of the model that was judged and timed.

    Attributes:
        granularity: Granularity of the pruning; None for the dense model.
        target: Sparsity that was asked for.
        sparsity: Sparsity of the ticket.
        precision: Lowest precision in which the form may compute.
        quality: Quality on the texts of the search.
        latency_ms: Median milliseconds of a batch.
        speedup: Dense time in fp32 / its time, both fused and in the same batches.
        sparsity_gain: Dense time in the same precision, fusion and packing / its time.
        model_bytes: Bytes of the weights in memory.
        busy: Whether other programs disturbed the timing.
    """

    granularity: str | None
    target: float
    sparsity: float
    precision: str
    quality: Quality
    latency_ms: float
    speedup: float
    sparsity_gain: float
    model_bytes: int
    busy: bool

    @property
    def name(self) -> str:
        """Name in tables."""
        if self.granularity is None:
            return f"dense {self.precision}"
        return f"{self.granularity} {self.precision} {self.target:.0%}"

    def holds(self, keep: float) -> bool:
        """Whether the quality on the texts of the search is surely above a bound."""
        return self.quality.low >= keep - ROUNDING


class Journal:
    """What a search has measured, in a file that a killed search reads when it is started again.

    Args:
        path: The file; None keeps nothing.
        identity: Model, texts, machine and options, JSON values.

    Raises:
        ValueError: The file belongs to another search.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self._path = path
        self._entries: dict[str, Any] = {}
        if path is None:
            return
        if not path.exists():
            results.append(path, [results.stamp("optimize_search", {"identity": dict(identity)})])
            return
        first, *rows = results.read(path)
        if first.get("identity") != dict(identity):
            raise ValueError(
                f"{path} belongs to a search with another model, texts or options: delete it, or choose "
                "another output folder"
            )
        self._entries = {row["key"]: row["value"] for row in rows}

    def get(self, *key: Any) -> Any:
        """Return what was measured under a key; None if nothing was."""
        return self._entries.get(str(key))

    def add(self, value: Any, *key: Any) -> None:
        """Keep a measurement."""
        self._entries[str(key)] = value
        if self._path is not None:
            results.append(self._path, [results.stamp("optimize_search", {"key": str(key), "value": value})])

    def delete(self) -> None:
        """Delete the file of a finished search."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


@dataclass
class FormSearch:
    """Prunes, judges and times forms of one model.

    Attributes:
        judged: The dense model and its texts.
        method: One-shot method; granularities of units across matrices are pruned by magnitude.
        keep: Bound of the quality.
        journal: What an earlier call has measured.
        settings: Effort of each timing.
        on_step: Called with a description of each step.
    """

    judged: JudgedTexts
    method: str
    keep: float
    journal: Journal
    settings: Settings
    on_step: Step
    _pruned: OrderedDict[tuple[str, float], tuple[Any, Ticket]] = field(default_factory=OrderedDict)
    _dense: dict[str, Any] = field(default_factory=dict)

    def dense(self, precision: str) -> Candidate:
        """Return the dense model in the native engine of a precision."""
        return self._candidate(None, 0.0, precision)

    def pruned(self, granularity: str, precisions: Sequence[str]) -> list[Candidate]:
        """Return what was measured of a granularity: in each precision, sparsities down to one that holds."""
        most = self._most_sparsity(granularity)
        candidates = []
        for precision in precisions:
            for step in range(most, max(most - MAX_STEPS_BACK, -1), -1):
                candidates.append(self._candidate(granularity, SPARSITIES[step], precision))
                if candidates[-1].holds(self.keep):
                    break
        return candidates

    def _most_sparsity(self, granularity: str) -> int:
        """Return the index of the highest sparsity whose quality holds in fp32, by bisection; -1 for none."""
        low, high = -1, len(SPARSITIES)
        while high - low > 1:
            middle = (low + high) // 2
            if self._masked_quality(granularity, SPARSITIES[middle]).low >= self.keep - ROUNDING:
                low = middle
            else:
                high = middle
        return low

    def _masked_quality(self, granularity: str, sparsity: float) -> Quality:
        """Return the quality of a pruned model that runs dense in fp32."""
        if (stored := self.journal.get(granularity, sparsity)) is not None:
            return Quality(**stored)
        self.on_step(f"pruning {granularity} to {sparsity:.0%}")
        model, _ = self.model_and_ticket(granularity, sparsity)
        self.on_step(f"judging {granularity} at {sparsity:.0%}")
        quality = self.judged.search.quality_of(self.judged.head, encoder_of(model.base_model))
        self.journal.add(quality.record(), granularity, sparsity)
        return quality

    def model_and_ticket(self, granularity: str | None, sparsity: float) -> tuple[Any, Ticket]:
        """Return the pruned model, with its changed weights, and its ticket."""
        if granularity is None:
            return self.judged.model, prune(self.judged.model, sparsity=0.0)
        key = granularity, sparsity
        if key not in self._pruned:
            model = copy.deepcopy(self.judged.model)
            if kinds_in(granularity):
                ticket = prune(model, "magnitude", sparsity=sparsity, granularity=granularity)
                ticket.apply_(model)
            else:
                ticket = prune_(
                    model,
                    self.method,
                    data=self.judged.calibration,
                    sparsity=sparsity,
                    granularity=granularity,
                    magnitude_where_singular=True,
                )
            self._pruned[key] = model, ticket
            if len(self._pruned) > MAX_KEPT:
                self._pruned.popitem(last=False)
        return self._pruned[key]

    def _candidate(self, granularity: str | None, sparsity: float, precision: str) -> Candidate:
        """Judge and time a form against the dense one of its precision."""
        if (stored := self.journal.get(granularity, sparsity, precision)) is not None:
            return Candidate(**{**stored, "quality": Quality(**stored["quality"])})
        model, ticket = self.model_and_ticket(granularity, sparsity)
        dense = granularity is None
        baseline = "fp32" if dense else precision
        name = f"dense {precision}" if dense else f"{granularity} {sparsity:.0%} {precision}"
        self.on_step(f"timing {name}")
        base = self._dense_base(precision) if dense else self._form(model, ticket, precision).base_model
        quality = self.judged.search.quality_of(self.judged.head, encoder_of(base))
        sides = {"form": self.backend(base), "dense": self.backend(self._dense_base(baseline))}
        timings = time_backends(sides, self.settings, threads=self.judged.workload.threads)
        gain = timings.ratio("dense", "form").median
        candidate = Candidate(
            granularity,
            sparsity,
            ticket.sparsity,
            precision,
            quality,
            latency_ms=1e3 * timings.latency("form").median / len(self.judged.timed),
            speedup=gain if baseline == "fp32" else gain * self.dense(precision).speedup,
            sparsity_gain=1.0 if dense else gain,
            model_bytes=model_bytes(base),
            busy=bool(timings.busy()),
        )
        self.journal.add(asdict(candidate), granularity, sparsity, precision)
        return candidate

    def _dense_base(self, precision: str) -> Any:
        if precision not in self._dense:
            self._dense[precision] = self._form(*self.model_and_ticket(None, 0.0), precision).base_model
        return self._dense[precision]

    def backend(self, base: Any) -> BuiltBackend:
        """Return an encoder as a backend to time."""

        @torch.inference_mode()
        def forward() -> None:
            for batch in self.judged.timed:
                base(**batch)

        return BuiltBackend(run=on_wall(forward), answers=list)

    def _form(self, model: Any, ticket: Ticket, precision: str) -> Any:
        return in_engine(copy.deepcopy(model), ticket, precision, self.judged)


def in_engine(model: Any, ticket: Ticket, precision: str, judged: JudgedTexts) -> Any:
    """Pack a model by its ticket for the native engine, in place, and return it.

    Models that answer questions are fused too: their logits at padding change, which no answer reads.
    """
    sparsify_(model, ticket, tokens=judged.tokens, tolerance=precision, fuse=fuse_option(judged))
    return model.eval()


def fuse_option(judged: JudgedTexts) -> bool | None:
    """Return the option ``fuse`` of ``sparsify_`` for the forms of a model."""
    return True if judged.head.kind == "span" and why_not_fusible(judged.model) is None else None
