"""A classification and a masked language model, tiny, on one encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from sparsebert.lottery.experiment import Experiment
from sparsebert.lottery.multi_task import multi_task_experiment
from tests.lottery import tiny

SHAPE = {"hidden_size": 20, "num_attention_heads": 2, "intermediate_size": 30, "num_hidden_layers": 2}
RATES = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
TEXTS = 24


def language_model() -> Any:
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(vocab_size=tiny.WORDS, initializer_range=0.2, **SHAPE, **RATES))


def texts(seed: int = 5) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": row} for row in torch.randint(0, tiny.WORDS, (TEXTS, 6), generator=generator)]


def collate_texts(chosen: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Every third token is to be guessed."""
    ids = torch.stack([each["input_ids"] for each in chosen])
    labels = torch.full_like(ids, -100)
    labels[:, ::3] = ids[:, ::3]
    return {"input_ids": ids.masked_fill(labels >= 0, 0), "labels": labels}


def evaluate_texts(model: nn.Module) -> dict[str, float]:
    batch = collate_texts(texts(seed=6))
    model.eval()
    with torch.no_grad():
        guessed = model(input_ids=batch["input_ids"]).logits.argmax(-1)
    masked = batch["labels"] >= 0
    return {"accuracy": float((guessed == batch["labels"])[masked].float().mean())}


def experiments() -> dict[str, Experiment]:
    return {
        "words": tiny.experiment(),
        "language": Experiment(language_model(), texts(), collate_texts, evaluate_texts),
    }


def experiment(
    proportions: str = "equal", wrap: Callable[[Any], Any] = lambda collate: collate
) -> Experiment:
    whole = multi_task_experiment(experiments(), proportions)
    return replace(whole, collate=wrap(whole.collate))
