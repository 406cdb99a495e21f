"""The runs of the lottery benchmark: what is trained, on what, from which ticket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsebert.lottery.experiment import RunConfig
from sparsebert.lottery.method import lottery_method
from sparsebert.lottery.run_folder import RunFolder
from sparsebert.pruning.pruning_units import PruningUnits
from sparsebert.tickets.ticket import Ticket
from sparsebert.training.settings import TrainingSettings

SEEDS = (1, 2, 3)
CURVE, LEARNED, TRANSFER = "curve", "learned", "transfer"
PARTS = (CURVE, LEARNED, TRANSFER)
TRANSFERRED = 0.7
TARGETS = ("sst2", "cola", "mrpc")
FOLDERS = {
    "sst2": "glue/SST-2",
    "cola": "glue/CoLA",
    "mrpc": "glue/MRPC",
    "wikitext-2": "wikitext-2",
}
# Examples of a step, so that steps of all tasks hold about as many tokens.
BATCHES = {"sst2": 32, "cola": 32, "mrpc": 16, "wikitext-2": 8}
# Of soft movement, whose sparsity follows from it: the regularisation that brings it near each of these.
PENALTIES = {0.5: 350.0, 0.8: 800.0, 0.9: 1000.0}
# Within 300 steps at 3e-5 even the dense model calls every sentence of CoLA acceptable.
LONGER = {"cola": {"steps": 900, "learning_rate": 1e-4}}


@dataclass(frozen=True)
class Run:
    """One run of `sparsebert train`; `ticket` names the run whose ticket is trained, `label` the row of the
    results it belongs to, `sparsity` what is asked for there.

    ``finds``: the method decides by its options how much is pruned, and is not asked for the sparsity.
    ``units``: what is pruned together, if not single weights. ``training``: settings unlike the others'.
    """

    part: str
    label: str
    task: str
    seed: int
    method: str
    sparsity: float | None
    options: Mapping[str, Any] = field(default_factory=dict)
    ticket: str | None = None
    finds: bool = False
    units: PruningUnits | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        share = "" if self.sparsity is None else f"-{self.sparsity * 100:g}"
        return f"{self.task}-{self.label}{share}-seed-{self.seed}"

    def request(self, tickets: Path) -> RunConfig:
        settings = {
            "steps": 300,
            "batch_size": BATCHES[self.task],
            "group_by_length": True,
            "learning_rate": 3e-5,
            "precision": "bf16",
            "device": "cpu",
            "save_steps": 150,
            "seed": self.seed,
        }
        method = lottery_method(self.method, **self.options)
        return RunConfig(
            method,
            None if self.finds else self.sparsity,
            units=self.units or PruningUnits(scope=method.scope),
            training=TrainingSettings(**settings | LONGER.get(self.task, {}) | dict(self.training)),
            ticket=None
            if self.ticket is None
            else Ticket.load(RunFolder(tickets / self.ticket).final_ticket),
        )


def curve(seed: int) -> Iterator[Run]:
    """SST-2: accuracy against sparsity of the tickets that magnitude, gradients or chance find."""
    yield Run(CURVE, "dense", "sst2", seed, "dense", 0.0)
    yield Run(CURVE, "imp", "sst2", seed, "imp", 0.9, {"head": "rewind"})
    for method, shares in (("random", (0.5, 0.7, 0.9)), ("one-shot", (0.5, 0.7, 0.9)), ("snip", (0.5, 0.7))):
        for sparsity in shares:
            yield Run(CURVE, method, "sst2", seed, method, sparsity)


def learned(seed: int) -> Iterator[Run]:
    """SST-2: tickets learned in training, and tickets of heads and neurons, with random ones beside both."""
    # Of 300 steps a tenth warms up, and the methods of Sanh et al. keep a tenth before and a fifth after.
    warm = {"warmup_steps": 30}
    for sparsity in (0.5, 0.8, 0.9):
        yield Run(LEARNED, "gradual", "sst2", seed, "gradual", sparsity, training=warm)
        regularised = {"regularisation": 400.0}
        yield Run(LEARNED, "movement", "sst2", seed, "movement", sparsity, regularised, training=warm)
        # Without a warm-up, and fast: scores have to fall to -2.2 to be below the threshold.
        penalty = {"scores_learning_rate": 3e-2, "regularisation": PENALTIES[sparsity]}
        yield Run(LEARNED, "soft-movement", "sst2", seed, "soft-movement", sparsity, penalty, finds=True)
        for mask in "LS":
            yield Run(LEARNED, f"smp-{mask.lower()}", "sst2", seed, "smp", sparsity, {"mask": mask})
    yield Run(LEARNED, "random", "sst2", seed, "random", 0.8)
    units = PruningUnits("head+neuron", scope="type")
    for sparsity in (0.3, 0.5):
        for label, method in (
            ("importance", "importance"),
            ("early-bird", "early-bird"),
            ("random-units", "random"),
        ):
            yield Run(LEARNED, label, "sst2", seed, method, sparsity, units=units)


def sources() -> Iterator[Run]:
    """The runs that find the tickets to be transferred."""
    for task in (*TARGETS, "wikitext-2"):
        options = {"head": "rewind", "step": TRANSFERRED / 2}
        yield Run(TRANSFER, "source", task, SEEDS[0], "imp", TRANSFERRED, options)


def targets() -> Iterator[Run]:
    """Each task trained from each ticket, over all seeds."""
    found = {run.task: run.name for run in sources()}
    for task in TARGETS:
        for seed in SEEDS:
            yield Run(TRANSFER, "dense", task, seed, "dense", 0.0)
            yield Run(TRANSFER, "own-ticket", task, seed, "ticket", None, ticket=found[task])
            yield Run(TRANSFER, "mlm-ticket", task, seed, "ticket", None, ticket=found["wikitext-2"])
            yield Run(TRANSFER, "random", task, seed, "random", TRANSFERRED)
