"""The built-in tasks: labels in the hub's order, text columns, metrics, and the layout of local copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from sparsebert_kernels.errors import unknown

Kind = Literal["classification", "regression", "span", "tokens", "mlm", "clm"]


@dataclass(frozen=True)
class Layout:
    """Layout of a local copy of a task.

    Attributes:
        folder: Folder of the task, below the data folder or its ``glue/``.
        files: Alternative sets of file names by split; the first complete set is read.
        columns: Text columns, by name, or by number in a file without a header.
        label: Label column, by name or number.
        labels: Labels as the files write them, in the task's order.
    """

    folder: str
    files: tuple[Mapping[str, str], ...]
    columns: tuple[str | int, ...] = ()
    label: str | int = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """A task: its examples, its labels and its metrics.

    Attributes:
        name: Name of the task.
        kind: Kind of its head: "span" answers questions, "tokens" gives a tag to each word, "mlm" and "clm"
            are masked and causal language modelling.
        metrics: Metrics of every validation split, the primary one first.
        labels: Labels in the order of their indices, as on the Hugging Face hub.
        columns: Text columns on the hub.
        label: Label column on the hub.
        splits: Validation splits, the primary one first.
        hub: Data set and configuration on the hub; empty for the user's own files.
        revision: Branch of the data set on the hub; None for its main branch.
        layout: Layout of local copies; None for the user's own files.
        bounds: Smallest and largest score of a regression.
        max_length: Tokens per example in the original fine-tuning recipes.
        no_answer: Whether questions may have no answer.
        model_labels: The labels' names in a trained checkpoint, in the order of ``labels``; a name may also
            be the number of an output. Empty if they are the task's own labels, in the same order.
    """

    name: str
    kind: Kind
    metrics: tuple[str, ...]
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    label: str = "label"
    splits: tuple[str, ...] = ("validation",)
    hub: tuple[str, ...] = ()
    revision: str | None = None
    layout: Layout | None = None
    bounds: tuple[float, float] = (float("-inf"), float("inf"))
    max_length: int = 128
    no_answer: bool = False
    model_labels: tuple[str, ...] = ()

    @property
    def metric(self) -> str:
        """Name of the primary metric in the results: ``accuracy``, for MNLI ``accuracy_matched``."""
        return self.metrics[0] + split_suffix(self.splits[0])

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of all metrics in the results, the primary one first."""
        return tuple(name + split_suffix(split) for split in self.splits for name in self.metrics)

    @property
    def num_labels(self) -> int:
        """Outputs of the head: the number of classes, 1 for a regression, 2 for the ends of a span."""
        return len(self.labels) or {"regression": 1, "span": 2}.get(self.kind, 0)

    @property
    def has_classes(self) -> bool:
        """Whether the outputs of the head are classes, of a text or of each word."""
        return self.kind in ("classification", "tokens")

    @property
    def models_language(self) -> bool:
        """Whether the examples are lines of running text, whose tokens are predicted."""
        return self.kind in ("mlm", "clm")


def split_suffix(split: str) -> str:
    """Return the suffix of a split for the names of metrics: ``_matched`` for ``validation_matched``."""
    return split.removeprefix("validation")


def find_task(task: str | Task) -> Task:
    """Return the task of that name; a Task is returned unchanged.

    Raises:
        ValueError: For an unknown name; the message suggests the nearest.
    """
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    return TASKS[task]


# Metrics of questions that may have no answer, named as in evaluate-v2.0.py of SQuAD; of entities; and of
# tags that mark no entities.
NO_ANSWER_METRICS = (
    "f1",
    "exact",
    "HasAns_f1",
    "HasAns_exact",
    "NoAns_f1",
    "NoAns_exact",
    "best_f1",
    "best_f1_thresh",
    "best_exact",
    "best_exact_thresh",
)
ENTITY_METRICS = ("f1", "precision", "recall", "accuracy")
TAG_METRICS = ("accuracy",)

# Metrics and tokens of a block of running text, by kind of language modelling.
LANGUAGE_METRICS: Mapping[Kind, tuple[str, ...]] = {"mlm": ("accuracy",), "clm": ("accuracy", "perplexity")}
BLOCK_TOKENS: Mapping[Kind, int] = {"mlm": 128, "clm": 1024}


def _wikitext(name: str, kind: Kind) -> Task:
    return Task(
        name=name,
        kind=kind,
        metrics=LANGUAGE_METRICS[kind],
        columns=("text",),
        label="",
        hub=("Salesforce/wikitext", "wikitext-2-raw-v1"),
        layout=Layout(
            "wikitext-2",
            (
                {"train": "wiki.train.raw", "validation": "wiki.valid.raw"},
                {"train": "wiki.train.tokens", "validation": "wiki.valid.tokens"},
                # A copy without the training text: trains on the validation text instead.
                {"train": "wiki.valid.raw.txt", "validation": "wiki.test.raw.txt"},
            ),
        ),
        max_length=BLOCK_TOKENS[kind],
    )


def _glue(
    name: str,
    folder: str,
    columns: tuple[str, ...],
    metrics: tuple[str, ...],
    labels: tuple[str, ...],
    *,
    written: tuple[str, ...] = ("0", "1"),
    in_files: tuple[str | int, ...] | None = None,
    label_in_files: str | int = "label",
    splits: tuple[str, ...] = ("validation",),
) -> Task:
    files = {"train": "train.tsv"} | {split: f"dev{split_suffix(split)}.tsv" for split in splits}
    return Task(
        name=name,
        kind="classification" if labels else "regression",
        metrics=metrics,
        labels=labels,
        columns=columns,
        splits=splits,
        hub=("nyu-mll/glue", name),
        layout=Layout(folder, (files,), in_files or columns, label_in_files, written if labels else ()),
        bounds=(float("-inf"), float("inf")) if labels else (0.0, 5.0),
    )


_NLI = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            _glue("sst2", "SST-2", ("sentence",), ("accuracy",), ("negative", "positive")),
            _glue(
                "cola",
                "CoLA",
                ("sentence",),
                ("mcc", "accuracy"),
                ("unacceptable", "acceptable"),
                in_files=(3,),
                label_in_files=1,
            ),
            _glue(
                "mrpc",
                "MRPC",
                _PAIR,
                ("accuracy", "f1"),
                ("not_equivalent", "equivalent"),
                in_files=("#1 String", "#2 String"),
                label_in_files="Quality",
            ),
            _glue("stsb", "STS-B", _PAIR, ("pearson", "spearman"), (), label_in_files="score"),
            _glue(
                "qqp",
                "QQP",
                ("question1", "question2"),
                ("accuracy", "f1"),
                ("not_duplicate", "duplicate"),
                label_in_files="is_duplicate",
            ),
            _glue(
                "mnli",
                "MNLI",
                ("premise", "hypothesis"),
                ("accuracy",),
                ("entailment", "neutral", "contradiction"),
                written=("entailment", "neutral", "contradiction"),
                in_files=_PAIR,
                label_in_files="gold_label",
                splits=("validation_matched", "validation_mismatched"),
            ),
            _glue("qnli", "QNLI", ("question", "sentence"), ("accuracy",), _NLI, written=_NLI),
            _glue("rte", "RTE", _PAIR, ("accuracy",), _NLI, written=_NLI),
            _glue("wnli", "WNLI", _PAIR, ("accuracy",), ("not_entailment", "entailment")),
            Task(
                name="squad",
                kind="span",
                metrics=("f1", "exact_match"),
                columns=("question", "context"),
                label="answers",
                hub=("rajpurkar/squad",),
                layout=Layout(
                    "squad-v1.1",
                    (
                        {"train": "train-v1.1.json", "validation": "dev-v1.1.json"},
                        {
                            "train": "dev-articles-train36.json",
                            "validation": "dev-articles-eval12.json",
                        },
                    ),
                ),
                max_length=384,
            ),
            Task(
                name="squad2",
                kind="span",
                metrics=NO_ANSWER_METRICS,
                columns=("question", "context"),
                label="answers",
                hub=("rajpurkar/squad_v2",),
                layout=Layout("squad-v2.0", ({"train": "train-v2.0.json", "validation": "dev-v2.0.json"},)),
                max_length=384,
                no_answer=True,
            ),
            Task(
                name="conll2003",
                kind="tokens",
                metrics=ENTITY_METRICS,
                labels=("O", *(f"{at}-{name}" for name in ("PER", "ORG", "LOC", "MISC") for at in "BI")),
                columns=("tokens",),
                label="ner_tags",
                hub=("eriktks/conll2003",),
                # The main branch is a script, which datasets no longer runs.
                revision="refs/convert/parquet",
                layout=Layout(
                    "conll2003",
                    (
                        {"train": "train.txt", "validation": "valid.txt"},
                        {"train": "eng.train", "validation": "eng.testa"},
                    ),
                ),
            ),
            _wikitext("wikitext-2", "mlm"),
            _wikitext("wikitext-2-clm", "clm"),
        )
    }
)
