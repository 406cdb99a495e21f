"""Models as the commands name them: a hub id or a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsebert.bert import is_bert_like
from sparsebert.tasks import Task, label_config, require_label_order

_MODEL_CLASSES = {
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "span": "AutoModelForQuestionAnswering",
    "mlm": "AutoModelForMaskedLM",
}


def load_model(
    name: str,
    task: Task,
    seed: int = 0,
    *,
    trained: bool = False,
    label_words: Sequence[str] | None = None,
    template: str | None = None,
) -> tuple[Any, Any]:
    """A pre-trained BERT with the task's head, in fp32 on the CPU, and its tokenizer.

    ``label_words``: take the language model's own head, and these words for the task's labels;
    ``template``: the text that examples are put into then.
    Where the checkpoint brings a head of its own, the order of its labels is asserted. ``trained`` asks for
    one that does. Raises ValueError for a model that is no BERT, brings a head of another task, or, with
    ``trained``, none, and for damaged files as `sparsebert.tasks.load_checked` does; OSError for one that is not
    found or holds no weights.
    """
    import transformers

    from sparsebert.tasks.load_checked import load_config, load_weights

    config = load_config(name)
    if label_words is not None or (trained and getattr(config, "label_words", None)):
        from sparsebert.tasks.label_words import load_in_words

        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        return _require_bert(load_in_words(name, task, tokenizer, label_words, template), name), tokenizer
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
        model = load_weights(cls, name, dtype=torch.float32, **options)
    return _require_bert(model, name), transformers.AutoTokenizer.from_pretrained(name)


def template_of(model: Any) -> str | None:
    """The text that a model's examples are put into; None for most models, which read them as they are."""
    found: str | None = (getattr(model.config, "label_words", None) or {}).get("template")
    return found


def skeleton(name: str) -> nn.Module:
    """The bare model of that name without values: what tickets are read for and checked against.

    Raises ValueError for a model that is no BERT, OSError for one that is not found.
    """
    import transformers

    from sparsebert.tasks.load_checked import load_config

    config = load_config(name)
    with torch.device("meta"):
        return _require_bert(transformers.AutoModel.from_config(config), name)


def load_as_saved(name: str) -> Any:
    """A model of the class and dtype that its checkpoint was saved from, head and all, on the CPU.

    Raises ValueError for a model that is no BERT, OSError for one that is not found or holds no weights.
    """
    import transformers

    from sparsebert.tasks.load_checked import load_config, load_weights

    saved_from = load_config(name).architectures or [""]
    cls = getattr(transformers, saved_from[0], transformers.AutoModel)
    return _require_bert(load_weights(cls, name, dtype="auto"), name)


def short_name(model: str) -> str:
    """A model as records call it: a local folder by its name alone."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else model


def _require_bert(model: Any, name: str) -> Any:
    if not is_bert_like(model):
        raise ValueError(
            f"expected a BERT, RoBERTa, DistilBERT or ELECTRA model; {name} is a {type(model).__name__}"
        )
    return model


def head_labels(name: str) -> tuple[str, ...]:
    """The labels of a trained classifier, in the order of its outputs. Raises as `load_config` does."""
    from sparsebert.tasks.load_checked import load_config

    id2label = load_config(name).id2label
    return tuple(str(id2label[index]) for index in sorted(id2label))
