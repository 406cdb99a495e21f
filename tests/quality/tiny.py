"""Small models on disk, sentences for them, and timings that are made up."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sparsebert.bench.timer import Timings
from tests.cli.tiny import BAD, GOOD, OTHER, save

# Widths that the native engines take.
WIDTHS = {"hidden_size": 32, "intermediate_size": 64}


def texts(count: int = 96) -> list[str]:
    """Different sentences of three to twelve words."""
    draw, words = random.Random(0), GOOD + BAD + OTHER
    return [
        " ".join(draw.choices(words, k=3 + number % 10)) + f" {'the ' * (number // 10)}"
        for number in range(count)
    ]


def written(path: Path, count: int = 96) -> str:
    """Write the sentences to a file, one a line."""
    path.write_text("\n".join(texts(count)) + "\n")
    return str(path)


def model(folder: Path, tokenizer: Any, cls: str = "BertModel", **changes: Any) -> str:
    """Save a random model with its tokenizer."""
    return str(save(folder, tokenizer, cls, **{**WIDTHS, **changes}))


def made_up(seconds_of: Callable[[str], float]) -> Any:
    """A stand-in for ``time_backends`` that runs nothing."""

    def time_backends(backends: Mapping[str, Any], *args: Any, **options: Any) -> Timings:
        return Timings({name: [seconds_of(name)] * 3 for name in backends}, threads=1)

    return time_backends
