"""Training a task's tickets: model, task data and metrics put together for the lottery."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sparsebert.lottery.methods  # noqa: F401  (registers them)
from sparsebert import metrics
from sparsebert.bert import is_bert_like
from sparsebert.data import (
    Task,
    TaskData,
    collate,
    encode,
    find_task,
    label_config,
    load,
    require_label_order,
)
from sparsebert.evaluation import evaluator
from sparsebert.lottery.experiment import Experiment, Request
from sparsebert.lottery.folder import Record, RunFolder
from sparsebert.ticket import Ticket
from sparsebert.training import ranks

_MODEL_CLASSES = {
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "span": "AutoModelForQuestionAnswering",
    "mlm": "AutoModelForMaskedLM",
}


def train(
    task: str,
    model: str,
    request: Request,
    out: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    max_length: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    before: Callable[[nn.Module, Request], None] = lambda model, request: None,
) -> list[Record]:
    """Find (or train) a ticket of a task, and return the records of its rounds.

    ``task``: a name of ``sparsebert.data.TASKS``. ``model``: a pre-trained BERT by hub id or local folder.
    ``request``: method, sparsity, units, training. ``out``: the run's folder (see
    :mod:`sparsebert.lottery.folder`); one that is there goes on where it was interrupted, and one that is
    finished is only read. ``data``: a folder with the task's files, else the hub. ``max_length``: tokens of
    an example. ``before``: called once with model and request before the work begins.

    Raises ValueError in one line for bad input, OSError for files that cannot be read or written.
    """
    # Late: a run that is finished needs none of it.
    from sparsebert.lottery.run import run

    ranks.join()
    known = find_task(task)
    names = {"task": known.name, "model": short_name(model), "max_length": max_length or known.max_length}
    request = replace(request, names=names)
    folder = RunFolder(out)
    if folder.run_json.exists() and folder.finished():
        folder.require(request.describe())
        say(f"{folder.path} is finished: nothing to do")
        return folder.rounds_done()
    experiment = assemble(known, model, load(known, data), request.training.seed, max_length)
    if ranks.is_main():
        before(experiment.model, request)
    return run(experiment, request, out, say)


def assemble(
    task: Task, model: str, data: TaskData, seed: int = 0, max_length: int | None = None
) -> Experiment:
    """The experiment of a task: model with a head, encoded training data, metrics on the validation data.

    A head that the checkpoint lacks is initialised from ``seed``. Raises ValueError as :func:`load_model`.
    """
    loaded, tokenizer = load_model(model, task, seed)
    return Experiment(
        loaded,
        encode(data.train, task, tokenizer, max_length),
        collate(task, tokenizer, seed=seed),
        evaluator(task, data.validation, tokenizer, max_length=max_length),
        tokenizer.save_pretrained,
    )


def load_model(name: str, task: Task, seed: int = 0, *, trained: bool = False) -> tuple[Any, Any]:
    """A pre-trained BERT with the task's head, in fp32 on the CPU, and its tokenizer.

    Where the checkpoint brings a head of its own, the order of its labels is asserted. ``trained`` asks for
    one that does. Raises ValueError for a model that is no BERT, brings a head of another task, or, with
    ``trained``, none; OSError for one that is not found or holds no weights.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(name)
    cls = getattr(transformers, _MODEL_CLASSES[task.kind])
    suffix = _MODEL_CLASSES[task.kind].removeprefix("AutoModel")
    options = label_config(task)
    if any(each.endswith(suffix) for each in config.architectures or ()):
        require_label_order(task, config)
        options = {}
    elif trained:
        raise ValueError(
            f"{name} has no trained head for {task.name}: expected a {suffix.removeprefix('For')} model"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls.from_pretrained(name, dtype=torch.float32, **options)
    if not is_bert_like(model):
        raise ValueError(
            f"expected a BERT, RoBERTa, DistilBERT or ELECTRA model; {name} is a {type(model).__name__}"
        )
    return model, transformers.AutoTokenizer.from_pretrained(name)


def evaluate(
    task: str,
    model: str,
    *,
    ticket: Ticket | None = None,
    data: str | os.PathLike[str] | None = None,
    max_length: int | None = None,
) -> dict[str, float]:
    """Metrics of a trained model (a folder, such as ``model/`` of a run) on a task's validation data.

    ``ticket``: prune the model first. Raises ValueError and OSError as :func:`load_model` and
    :func:`sparsebert.data.load` do, and for a ticket of another model.
    """
    known = find_task(task)
    loaded, tokenizer = load_model(model, known, trained=True)
    if ticket is not None:
        ticket.apply_(loaded)
    if torch.cuda.is_available():
        loaded = loaded.cuda()
    validation = load(known, data, train=False).validation
    return evaluator(known, validation, tokenizer, max_length=max_length)(loaded)


def over_seeds(
    task: str, runs: Sequence[Sequence[Record]], dense_runs: Sequence[Sequence[Record]] = ()
) -> list[Record]:
    """What runs that differ in their seeds say of each round: the fields of a record each.

    ``values``, ``mean`` and ``std`` (n - 1; None for one seed) of the task's primary metric; and the
    ``verdict``, "strict", "winning" or "none" (Chen et al. 2020), against ``dense_runs`` or, without them,
    against the dense round that some methods begin with.
    """
    metric = metrics.primary(task)

    def values(rounds: Sequence[Sequence[Record]], number: int) -> list[float]:
        return [records[number]["metrics"][metric] for records in rounds]

    own_dense = runs if runs[0][0]["source"] == "all" else ()
    judges = values(dense_runs or own_dense, 0) if dense_runs or own_dense else []
    rows: list[Record] = []
    for number, first in enumerate(runs[0]):
        found = metrics.summary(values(runs, number))
        row = {name: first[name] for name in ("method", "task", "model", "round", "sparsity", "density")}
        row |= {"metric": metric, "seeds": [records[number]["seed"] for records in runs]}
        row |= {"values": list(found.values), "mean": found.mean, "std": found.std}
        if judges and first["source"] != "all":
            judged = metrics.verdict(judges, found.values)
            row |= {"verdict": judged.verdict, "dense_mean": judged.dense.mean, "dense_std": judged.dense.std}
        rows.append(row)
    return rows


def short_name(model: str) -> str:
    """A model as records call it: a local folder by its name alone."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else model
