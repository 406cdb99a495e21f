"""Models by hub id or local folder, with the head and tokenizer that a task needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsebert.bert import is_bert_like
from sparsebert.linear_layers import unfiltered
from sparsebert.one_shot.calibration import position_limit
from sparsebert.tasks import Task, TextFormat, label_config
from sparsebert.tasks.label_order import label_positions, reorder_outputs_
from sparsebert.tasks.load_tokenizer import load_tokenizer
from sparsebert.tasks.registry import Kind

_MODEL_CLASSES: Mapping[Kind, str] = {
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "span": "AutoModelForQuestionAnswering",
    "tokens": "AutoModelForTokenClassification",
    "mlm": "AutoModelForMaskedLM",
    "clm": "AutoModelForCausalLM",
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
    """Load a pre-trained model with the task's head, and its tokenizer.

    If the checkpoint has a head for the task, the order of its labels is checked; the task's ``model_labels``
    bring its outputs into the task's order.

    Args:
        name: Hub id or folder of the model.
        task: The task.
        seed: Seed of a head that the checkpoint lacks.
        trained: Require a checkpoint with a head for the task.
        label_words: Words for the task's labels; the head of the masked language model then serves as the
            task's head.
        template: Text around each example, with a blank for the label words.

    Returns:
        The model, in fp32 on the CPU, and the tokenizer.

    Raises:
        ValueError: For a model without linear layers to prune, an encoder for causal language modelling,
            labels of another task, a missing head with ``trained``, or unusable files (see
            :mod:`sparsebert.tasks.load_checked` and :mod:`sparsebert.tasks.load_tokenizer`).
        OSError: For a model that is missing or holds no weights.
    """
    import transformers

    from sparsebert.tasks.load_checked import load_config, load_weights

    config = load_config(name)
    if task.model_labels and label_words is not None:
        raise ValueError("a label map needs a model with a trained head; label words make another: omit one")
    if label_words is not None or (trained and getattr(config, "label_words", None)):
        from sparsebert.tasks.label_words import load_in_words

        tokenizer = load_tokenizer(name, config.vocab_size)
        return _require_bert(load_in_words(name, task, tokenizer, label_words, template), name), tokenizer
    _require_direction(name, config, task)
    cls = getattr(transformers, _MODEL_CLASSES[task.kind])
    options, outputs = label_config(task), None
    trained_head = has_head(config, task.kind)
    if trained_head:
        outputs = label_positions(task, config)
        options = {}
    elif trained or task.model_labels:
        remedy = "; omit the label map" if task.model_labels else ""
        raise ValueError(
            f"{name} has no trained head for {task.name}; "
            f"expected a {_suffix(task.kind).removeprefix('For')} model{remedy}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = load_weights(cls, name, fresh_head=not trained_head, dtype=torch.float32, **options)
    if outputs is not None:
        reorder_outputs_(model, task, outputs)
    tokenizer = load_tokenizer(name, model.config.vocab_size)
    if model.config.pad_token_id is None:  # a classifier of GPT-2 needs it to find the last token
        model.config.pad_token_id = tokenizer.pad_token_id
    return _require_prunable(model, name), tokenizer


def is_decoder(config: Any) -> bool:
    """Whether a model of this configuration reads texts from left to right, as GPT-2 and Llama do."""
    from transformers.models.auto import modeling_auto as auto

    if config.model_type not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return False
    # BERT has a class for both directions, and reads in both unless its configuration says otherwise.
    return config.model_type not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES or bool(
        getattr(config, "is_decoder", False)
    )


def _require_direction(name: str, config: Any, task: Task) -> None:
    """Raise ValueError for causal language modelling of an encoder, and for masked one of a decoder."""
    from transformers.models.auto import modeling_auto as auto

    masked = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if task.kind == "clm" and not is_decoder(config):
        raise ValueError(
            f"{name} ({config.model_type}) reads texts in both directions; {task.name} is causal language "
            "modelling: use a decoder, such as GPT-2 or Llama, or masked language modelling"
        )
    if task.kind == "mlm" and not masked:
        raise ValueError(
            f"{name} ({config.model_type}) has no masked language model, and {task.name} needs one: use an "
            "encoder, such as BERT, or causal language modelling (wikitext-2-clm, --lm causal)"
        )


def fit_positions(model: Any, name: str, task: Task, text_format: TextFormat) -> TextFormat:
    """Return a text format that fits the task, and whose texts fit into the model's positions.

    The task's default length is reduced to the positions.

    Args:
        model: A model of transformers.
        name: Its name, for the message.
        task: The task.
        text_format: The text format that the user asks for.

    Raises:
        ValueError: The user's maximum length exceeds the positions, or an option of questions is given for
            another task.
    """
    text_format.require(task)
    limit = position_limit(model)
    if limit is None or text_format.length(task) <= limit:
        return text_format
    if text_format.max_length is not None:
        raise ValueError(
            f"max_length must be at most {limit}, the positions of {name}, got {text_format.max_length}"
        )
    return replace(text_format, max_length=limit)


def template_of(model: Any) -> str | None:
    """Return the template that a model was trained with; None for most models."""
    template: str | None = (getattr(model.config, "label_words", None) or {}).get("template")
    return template


def skeleton(name: str) -> nn.Module:
    """Return the base model without weights (on the meta device), for checking the shapes of tickets.

    Raises:
        ValueError: For a model without linear layers to prune.
        OSError: For a model that is missing.
    """
    from sparsebert.tasks.load_checked import load_outline

    return _require_prunable(load_outline(name), name)


def load_as_saved(name: str) -> Any:
    """Load a model in the class and dtype that it was saved in, with its head, on the CPU.

    Raises:
        ValueError: For a model without linear layers to prune.
        OSError: For a model that is missing or holds no weights.
    """
    return _require_prunable(load_whole(name), name)


def load_whole(name: str) -> Any:
    """Load a model of any family in the class that it was saved in, with its head, on the CPU in eval mode.

    Raises:
        ValueError, OSError: As ``sparsebert.tasks.load_checked``.
    """
    import transformers

    from sparsebert.tasks.load_checked import load_config, load_weights

    saved_from = load_config(name).architectures or [""]
    cls = getattr(transformers, saved_from[0], transformers.AutoModel)
    return load_weights(cls, name, fresh_head=False, dtype="auto").eval()


def short_name(model: str) -> str:
    """Return a model's name for records: the name of a local folder, else the hub id."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else model


def head_labels(name: str, kind: Kind = "classification") -> tuple[str, ...]:
    """Return the labels of a trained classifier, of texts or of words, in the order of its outputs.

    Raises:
        ValueError: The model has no trained classifier; or as ``load_config``.
        OSError: As ``load_config``.
    """
    from sparsebert.tasks.load_checked import load_config

    config = load_config(name)
    if not has_head(config, kind) and not getattr(config, "label_words", None):
        raise ValueError(
            f"{name} has no trained head, so its labels are unknown; train it on the task first, or name a "
            "trained model"
        )
    id2label = config.id2label
    return tuple(str(id2label[index]) for index in sorted(id2label))


def has_head(config: Any, kind: Kind) -> bool:
    """Whether a model of this configuration has a trained head for a kind of task."""
    # GPT-2's head has the older name.
    suffixes = (_suffix(kind), "LMHeadModel") if kind == "clm" else (_suffix(kind),)
    return any(each.endswith(suffixes) for each in config.architectures or ())


def _suffix(kind: Kind) -> str:
    """Return the end of the names of the classes with a head for this kind of task."""
    return _MODEL_CLASSES[kind].removeprefix("AutoModel")


def _require_prunable(model: Any, name: str) -> Any:
    if not unfiltered(model):
        raise ValueError(f"{name} has no linear layer to prune: {type(model).__name__}")
    return model


def _require_bert(model: Any, name: str) -> Any:
    if not is_bert_like(model):
        raise ValueError(
            f"{name} must be a BERT, RoBERTa, DistilBERT or ELECTRA model, got {type(model).__name__}"
        )
    return model
