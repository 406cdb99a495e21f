"""Models with biases that matter and batches with padding, for whatever looks at heads, neurons and MLPs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

LAYERS, WIDTH, HEADS, NEURONS = 3, 24, 4, 40
HEAD = WIDTH // HEADS
FAMILIES = ("Bert", "Roberta", "Electra", "DistilBert")
# Every kind of unit in both layouts of module names; RoBERTa and ELECTRA have BERT's.
FAMILY_AND_KIND = [
    *(("Bert", kind) for kind in ("head", "neuron", "mlp")),
    *(("DistilBert", kind) for kind in ("head", "neuron", "mlp")),
    ("Roberta", "head"),
    ("Electra", "mlp"),
]


def build(family: str = "Bert", dtype: torch.dtype = torch.float32, dropout: float = 0.1) -> Any:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "intermediate_size": NEURONS,
        "num_hidden_layers": LAYERS,
        "initializer_range": 0.3,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    if family == "DistilBert":
        shape = {"dim": WIDTH, "n_heads": HEADS, "hidden_dim": NEURONS, "n_layers": LAYERS}
        shape |= {"initializer_range": 0.3, "dropout": dropout}
    config = getattr(transformers, f"{family}Config")(vocab_size=30, **shape)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config).to(dtype)
    with torch.no_grad():
        for name, bias in model.named_parameters():
            if name.endswith("bias"):
                bias.normal_(std=0.3)
    return model


def batches(count: int = 3, size: int = 4) -> list[dict[str, Tensor]]:
    """Of ``size`` examples of 5 to 7 tokens."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(count):
        mask = torch.ones(size, 7, dtype=torch.long)
        mask[::2, 5:] = 0
        ids = torch.randint(5, 30, (size, 7), generator=generator)
        labels = torch.randint(0, 2, (size,), generator=generator)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(**batches(1)[0]).logits
