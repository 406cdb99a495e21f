"""The search of `optimize`: which sparsity each granularity and precision bears, and how fast the form is."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
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
from sparsebert.quality.held_out import encoder_of
from sparsebert.quality.measures import Quality
from sparsebert.workflows.pruned_forms import DENSE, PrunedForms, Shape, all_cores, in_engine

# Sparsities that a search may settle on.
SPARSITIES = tuple(round(0.05 * step, 2) for step in range(2, 20))
# Rounding errors of a dense model in fp32 are not a loss of quality.
ROUNDING = 1e-6
# Sparsities that are tried below the one that holds in fp32, where a lower precision costs quality too.
MAX_STEPS_BACK = 3
# Steps above the sparsity that holds without healing that healing is tried at.
MAX_STEPS_HEALED = 8


@dataclass(frozen=True)
class Candidate:
    """A form of the model that was judged and timed.

    Attributes:
        shape: What it keeps.
        precision: Lowest precision in which the form may compute.
        sparsity: Sparsity of its ticket.
        quality: Quality on the texts of the search.
        latency_ms: Median milliseconds of a batch.
        speedup: Dense time in fp32 / its time, both fused and in the same batches.
        sparsity_gain: Dense time in the same precision, fusion and packing / its time.
        model_bytes: Bytes of the weights in memory.
        busy: Whether other programs disturbed the timing.
    """

    shape: Shape
    precision: str
    sparsity: float
    quality: Quality
    latency_ms: float
    speedup: float
    sparsity_gain: float
    model_bytes: int
    busy: bool

    @property
    def dense(self) -> bool:
        """Whether it is a dense form."""
        return self.shape.granularity is None

    @property
    def name(self) -> str:
        """Name in tables."""
        return self.shape.name(self.precision)

    def holds(self, keep: float) -> bool:
        """Whether the quality on the texts of the search is surely above a bound."""
        return self.quality.low >= keep - ROUNDING

    def record(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Candidate:
        """Return the candidate of a ``record``."""
        parts = {"shape": Shape(*record["shape"]), "quality": Quality(**record["quality"])}
        return cls(**{**record, **parts})


class Journal:
    """What a search has measured, in a folder that a killed search reads when it is started again.

    Args:
        folder: The folder; it is created.
        identity: Model, texts, machine and options, JSON values.

    Raises:
        ValueError: The folder belongs to another search.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self._file = folder / "journal.jsonl"
        self._entries: dict[str, Any] = {}
        if not self._file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            results.append(self._file, [results.stamp("optimize_search", {"identity": dict(identity)})])
            return
        first, *rows = results.read(self._file)
        if first.get("identity") != dict(identity):
            raise ValueError(
                f"{folder} belongs to a search with another model, texts or options: delete it, or choose "
                "another output folder"
            )
        self._entries = {row["key"]: row["value"] for row in rows}

    def get(self, *key: Any) -> Any:
        """Return what was measured under a key; None if nothing was."""
        return self._entries.get(str(key))

    def add(self, value: Any, *key: Any) -> None:
        """Keep a measurement."""
        self._entries[str(key)] = value
        results.append(self._file, [results.stamp("optimize_search", {"key": str(key), "value": value})])

    def delete(self) -> None:
        """Delete the folder of a finished search."""
        shutil.rmtree(self.folder)


def _last_true(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the last index between ``low``, which holds, and ``high``, which does not, that holds."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


@dataclass
class FormSearch:
    """Judges and times forms of one model.

    Attributes:
        judged: The dense model and its texts.
        forms: Makes the pruned models.
        keep: Bound of the quality.
        journal: What an earlier call has measured.
        settings: Effort of each timing.
        on_step: Called with a description of each step.
    """

    judged: JudgedTexts
    forms: PrunedForms
    keep: float
    journal: Journal
    settings: Settings
    on_step: Step
    _dense: dict[str, Any] = field(default_factory=dict)
    _ends: dict[bool, int] = field(default_factory=dict)

    def dense(self, precision: str) -> Candidate:
        """Return the dense model in the native engine of a precision."""
        return self._candidate(DENSE, precision)

    def pruned(self, granularity: str, precisions: Sequence[str]) -> list[Candidate]:
        """Return what was measured of a granularity.

        In each precision, these are sparsities from the highest that holds in fp32 down to one that holds;
        with healing, the same again for healed models.
        """
        plain = self._most_sparsity(granularity, False, -1, len(SPARSITIES))
        candidates = self._down_from(granularity, False, plain, -1, precisions)
        if self.forms.heal_minutes:
            limit = min(plain + 1 + MAX_STEPS_HEALED, len(SPARSITIES))
            healed = self._most_sparsity(granularity, True, plain, limit)
            candidates += self._down_from(granularity, True, healed, plain, precisions)
        return candidates

    def _down_from(
        self, granularity: str, healed: bool, most: int, above: int, precisions: Sequence[str]
    ) -> list[Candidate]:
        """Return forms in each precision, from a sparsity down to one that holds, all above another."""
        candidates = []
        for precision in precisions:
            for step in range(most, max(most - MAX_STEPS_BACK, above), -1):
                shape = Shape(granularity, SPARSITIES[step], healed)
                candidates.append(self._candidate(shape, precision))
                if candidates[-1].holds(self.keep):
                    break
        return candidates

    def _most_sparsity(self, granularity: str, healed: bool, low: int, high: int) -> int:
        """Return the index of the highest sparsity that holds in fp32, by bisection; ``low`` if none.

        After the first granularity, the bisection is of the sparsities below the end of the one before, or of
        those above if that holds.

        Args:
            granularity: The granularity.
            healed: Whether models are healed.
            low: Index of a sparsity that holds; -1 for the dense model.
            high: Index of one that need not be tried.
        """

        def holds(index: int) -> bool:
            quality = self._masked_quality(Shape(granularity, SPARSITIES[index], healed))
            return quality.low >= self.keep - ROUNDING

        if healed in self._ends:
            before = min(max(self._ends[healed], low), high - 1)
            if before > low and not holds(before):
                high = before
            else:
                low = before
                high = high if low + 1 < high and holds(low + 1) else low + 1
        self._ends[healed] = _last_true(holds, low, high)
        return self._ends[healed]

    def _masked_quality(self, shape: Shape) -> Quality:
        """Return the quality of a pruned model that runs dense in fp32."""
        if (stored := self.journal.get(*shape)) is not None:
            return Quality(**stored)
        model, _ = self.forms.make(shape)
        self.on_step(f"judging {shape.name('masked')}")
        with all_cores():
            quality = self.judged.search.quality_of(self.judged.head, encoder_of(model.base_model))
        self.journal.add(quality.record(), *shape)
        return quality

    def _candidate(self, shape: Shape, precision: str) -> Candidate:
        """Judge and time a form against the dense one of its precision."""
        if (stored := self.journal.get(*shape, precision)) is not None:
            return Candidate.of_record(stored)
        _, ticket = self.forms.make(shape)
        name = shape.name(precision)
        self.on_step(f"timing {name}")
        dense = shape == DENSE
        baseline = "fp32" if dense else precision
        base = self.base(shape, precision)
        with all_cores():
            quality = self.judged.search.quality_of(self.judged.head, encoder_of(base))
        other = DENSE.name(baseline)
        sides = {other: self.backend(self.base(DENSE, baseline)), name: self.backend(base)}
        timings = time_backends(sides, self.settings, threads=self.judged.workload.threads)
        gain = timings.ratio(other, name).median
        candidate = Candidate(
            shape,
            precision,
            ticket.sparsity,
            quality,
            latency_ms=1e3 * timings.latency(name).median / len(self.judged.timed),
            speedup=gain if baseline == "fp32" else gain * self.dense(precision).speedup,
            sparsity_gain=1.0 if dense else gain,
            model_bytes=model_bytes(base),
            busy=bool(timings.busy()),
        )
        self.journal.add(candidate.record(), *shape, precision)
        return candidate

    def base(self, shape: Shape, precision: str) -> Any:
        """Return an encoder in the native engine of a precision; dense ones are made once."""
        if shape == DENSE and precision in self._dense:
            return self._dense[precision]
        model, ticket = self.forms.make(shape)
        base = in_engine(copy.deepcopy(model), ticket, precision, self.judged).base_model
        if shape == DENSE:
            self._dense[precision] = base
        return base

    def backend(self, base: Any) -> BuiltBackend:
        """Return an encoder as a backend to time."""

        @torch.inference_mode()
        def forward() -> None:
            for batch in self.judged.timed:
                base(**batch)

        return BuiltBackend(run=on_wall(forward), answers=list)
