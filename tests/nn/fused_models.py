"""Base models of the families whose parameters all matter, and their answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.sparsify.models import WIDTH

transformers = pytest.importorskip("transformers")


SPECIAL = {"pad_token_id": 1, "bos_token_id": 0, "cls_token_id": 0, "eos_token_id": 2, "sep_token_id": 2}
DISTIL = {"dim": 24, "n_heads": 3, "hidden_dim": 40, "n_layers": 2, "vocab_size": 50}
FAMILIES: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**WIDTH)),
    "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**WIDTH)),
    "electra": lambda: transformers.ElectraModel(transformers.ElectraConfig(**WIDTH, embedding_size=16)),
    "distilbert": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(**DISTIL, max_position_embeddings=32)
    ),
    "mpnet": lambda: transformers.MPNetModel(transformers.MPNetConfig(**WIDTH)),
    "modernbert": lambda: transformers.ModernBertModel(
        transformers.ModernBertConfig(**WIDTH | {"num_hidden_layers": 4}, **SPECIAL, local_attention=8)
    ),
}
MASK = torch.arange(23) < torch.tensor([[23], [1], [9], [17]])


def build(name: str) -> Any:
    """A model whose parameters all matter."""
    torch.manual_seed(0)
    model = FAMILIES[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.2
    return model


def ids() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 50, MASK.shape, generator=generator)


@torch.inference_mode()
def answers(model: Any, mask: Tensor | None = MASK, **inputs: Any) -> list[Tensor]:
    """All outputs: the states at tokens and the pooler's."""
    output = model(**{"input_ids": ids(), "attention_mask": mask} | inputs)
    kept = torch.ones_like(MASK) if mask is None else mask.bool()
    values = output.values() if hasattr(output, "values") else output
    return [each[kept] if each.shape[:2] == kept.shape else each for each in values]


def close(answer: list[Tensor], expected: list[Tensor]) -> bool:
    assert len(answer) == len(expected)
    return all(torch.allclose(*pair, rtol=1e-4, atol=3e-5) for pair in zip(answer, expected, strict=True))
