"""Task data: GLUE, SQuAD, WikiText-2 and the user's own files; loading, encoding, batching and metrics."""

from __future__ import annotations

from sparsebert.tasks.collation import Collator, collate
from sparsebert.tasks.encoded import Encoded
from sparsebert.tasks.encoding import EncodedOnce, encode
from sparsebert.tasks.examples import Example, Examples, Question, Tagged, TaskData
from sparsebert.tasks.label_order import label_config, require_label_order
from sparsebert.tasks.load import Data, load
from sparsebert.tasks.local import load_files, load_questions, load_tags, load_texts
from sparsebert.tasks.question_windows import EncodedQuestions
from sparsebert.tasks.registry import TASKS, Task, find_task
from sparsebert.tasks.squad import answer_texts, best_answers
from sparsebert.tasks.text_format import TextFormat

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
    "Tagged",
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
    "load_questions",
    "load_tags",
    "load_texts",
    "require_label_order",
]
