"""Teachers as the commands name them: trained models that another one learns from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from sparsebert.tasks import Task
from sparsebert.tasks.models import load_model, template_of
from sparsebert.training.distillation import Teacher

_WEIGHTS = ("*.safetensors", "*.bin")


def load_teacher(
    name: str,
    task: Task,
    tokenizer: Any,
    *,
    max_length: int | None = None,
    template: str | None = None,
) -> Teacher:
    """The model of that name, hub id or folder, as a teacher of the task.

    ``tokenizer``, ``max_length``, ``template``: those of the model it teaches, whose tokens it is going to
    read. Raises ValueError, naming the teacher, for a model without a trained head for the task, for labels
    or a vocabulary that are not the same in the same order, for one that tells segments apart where the
    tokenizer does not, and for one that takes fewer tokens or was trained on texts in another template; also
    for masked language modelling. OSError for one that is not found.
    """
    if task.kind == "mlm":
        raise ValueError(f"{task.name} is masked language modelling: it takes no teacher")
    try:
        model, theirs = load_model(name, task, trained=True)
        if template_of(model) != template:
            raise ValueError(
                f"it was trained on texts in the template {template_of(model)!r}, not {template!r}"
            )
        _require_same_tokens(model.config, theirs, tokenizer, task, max_length or task.max_length)
    except ValueError as error:
        raise ValueError(f"teacher {name}: {error}") from None
    return Teacher(model)


def teacher_id(name: str) -> str:
    """What tells a teacher from others: a hub id, or the digest of the weight files in a folder."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for path in sorted(each for pattern in _WEIGHTS for each in folder.glob(pattern)):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def _require_same_tokens(config: Any, theirs: Any, tokenizer: Any, task: Task, length: int) -> None:
    if different := set(tokenizer.get_vocab().items()) ^ set(theirs.get_vocab().items()):
        word, _ = min(different)
        raise ValueError(f"its vocabulary is not that of the model that it is to teach: {word!r} differs")
    tells_apart = getattr(config, "type_vocab_size", 0) > 1 and len(task.columns) > 1
    if tells_apart and "token_type_ids" not in tokenizer.model_input_names:
        raise ValueError("it tells the two texts apart (token_type_ids), and the model to teach does not")
    if config.max_position_embeddings < length:
        raise ValueError(
            f"it takes {config.max_position_embeddings} tokens, and examples have up to {length}"
        )
