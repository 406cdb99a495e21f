"""A tokenizer of few words, and small random models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cli.tiny import SHAPE, WORDS, sentences


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})


@pytest.fixture(scope="session")
def batches(tokenizer: Any) -> list[dict[str, torch.Tensor]]:
    """Two batches of sentences, padded."""
    texts = [text for text, _ in sentences(count=6)] + ["the film is good and great and fine", "a plot"]
    return [
        {name: each[name] for name in ("input_ids", "attention_mask")}
        for each in (tokenizer(texts[i : i + 4], padding=True, return_tensors="pt") for i in (0, 4))
    ]


@pytest.fixture
def model_of(tokenizer: Any) -> Any:
    """Make a small model of a class of transformers."""
    import transformers

    def make(cls: str, **changes: Any) -> Any:
        torch.manual_seed(0)
        config = getattr(transformers, cls).config_class(**{"vocab_size": len(WORDS)} | SHAPE | changes)
        return getattr(transformers, cls)(config).eval()

    return make
