"""Batches that calibrate a model on disk: of unlabelled texts, or of a task's training examples."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsebert.bench.judged_texts import LabelledRows
from sparsebert.one_shot.calibration import LONGEST_TEXT, note_cut_texts, position_limit
from sparsebert.report.format import counted
from sparsebert.tasks.example_batches import example_batches
from sparsebert.tasks.label_order import label_positions
from sparsebert.tasks.load_tokenizer import load_tokenizer
from sparsebert.tasks.models import fit_positions, has_head
from sparsebert.tasks.text_format import trained_format
from sparsebert.tasks.texts import text_batches
from sparsebert.workflows.speed_target import SpeedGoal

# Texts to calibrate on, and the least that say something about a matrix's inputs.
TEXTS, LEAST_TEXTS = 512, 32
BATCH = 32

Batch = dict[str, Any]


@dataclass
class CalibrationData:
    """A model with what calibrates it.

    Attributes:
        model: The model with its head.
        name: Its hub id or folder.
        rows: Unlabelled texts, or training examples of a task.
        max_length: Tokens at which an unlabelled text is cut; None for the model's positions, at most 512.
        seed: Seed of the draw.

    Raises:
        ValueError: ``max_length`` exceeds the positions.
    """

    model: Any
    name: str
    rows: Sequence[str] | LabelledRows
    max_length: int | None = None
    seed: int = 0
    tokenizer: Any = field(init=False)

    def __post_init__(self) -> None:
        """Load the tokenizer, and fit the texts into the model's positions."""
        self.tokenizer = load_tokenizer(self.name)
        if isinstance(self.rows, LabelledRows):
            rows = self.rows
            text_format = rows.text_format.over(trained_format(self.model, rows.task))
            text_format = fit_positions(self.model, self.name, rows.task, text_format)
            self.rows = LabelledRows(rows.task, rows.rows, text_format)
            self.max_length = text_format.length(rows.task)
            return
        limit = min(LONGEST_TEXT, position_limit(self.model) or LONGEST_TEXT)
        if self.max_length is not None and self.max_length > limit:
            raise ValueError(
                f"max_length must be at most {limit}, the positions of {self.name}, got {self.max_length}"
            )
        self.max_length = min(self.max_length or limit, self.tokenizer.model_max_length)

    def batches(self, method: Any, count: int | None, batch_size: int | None) -> list[Batch]:
        """Return the batches of a method: with labels if it reads them and the model has the task's head.

        Args:
            method: A method object, see :func:`sparsebert.prune_`.
            count: Number of texts to draw; None for ``TEXTS``, or all if there are fewer.
            batch_size: Texts per batch; None for ``BATCH``, or 1 where a batch gives a single gradient.

        Raises:
            ValueError: There are too few texts, all are equal, or labels are needed and missing.
        """
        if batch_size is None:
            batch_size = 1 if hasattr(method, "prune_model") else BATCH
        if isinstance(self.rows, LabelledRows):
            labels = self._reads_labels(method, self.rows)
            batches = self._examples(self.rows, count or TEXTS, batch_size, labels)
        elif hasattr(method, "prune_model"):
            raise ValueError(f"method {method.name} needs labels: pass the examples of a task, not texts")
        else:
            wanted = min(TEXTS, len(self.rows)) if count is None else count
            batches = self._texts(self.rows, wanted, batch_size)
        self._require_enough(batches, count)
        return batches

    def timed(self, speed: SpeedGoal) -> list[Batch]:
        """Return the batches on which a speed is timed."""
        if not isinstance(self.rows, LabelledRows):
            return [self._texts(each, None, speed.batch)[0] for each in speed.slices(self.rows, self.seed)]
        slices: Any = speed.slices(self.rows.rows, self.seed)
        options: dict[str, Any] = {"text_format": self.rows.text_format, "batch_size": speed.batch}
        return [example_batches(each, self.rows.task, self.tokenizer, **options)[0] for each in slices]

    def _texts(self, texts: Sequence[str], count: int | None, batch_size: int) -> list[Batch]:
        return text_batches(
            texts,
            self.tokenizer,
            count=count,
            batch_size=batch_size,
            max_length=self.max_length,
            seed=self.seed,
        )

    def _examples(self, rows: LabelledRows, count: int, batch_size: int, labels: bool) -> list[Batch]:
        outputs = label_positions(rows.task, self.model.config) if labels else None
        return example_batches(
            rows.rows,
            rows.task,
            self.tokenizer,
            rows.text_format,
            count=count,
            batch_size=batch_size,
            seed=self.seed,
            labels=labels,
            outputs=outputs,
        )

    def _reads_labels(self, method: Any, rows: LabelledRows) -> bool:
        """Whether a method reads labels. Raises ValueError if it needs them, and the model has no head."""
        if hasattr(method, "prune_layer"):
            return False
        if has_head(self.model.config, rows.task.kind):
            return True
        if hasattr(method, "prune_model"):
            raise ValueError(
                f"{self.name} has no trained head for {rows.task.name}, and method {method.name} needs its "
                "loss: train the model on the task first, or choose another method"
            )
        return False

    def _require_enough(self, batches: Sequence[Mapping[str, Any]], count: int | None) -> None:
        """Raise ValueError for too few texts, warn if the user asks for few, and of texts that are cut."""
        drawn = [
            tuple(ids[mask.bool()].tolist())
            for batch in batches
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        different = len(set(drawn))
        if count is not None and len(drawn) < count:
            raise ValueError(f"{count} texts are needed, got {len(drawn)}: pass more texts or a lower count")
        if different < LEAST_TEXTS and count is None:
            raise ValueError(
                f"at least {LEAST_TEXTS} different texts are needed to calibrate, got {different}: pass more"
            )
        if different < LEAST_TEXTS:
            warnings.warn(
                f"calibrated on {counted(different, 'different text')}: at least {LEAST_TEXTS} are "
                f"recommended, and {TEXTS} are usual",
                stacklevel=4,
            )
        if not isinstance(self.rows, LabelledRows) or not (
            self.rows.task.kind == "span" or self.rows.task.models_language
        ):
            note_cut_texts(batches, int(self.max_length or 0))
