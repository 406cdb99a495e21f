"""Loading and identification of teachers: trained models from which another model learns."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsebert.tasks import Task, TextFormat
from sparsebert.tasks.models import load_model, template_of
from sparsebert.training.distillation import Teacher

_WEIGHTS = ("*.safetensors", "*.bin")


def load_teacher(
    name: str,
    task: Task,
    tokenizer: Any,
    text_format: TextFormat = TextFormat(),
) -> Teacher:
    """Load a teacher of a task.

    Args:
        name: Hub id or folder.
        task: The task.
        tokenizer: Tokenizer of the student; the teacher reads the student's tokens.
        text_format: Maximum length and template of the student's texts.

    Raises:
        ValueError: The teacher does not fit the task (no trained head, other labels) or the student (another
            vocabulary or template, segments that the student's tokenizer does not mark, too few positions),
            or the task is language modelling. The message names the teacher.
        OSError: The model is not found.
    """
    if task.models_language:
        raise ValueError(f"{task.name} is language modelling, which takes no teacher: leave it out")
    try:
        # The map of labels belongs to the student's checkpoint.
        model, teacher_tokenizer = load_model(name, replace(task, model_labels=()), trained=True)
        if template_of(model) != text_format.template:
            raise ValueError(
                f"its texts had the template {template_of(model)!r}, "
                f"the student's have {text_format.template!r}; use one template for both"
            )
        length = text_format.max_length or task.max_length
        _require_same_tokens(model.config, teacher_tokenizer, tokenizer, task, length)
    except ValueError as error:
        raise ValueError(f"teacher {name}: {error}") from None
    return Teacher(model)


def teacher_id(name: str) -> str:
    """Return the id of a teacher for the records: its hub id, or the digest of its folder's weight files."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for path in sorted(each for pattern in _WEIGHTS for each in folder.glob(pattern)):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def _require_same_tokens(
    config: Any, teacher_tokenizer: Any, tokenizer: Any, task: Task, length: int
) -> None:
    """Raise ValueError unless the teacher can read the student's tokens."""
    if different := set(tokenizer.get_vocab().items()) ^ set(teacher_tokenizer.get_vocab().items()):
        word, _ = min(different)
        raise ValueError(f"its vocabulary differs from the student's, for example in {word!r}")
    reads_segments = getattr(config, "type_vocab_size", 0) > 1 and len(task.columns) > 1
    if reads_segments and "token_type_ids" not in tokenizer.model_input_names:
        raise ValueError("it reads segments (token_type_ids), which the student's tokenizer does not mark")
    if config.max_position_embeddings < length:
        raise ValueError(
            f"it takes at most {config.max_position_embeddings} tokens, but examples have up to {length}"
        )
