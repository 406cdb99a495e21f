"""Records of trained models on one task: their metrics, robustness to changed texts, and predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsebert.accounting.run_account import RunAccount
from sparsebert.lottery.find_runs import load_ticket
from sparsebert.results import Record
from sparsebert.tasks import Examples, TaskData, TextFormat
from sparsebert.tasks.models import short_name, skeleton
from sparsebert.tasks.perturbations import perturbed, share_changed
from sparsebert.tasks.verdict import chance_metrics
from sparsebert.tickets.ticket import Ticket
from sparsebert.workflows.evaluate import Evaluation, evaluate_compacted, evaluate_each
from sparsebert.workflows.predictions import Row, prediction_rows, share_of_other_answers

# Name of the texts as they are among the variants of the validation data.
_CLEAN = ""


@dataclass(frozen=True)
class TextChange:
    """A change of the texts that are evaluated, see :func:`sparsebert.tasks.perturbations.perturbed`.

    Attributes:
        name: A name of ``sparsebert.tasks.perturbations.PERTURBATIONS``.
        severity: Share of the words or letters that change; None for a change without degrees.
        seed: Seed of the change.
    """

    name: str
    severity: float | None
    seed: int = 0

    def of(self, data: TaskData) -> dict[str, Examples]:
        """Return the changed validation examples by split.

        Raises:
            ValueError: As :func:`sparsebert.tasks.perturbations.perturbed`.
        """
        return {
            split: perturbed(rows, data.task, self.name, severity=self.severity, seed=self.seed)
            for split, rows in data.validation.items()
        }

    def record(self, before: Mapping[str, Examples], after: Mapping[str, Examples]) -> Record:
        """Return the fields of a record: the change, and the share of the examples that it reaches."""
        sizes = [(share_changed(rows, after[split]), len(rows)) for split, rows in before.items()]
        changed = sum(share * size for share, size in sizes) / sum(size for _, size in sizes)
        described = {"perturbation": self.name, "severity": self.severity, "perturb_seed": self.seed}
        return {**described, "changed": changed}


@dataclass(kw_only=True)
class EvaluationRecords:
    """Evaluates pruned models, and the dense ones to compare with, on the validation data of a task.

    Attributes:
        task: The task's name in the records.
        data: Its examples.
        model: Hub id or folder of the pruned models, whose short name stands in the records.
        dense: Hub id or folder of the dense models, whose short name stands in their predictions.
        ticket: Ticket file or folder of a run, to prune the models with; None for models as they are.
        text_format: As for :func:`sparsebert.workflows.evaluate.evaluate`.
        sparse: Options of :func:`sparsebert.sparsify_` for the pruned models; None for models as they are.
        min_row_weights: That of :func:`sparsebert.compact_` with the ticket; None compacts no model.
        label_map: Label -> output of the model, for the records.
        changes: Changes of the texts, each evaluated by itself.
        account: Measures what the evaluation of each model uses, with its loading.
        keep_predictions: Whether to collect ``predictions``.
        predictions: A row for each model, variant of the texts and example, in the order of evaluation.
        robustness: A record of kind "robustness", without its stamp, for each model and change.

    Raises:
        ValueError: As :func:`sparsebert.tasks.perturbations.perturbed`.
    """

    task: str
    data: TaskData
    model: str
    dense: str | None = None
    ticket: Path | None = None
    text_format: TextFormat = TextFormat()
    sparse: Mapping[str, Any] | None = None
    min_row_weights: int | None = None
    label_map: Mapping[str, str] = field(default_factory=dict)
    changes: Sequence[TextChange] = ()
    account: RunAccount = field(default_factory=RunAccount)
    keep_predictions: bool = False
    predictions: list[Row] = field(default_factory=list, init=False)
    robustness: list[Record] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        """Change the texts."""
        self._chance = chance_metrics(self.data.task, self.data.validation)
        self._changes = {change.name: change for change in self.changes}
        self._variants = {_CLEAN: self.data.validation}
        self._variants |= {name: change.of(self.data) for name, change in self._changes.items()}

    def evaluate(
        self,
        path: str,
        seed: int | None,
        *,
        dense: bool = False,
        progress: Callable[[str], object] = lambda text: None,
    ) -> Record:
        """Evaluate a model; collect its predictions, and its robustness to each change.

        Args:
            path: Hub id or folder of the model.
            seed: Seed of its run, for the records.
            dense: Whether it is a dense model to compare with, which no ticket prunes.
            progress: Called with a line about the current step.

        Returns:
            The fields of a record of kind "eval", without its stamp.

        Raises:
            ValueError, OSError: As :func:`sparsebert.workflows.evaluate.evaluate` and
                :func:`sparsebert.lottery.find_runs.load_ticket`.
        """
        progress(f"evaluating {path} on {self.task}")
        with self.account.metered():
            record = self._evaluate(path, seed, dense)
        return {**record, "resources": self.account.resources()}

    def _evaluate(self, path: str, seed: int | None, dense: bool) -> Record:
        ticket = None if dense or self.ticket is None else load_ticket(self.ticket, skeleton(path))
        fields = self._fields(seed, ticket, dense)
        if ticket is not None and self.min_row_weights is not None:
            scores = evaluate_compacted(
                self.task,
                path,
                ticket,
                min_row_weights=self.min_row_weights,
                data=self.data,
                text_format=self.text_format,
            )
            scores["fingerprints"] = {**self.data.fingerprints, **scores["fingerprints"]}
            return {**fields, **scores, "chance": self._chance}
        evaluations = evaluate_each(
            self.data.task,
            path,
            self._variants,
            ticket=ticket,
            text_format=self.text_format,
            sparse=None if dense else self.sparse,
        )
        fields["fingerprints"] = {**self.data.fingerprints, **evaluations[_CLEAN].fingerprints}
        for variant, evaluation in evaluations.items():
            if self.keep_predictions:
                self._collect_predictions(variant, evaluation, seed, dense)
            if variant != _CLEAN:
                compared = self._compared(variant, evaluations[_CLEAN], evaluation)
                self.robustness.append({**fields, "dense": dense, **compared})
        clean = evaluations[_CLEAN]
        return {**fields, **clean.formats, "metrics": clean.metrics, "chance": self._chance}

    def _fields(self, seed: int | None, ticket: Ticket | None, dense: bool) -> Record:
        """Return the fields that say which model was evaluated, and how."""
        fields: Record = {"task": self.task, "model": short_name(self.model), "seed": seed}
        fields["sparsity"] = None if ticket is None else ticket.sparsity
        fields["masks_sha256"] = None if ticket is None else ticket.digest
        if self.label_map:
            fields["label_map"] = self.label_map
        return fields if dense or self.sparse is None else {**fields, **self.sparse}

    def _collect_predictions(
        self, variant: str, evaluation: Evaluation, seed: int | None, dense: bool
    ) -> None:
        name = short_name(str(self.dense) if dense else self.model)
        about: Row = {"model": name, "seed": seed, "dense": dense}
        if self._changes:
            about["perturbation"] = variant or None
        self.predictions += prediction_rows(
            self.data.task, self._variants[variant], evaluation.answers, about
        )

    def _compared(self, variant: str, clean: Evaluation, changed: Evaluation) -> Record:
        """Return the fields that compare the answers to changed texts with those to the texts as they are."""
        task = self.data.task
        return {
            "metric": task.metric,
            **self._changes[variant].record(self.data.validation, self._variants[variant]),
            "clean": clean.metrics,
            "metrics": changed.metrics,
            "other_answers": share_of_other_answers(task, clean.answers, changed.answers),
        }
