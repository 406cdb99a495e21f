"""The pruned models that `optimize` judges and times: pruned by calibration, and healed if there is time."""

from __future__ import annotations

import contextlib
import copy
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from sparsebert.atomic import replacing
from sparsebert.bench.contention import usable_cores
from sparsebert.bench.judged_texts import JudgedTexts
from sparsebert.healing.heal import heal_
from sparsebert.healing.settings import HealingSettings
from sparsebert.one_shot import prune_
from sparsebert.planning.engine_choice import why_not_fusible
from sparsebert.pruning import prune
from sparsebert.pruning.granularity import kinds_in
from sparsebert.sparsify import sparsify_
from sparsebert.tickets.ticket import Ticket
from sparsebert.workflows.heal import as_sentences

# The method for heads and neurons, whatever method prunes weights.
UNIT_METHOD = "ziplm"
# Pruned models that are kept in memory; others are pruned again, with the same result.
MAX_KEPT = 2


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
        store: Folder for healed models.
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
            with all_cores():
                self._kept[shape] = self._healed(shape) if shape.healed else self._pruned(shape)
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return self._kept[shape]

    def _pruned(self, shape: Shape) -> tuple[Any, Ticket]:
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
        )
        return model, ticket

    def _healed(self, shape: Shape) -> tuple[Any, Ticket]:
        """Return a healed model: of an earlier call, or healed now."""
        name = re.sub(r"\W+", "-", f"{shape.granularity} {shape.sparsity:.0%}").strip("-")
        weights, masks = self.store / f"{name}.safetensors", self.store / f"{name}.ticket.safetensors"
        if weights.exists() and masks.exists():
            model = copy.deepcopy(self.judged.model)
            model.load_state_dict(load_file(weights))
            return model, Ticket.load(masks)
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
            checkpoint=self.store / f"{name}.unfinished",
            **asdict(settings),
        )
        history = [*ticket.metadata.get("history", ()), {"operation": "heal", **healing.record()}]
        healed = Ticket(ticket.masks, metadata={**ticket.metadata, "history": history})
        state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
        with replacing(weights) as temporary:
            save_file(state, temporary)
        healed.save(masks)
        (self.store / f"{name}.unfinished").unlink(missing_ok=True)
        return model, healed


@contextlib.contextmanager
def all_cores() -> Iterator[None]:
    """Let torch use all cores for a while, for work that is not timed."""
    before = torch.get_num_threads()
    torch.set_num_threads(usable_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_engine(model: Any, ticket: Ticket, precision: str, judged: JudgedTexts) -> Any:
    """Pack a model by its ticket for the native engine, in place, and return it.

    Models that answer questions are fused too: their logits at padding change, which no answer reads.
    """
    demanded = judged.head.kind == "span" and why_not_fusible(model) is None
    sparsify_(model, ticket, tokens=judged.tokens, tolerance=precision, fuse=True if demanded else None)
    return model.eval()
