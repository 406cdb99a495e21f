"""The pruned models that `optimize` judges and times: pruned by calibration, and healed if there is time."""

from __future__ import annotations

import contextlib
import copy
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import linear

from sparsebert.bench.contention import usable_cores
from sparsebert.bench.judged_texts import JudgedTexts
from sparsebert.healing.heal import heal_
from sparsebert.healing.settings import HealingSettings
from sparsebert.one_shot import prune_
from sparsebert.one_shot.error_curves import ErrorCurves
from sparsebert.planning.engine_choice import why_not_fusible
from sparsebert.pruning import prune
from sparsebert.pruning.granularity import kinds_in
from sparsebert.sparsify import sparsify_
from sparsebert.tickets.ticket import Ticket
from sparsebert.workflows.heal import as_sentences
from sparsebert.workflows.model_store import ModelStore

# The method for heads and neurons, whatever method prunes weights.
UNIT_METHOD = "ziplm"
# Pruned models that are kept in memory; others are read again.
MAX_KEPT = 2
# Tokens, inputs and outputs of the product that shows how many threads are fastest, and how often it is run.
_SAMPLE, _SAMPLES = (512, 768, 768), 5


class Shape(NamedTuple):
    """What a form keeps, whatever its precision.

    Attributes:
        granularity: Granularity of the pruning; None for the dense model.
        sparsity: Sparsity that is asked for.
        healed: Whether the weights that stay were trained.
    """

    granularity: str | None = None
    sparsity: float = 0.0
    healed: bool = False

    def name(self, precision: str) -> str:
        """Return the name of the form in a precision."""
        if self.granularity is None:
            return f"dense {precision}"
        return f"{self.granularity} {self.sparsity:.0%}{' healed' if self.healed else ''} {precision}"


DENSE = Shape()


@dataclass
class PrunedForms:
    """Makes pruned models of a dense one, each once.

    Attributes:
        judged: The dense model and its texts.
        method: One-shot method for weights.
        heal_minutes: Minutes of each healing.
        store: Folder for the models and for what pruning them has measured.
        on_step: Called with a description of each step.
    """

    judged: JudgedTexts
    method: str
    heal_minutes: float
    store: Path
    on_step: Callable[[str], None]
    _kept: OrderedDict[Shape, tuple[Any, Ticket]] = field(default_factory=OrderedDict)

    def make(self, shape: Shape) -> tuple[Any, Ticket]:
        """Return the model with its head in plain linear layers, and its ticket."""
        if shape.granularity is None:
            return self.judged.model, prune(self.judged.model, sparsity=0.0)
        if shape not in self._kept:
            self._kept[shape] = self._made(shape)
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return self._kept[shape]

    def _made(self, shape: Shape) -> tuple[Any, Ticket]:
        """Return a model that an earlier call has made, or make it now."""
        name = _file_name(f"{shape.granularity} {shape.sparsity:.0%} {'healed' if shape.healed else ''}")
        saved = ModelStore(self.judged.model, self.store / name)
        if (stored := saved.load()) is not None:
            return stored
        unfinished = self.store / f"{name}.unfinished"
        make = self._healed if shape.healed else self._pruned
        with all_cores():
            model, ticket = make(shape, unfinished)
        saved.save(model, ticket)
        unfinished.unlink(missing_ok=True)
        return model, ticket

    def _pruned(self, shape: Shape, unfinished: Path) -> tuple[Any, Ticket]:
        granularity = str(shape.granularity)
        self.on_step(f"pruning {granularity} to {shape.sparsity:.0%}")
        model = copy.deepcopy(self.judged.model)
        ticket = prune_(
            model,
            UNIT_METHOD if kinds_in(granularity) else self.method,
            data=self.judged.calibration,
            sparsity=shape.sparsity,
            granularity=granularity,
            magnitude_where_singular=not kinds_in(granularity),
            checkpoint=unfinished,
            curves=ErrorCurves(self.store / f"{_file_name(granularity)}.curves.json"),
        )
        return model, ticket

    def _healed(self, shape: Shape, unfinished: Path) -> tuple[Any, Ticket]:
        pruned, ticket = self.make(shape._replace(healed=False))
        model = copy.deepcopy(pruned)
        self.on_step(f"healing {shape.granularity} at {shape.sparsity:.0%}")
        settings = as_sentences(HealingSettings(minutes=self.heal_minutes), Path(self.judged.name))
        healing = heal_(
            model,
            self.judged.training,
            teacher=self.judged.model,
            tokenizer=self.judged.tokenizer,
            ticket=ticket,
            checkpoint=unfinished,
            **asdict(settings),
        )
        history = [*ticket.metadata.get("history", ()), {"operation": "heal", **healing.record()}]
        return model, Ticket(ticket.masks, metadata={**ticket.metadata, "history": history})


def _file_name(words: str) -> str:
    return re.sub(r"\W+", "-", words).strip("-")


@contextlib.contextmanager
def all_cores() -> Iterator[None]:
    """Let torch use all cores for a while, for work that is not timed; one where others are busy."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(_fastest_threads())
        yield
    finally:
        torch.set_num_threads(before)


def _fastest_threads() -> int:
    """Return the number of threads, one or one for each core, on which a product takes less time now.

    Threads wait for each other at the end of each operation: one whose core is busy delays all of them.
    """
    if (cores := usable_cores()) == 1:
        return 1
    tokens, inputs, outputs = _SAMPLE
    states, weight = torch.ones(tokens, inputs), torch.ones(outputs, inputs)

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        linear(states, weight)
        began = time.perf_counter()
        for _ in range(_SAMPLES):
            linear(states, weight)
        return time.perf_counter() - began

    return min((cores, 1), key=seconds)


def in_engine(model: Any, ticket: Ticket, precision: str, judged: JudgedTexts) -> Any:
    """Pack a model by its ticket for the native engine, in place, and return it.

    Models that answer questions are fused too: their logits at padding change, which no answer reads.
    """
    demanded = judged.head.kind == "span" and why_not_fusible(model) is None
    sparsify_(model, ticket, tokens=judged.tokens, tolerance=precision, fuse=True if demanded else None)
    return model.eval()
