"""A dense model with the texts on which its forms are timed and judged: what `arena` and `optimize` share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsebert.bench.pruned_model import PrunedModel
from sparsebert.bench.workload import MAX_BATCHES, Workload
from sparsebert.bert import positions
from sparsebert.nn.sparse_linear import SparseLinear
from sparsebert.pruning import prune
from sparsebert.quality.heads import Head, head_of
from sparsebert.quality.held_out import MOST_TEXTS, HeldOut, agreement, encoder_of, labelled, split_texts
from sparsebert.tasks import Examples, Task, TextFormat
from sparsebert.tasks.load_tokenizer import load_tokenizer
from sparsebert.tasks.models import fit_positions, load_as_saved, load_model
from sparsebert.tasks.sentence_pooling import longest_text
from sparsebert.tasks.text_format import trained_format
from sparsebert.tasks.texts import text_batches

Batch = dict[str, Tensor]

# Inputs of a model, in the order in which exporters take them.
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_LONGEST = 512
# Smallest share of the rows of a task for one purpose.
_LEAST_ROWS = 20


@dataclass(frozen=True)
class LabelledRows:
    """Examples of a task, to judge by or to calibrate on.

    Attributes:
        task: Their task.
        rows: The examples.
        text_format: Format in which the model reads them.
    """

    task: Task
    rows: Examples
    text_format: TextFormat = TextFormat()


@dataclass(frozen=True)
class JudgedTexts:
    """A dense model and its texts.

    Attributes:
        name: Hub id or folder of the model.
        model: The dense model with its head, float32, in eval mode.
        head: What follows the encoder.
        workload: Batches and threads of the timing.
        timed: Batches to time.
        tokenizer: Tokenizer of the model.
        training: Texts that neither judge nor are timed.
        calibration: Batches of the first of them, texts of similar length together.
        search: Texts to choose forms by.
        verdict: Texts that no choice has seen.
    """

    name: str
    model: Any
    head: Head
    workload: Workload
    timed: tuple[Batch, ...]
    tokenizer: Any
    training: Sequence[str]
    calibration: tuple[Batch, ...]
    search: HeldOut
    verdict: HeldOut

    @property
    def base(self) -> Any:
        """The encoder with its embeddings."""
        return self.model.base_model

    @property
    def tokens(self) -> int:
        """Real tokens of the median batch, for which layers are planned."""
        return int(self.timed[0]["attention_mask"].sum())

    def as_pruned_model(self, precision: str = "fp32", held_out: HeldOut | None = None) -> PrunedModel:
        """Return the dense model for a backend, all of its weights kept.

        Args:
            precision: The lowest precision in which the sparse backend may compute.
            held_out: Texts whose outputs the backend returns; those of the verdict by default.
        """
        judged = tuple((held_out or self.verdict).batches)
        return PrunedModel(
            self.workload,
            self.base,
            prune(self.base, sparsity=0.0),
            self.timed,
            tolerance=precision,
            calibration=self.calibration,
            judged=judged,
        )


def prepare_judged_texts(
    name: str,
    texts: Sequence[str],
    *,
    labels: LabelledRows | None = None,
    batch: int = 8,
    threads: int = 1,
    seed: int = 0,
) -> JudgedTexts:
    """Load a dense model, and divide texts among calibration, search and verdict.

    Texts keep their lengths: batches hold them in a drawn order, as they would come, padded to the longest
    one of each batch. Of the batches of the verdict, ``MAX_BATCHES`` of evenly spaced widths are timed.

    Args:
        name: Hub id or folder of the dense model.
        texts: Texts like those that the model will read.
        labels: Labelled rows to judge by, half for the search and half for the verdict; None judges by the
            agreement with the dense model on the texts.
        batch: Texts of a batch.
        threads: CPU threads.
        seed: Seed of the draw.

    Raises:
        ValueError: The model is sparse, has no tokenizer, or has not learnt the task; there are too few texts
            or rows; or a text holds nothing that the tokenizer reads.
        OSError: As :func:`sparsebert.tasks.models.load_as_saved`.
    """
    parts = split_texts(texts, seed=seed)
    torch.set_num_threads(threads)
    model = load_judged(name, labels.task if labels else None)
    tokenizer = load_tokenizer(name, model.config.vocab_size)
    if any(isinstance(module, SparseLinear) for module in model.modules()):
        raise ValueError(f"{name} is sparse already: pass the dense model that it was made of")
    model = model.float().eval()
    head, dense = head_of(model, name), encoder_of(model.base_model)
    limit = min(positions(model) or _LONGEST, longest_text(name) or _LONGEST)

    def batched(part: Sequence[str]) -> list[Batch]:
        slices = (part[start : start + batch] for start in range(0, len(part), batch))
        return [text_batches(texts, tokenizer, batch_size=batch, max_length=limit)[0] for texts in slices]

    calibration = text_batches(parts.training[:MOST_TEXTS], tokenizer, max_length=limit)
    searched, judged = batched(parts.search), batched(parts.verdict)
    widths = sorted((each for each in judged if len(each["input_ids"]) == batch), key=_width) or judged[:1]
    timed = _median_first(_evenly_spaced(widths, MAX_BATCHES))
    if labels is None:
        search, verdict = (agreement(part, head, dense) for part in (searched, judged))
    else:
        text_format = labels.text_format.over(trained_format(model, labels.task))
        text_format = fit_positions(model, name, labels.task, text_format)
        half = len(labels.rows) // 2
        if half < _LEAST_ROWS:
            raise ValueError(
                f"at least {2 * _LEAST_ROWS} labelled rows are needed to search and to judge, got "
                f"{len(labels.rows)}"
            )
        order = torch.randperm(len(labels.rows), generator=torch.Generator().manual_seed(seed)).tolist()
        search, verdict = (
            labelled(
                labels.task,
                [labels.rows[row] for row in rows],
                tokenizer,
                text_format,
                head,
                dense,
                batch_size=batch,
            )
            for rows in (order[:half], order[half:])
        )
    with_types = any(_has_types(each) for part in (timed, search.batches, verdict.batches) for each in part)
    lengths = tuple(int(length) for each in timed for length in each["attention_mask"].sum(dim=1))
    return JudgedTexts(
        name=name,
        model=model,
        head=head,
        workload=Workload(name, batch, lengths, threads=threads, seed=seed),
        timed=_uniform(timed, with_types),
        tokenizer=tokenizer,
        training=parts.training,
        calibration=_uniform(calibration, with_types),
        search=dataclasses.replace(search, batches=_uniform(search.batches, with_types)),
        verdict=dataclasses.replace(verdict, batches=_uniform(verdict.batches, with_types)),
    )


def load_judged(name: str, task: Task | None) -> Any:
    """Return a model, with the trained head of a task if there is one.

    Raises:
        ValueError: As :func:`sparsebert.tasks.models.load_model`.
        OSError: As :func:`sparsebert.tasks.models.load_as_saved`.
    """
    return load_as_saved(name) if task is None else load_model(name, task, trained=True)[0]


def _width(batch: Batch) -> int:
    return int(batch["input_ids"].shape[1])


def _evenly_spaced(batches: Sequence[Batch], count: int) -> list[Batch]:
    """Return up to ``count`` batches of sorted ones, in the middle of as many equal parts."""
    count = min(count, len(batches))
    return [batches[(2 * number + 1) * len(batches) // (2 * count)] for number in range(count)]


def _median_first(batches: list[Batch]) -> list[Batch]:
    middle = len(batches) // 2
    return [batches[middle], *batches[:middle], *batches[middle + 1 :]]


def _has_types(batch: Batch) -> bool:
    return "token_type_ids" in batch and bool(batch["token_type_ids"].any())


def _uniform(batches: Sequence[Batch], with_types: bool) -> tuple[Batch, ...]:
    """Return batches with the same inputs in the same order; token types only where some are not 0."""
    uniform = []
    for batch in batches:
        types = batch.get("token_type_ids", torch.zeros_like(batch["input_ids"]))
        inputs = {**batch, "token_type_ids": types}
        uniform.append({name: inputs[name] for name in _INPUTS if with_types or name != _INPUTS[-1]})
    return tuple(uniform)
