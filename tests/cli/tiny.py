"""A BERT of two layers and tasks of a few sentences: a whole run takes a second or two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebert.cli import app

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GOOD, BAD, OTHER = ("good", "fine", "great"), ("bad", "poor", "awful"), ("a", "the", "film", "plot", "is")
WORDS = SPECIAL + GOOD + BAD + OTHER
SHAPE = {
    "hidden_size": 20,
    "num_attention_heads": 2,
    "intermediate_size": 30,
    "num_hidden_layers": 2,
    "initializer_range": 0.2,
}
PRUNABLE = 2 * (4 * 20 * 20 + 2 * 20 * 30)
QUICK = ["--steps", "6", "--batch-size", "8", "--learning-rate", "0.003", "--device", "cpu"]


def save(folder: Path, tokenizer: Any, cls: str = "BertModel", **changes: Any) -> Path:
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(**{"vocab_size": len(WORDS)} | SHAPE | changes)
    getattr(transformers, cls)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentences(offset: int = 0, count: int = 48) -> list[tuple[str, int]]:
    """One word decides whether it is good (1) or bad (0)."""
    return [
        (f"{OTHER[i % 2]} {OTHER[2 + i % 3 % 2]} is {(BAD, GOOD)[i % 2][(i // 2 + offset) % 3]}", i % 2)
        for i in range(count)
    ]


def write_tables(folder: Path, names: tuple[str, str], header: str, row: str) -> None:
    """Sentences as two tables; ``row`` is a format of ``text`` and ``label``."""
    folder.mkdir(parents=True)
    for offset, name in enumerate(names):
        rows = [row.format(text=text, label=label) for text, label in sentences(offset)]
        (folder / name).write_text("\n".join([*([header] if header else []), *rows]) + "\n")


def write_squad(folder: Path, answers: tuple[str, ...]) -> None:
    """Eight questions on one paragraph, to train on and to evaluate on; the answers take turns."""
    folder.mkdir(parents=True)
    context = "the film is good a plot is bad"
    questions = [
        {
            "id": str(i),
            "question": f"is the {OTHER[2 + i % 2]} good",
            "answers": [{"text": answer, "answer_start": context.index(answer)}],
        }
        for i in range(8)
        for answer in [answers[i % len(answers)]]
    ]
    content = {"data": [{"paragraphs": [{"context": context, "qas": questions}]}]}
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        (folder / name).write_text(json.dumps(content))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run, expect exit code 2 with one line on stderr; give back the line."""
    capsys.readouterr()  # the progress of earlier commands
    assert app.main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sparsebert: ")
    return line
