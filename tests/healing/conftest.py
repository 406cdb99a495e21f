"""A tiny dense BERT with weights that matter, the same one pruned by magnitude, and texts without labels."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

from sparsebert.pruning import prune

transformers = pytest.importorskip("transformers")

WORDS = tuple(f"w{index}" for index in range(60))
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
QUICK: dict[str, Any] = {"steps": 16, "tokens": 256, "learning_rate": 3e-3}


def tiny(cls: str = "BertModel", layers: int = 2, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=48,
        num_hidden_layers=layers,
        max_position_embeddings=32,
        initializer_range=0.2,
        **changes,
    )
    return getattr(transformers, cls)(config).eval()


def pruned_copy(dense: Any, sparsity: float = 0.7, **options: Any) -> Any:
    model = copy.deepcopy(dense)
    prune(model, "magnitude", sparsity=sparsity, **options).apply_(model)
    return model


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return transformers.BertTokenizer(vocab={word: index for index, word in enumerate(SPECIAL + WORDS)})


@pytest.fixture(scope="session")
def texts() -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(200)]


@pytest.fixture(scope="session")
def dense() -> Any:
    return tiny()


@pytest.fixture
def pruned(dense: Any) -> Any:
    return pruned_copy(dense)
