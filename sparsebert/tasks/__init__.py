"""Task data: GLUE, SQuAD, WikiText-2 and the user's own files; loading, encoding, batching and metrics."""

from __future__ import annotations

from sparsebert.tasks.collation import Collator, collate
from sparsebert.tasks.encoding import Encoded, EncodedOnce, EncodedQuestions, TextFormat, encode
from sparsebert.tasks.examples import Example, Examples, Question, TaskData
from sparsebert.tasks.label_order import label_config, require_label_order
from sparsebert.tasks.load import Data, load
from sparsebert.tasks.local import load_files, load_texts
from sparsebert.tasks.registry import TASKS, Task, find_task
from sparsebert.tasks.squad import answer_texts, best_answers

__all__ = [
    "TASKS",
    "Collator",
    "Data",
    "Encoded",
    "EncodedOnce",
    "EncodedQuestions",
    "Example",
    "Examples",
    "Question",
    "Task",
    "TaskData",
    "TextFormat",
    "answer_texts",
    "best_answers",
    "collate",
    "encode",
    "find_task",
    "label_config",
    "load",
    "load_files",
    "load_texts",
    "require_label_order",
]
