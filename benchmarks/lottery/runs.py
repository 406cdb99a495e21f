"""The runs of the lottery benchmark: method, task and ticket of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsebert.lottery.experiment import RunConfig
from sparsebert.lottery.method import lottery_method
from sparsebert.lottery.run_folder import RunFolder
from sparsebert.pruning.pruning_units import PruningUnits
from sparsebert.tickets import TICKET_FILE
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
# Examples per step, chosen so that steps of all tasks have about as many tokens.
BATCHES = {"sst2": 32, "cola": 32, "mrpc": 16, "wikitext-2": 8}
# Regularisation of soft movement by the sparsity that it leads to, approximately.
PENALTIES = {0.5: 350.0, 0.8: 800.0, 0.9: 1000.0}
# After 300 steps at 3e-5, even the dense model labels every sentence of CoLA as acceptable.
LONGER = {"cola": {"steps": 900, "learning_rate": 1e-4}}


@dataclass(frozen=True)
class Run:
    """A run of ``sparsebert train``.

    Attributes:
        part: Part of the benchmark, one of ``PARTS``.
        label: Row of the results.
        task: Name of the task.
        seed: Seed of the training.
        method: Name of the lottery method.
        sparsity: Intended sparsity.
        options: Options of the method.
        ticket: Name of the run whose ticket is trained.
        decides_sparsity: Whether the method's options determine the sparsity, so that it is not requested.
        units: Units to prune, other than single weights.
        training: Training settings that differ from the common ones.
        start: Folder of the start ticket, as ``sparsebert prune --texts`` writes it.
        own_weights: Whether the run starts from the weights in this folder, which pruning has changed.
    """

    part: str
    label: str
    task: str
    seed: int
    method: str
    sparsity: float | None
    options: Mapping[str, Any] = field(default_factory=dict)
    ticket: str | None = None
    decides_sparsity: bool = False
    units: PruningUnits | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None
    own_weights: bool = False

    @property
    def name(self) -> str:
        """Name of the run and of its folder."""
        share = "" if self.sparsity is None else f"-{self.sparsity * 100:g}"
        if self.start is not None:
            share += f"-from-{self.start}{'-weights' if self.own_weights else ''}"
        if "steps" in self.training:
            share += f"-{self.training['steps']}-steps"
        return f"{self.task}-{self.label}{share}-seed-{self.seed}"

    def config(self, runs: Path) -> RunConfig:
        """Return the configuration; the run of ``ticket`` has its folder under ``runs``."""
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
            None if self.decides_sparsity else self.sparsity,
            units=self.units or PruningUnits(scope=method.scope),
            training=TrainingSettings(**settings | LONGER.get(self.task, {}) | dict(self.training)),
            ticket=None if self.ticket is None else Ticket.load(RunFolder(runs / self.ticket).final_ticket),
            start_ticket=None if self.start is None else Ticket.load(runs / self.start / TICKET_FILE),
        )


def curve(seed: int) -> Iterator[Run]:
    """Yield the runs of accuracy against sparsity on SST-2: magnitude, gradients and random masks."""
    yield Run(CURVE, "dense", "sst2", seed, "dense", 0.0)
    yield Run(CURVE, "imp", "sst2", seed, "imp", 0.9, {"head": "rewind"})
    for method, shares in (("random", (0.5, 0.7, 0.9)), ("one-shot", (0.5, 0.7, 0.9)), ("snip", (0.5, 0.7))):
        for sparsity in shares:
            yield Run(CURVE, method, "sst2", seed, method, sparsity)


def learned(seed: int) -> Iterator[Run]:
    """Yield the runs of learned masks and of heads and neurons on SST-2, with random ones for comparison."""
    # A tenth of the steps warms up. The schedules of Sanh et al. keep the initial sparsity for a tenth of the
    # steps and the final one for a fifth.
    warm = {"warmup_steps": 30}
    for sparsity in (0.5, 0.8, 0.9):
        yield Run(LEARNED, "gradual", "sst2", seed, "gradual", sparsity, training=warm)
        regularised = {"regularisation": 400.0}
        yield Run(LEARNED, "movement", "sst2", seed, "movement", sparsity, regularised, training=warm)
        # No warm-up and a high rate, because scores must fall to -2.2 to get below the threshold.
        penalty = {"scores_learning_rate": 3e-2, "regularisation": PENALTIES[sparsity]}
        yield Run(
            LEARNED, "soft-movement", "sst2", seed, "soft-movement", sparsity, penalty, decides_sparsity=True
        )
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
    """Yield the runs that find the tickets to transfer."""
    for task in (*TARGETS, "wikitext-2"):
        options = {"head": "rewind", "step": TRANSFERRED / 2}
        yield Run(TRANSFER, "source", task, SEEDS[0], "imp", TRANSFERRED, options)


def targets() -> Iterator[Run]:
    """Yield a run for each task, ticket and seed."""
    source = {run.task: run.name for run in sources()}
    for task in TARGETS:
        for seed in SEEDS:
            yield Run(TRANSFER, "dense", task, seed, "dense", 0.0)
            yield Run(TRANSFER, "own-ticket", task, seed, "ticket", None, ticket=source[task])
            yield Run(TRANSFER, "mlm-ticket", task, seed, "ticket", None, ticket=source["wikitext-2"])
            yield Run(TRANSFER, "random", task, seed, "random", TRANSFERRED)
