"""Small models of every family that ``fuse_`` takes, and their answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsebert_kernels import cpu
from tests.sparsify.models import MODELS, WIDTH

transformers = pytest.importorskip("transformers")

# Marks of the tests of fused models. A warning says that the plain path ran: only tests of that expect one.
MARKS = [
    pytest.mark.skipif(not cpu.available(), reason="no native library"),
    pytest.mark.filterwarnings("error:the fused encoder"),
]
TOKENS = torch.arange(2, 29).view(3, 9)
MASK = torch.arange(9) < torch.tensor([[9], [4], [1]])
FAMILIES = {
    **MODELS,
    "XLMRobertaModel": lambda: transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**WIDTH)),
    "CamembertModel": lambda: transformers.CamembertModel(transformers.CamembertConfig(**WIDTH)),
    "ElectraModel": lambda: transformers.ElectraModel(transformers.ElectraConfig(**WIDTH, embedding_size=24)),
    "MPNetModel": lambda: transformers.MPNetModel(transformers.MPNetConfig(**WIDTH)),
    "MPNetForMaskedLM": lambda: transformers.MPNetForMaskedLM(transformers.MPNetConfig(**WIDTH)),
    "ModernBertModel": lambda: transformers.ModernBertModel(modern_config()),
    "ModernBertForMaskedLM": lambda: transformers.ModernBertForMaskedLM(modern_config()),
    "ModernBertForSequenceClassification": lambda: transformers.ModernBertForSequenceClassification(
        modern_config(norm_bias=True, attention_bias=True, mlp_bias=True)
    ),
}
# Families whose embeddings, layers and pooler differ.
KINDS = ("BertModel", "ElectraForPreTraining", "MPNetModel", "ModernBertModel")


def modern_config(**changes: Any) -> Any:
    """Four layers, of which the second and third attend to four tokens on either side."""
    special = dict.fromkeys(("bos_token_id", "cls_token_id"), 1)
    special |= dict.fromkeys(("eos_token_id", "sep_token_id"), 2) | {"pad_token_id": 0}
    width = WIDTH | {"num_hidden_layers": 4}
    return transformers.ModernBertConfig(**width | special, local_attention=8, **changes)


def make(name: str) -> Any:
    torch.manual_seed(0)
    return FAMILIES[name]().eval()


@torch.inference_mode()
def answers(model: Any, mask: Tensor | None = MASK) -> Tensor:
    """The answers at tokens, without padding."""
    kept = torch.ones_like(MASK) if mask is None else mask.bool()
    inputs = {"input_ids": TOKENS} | ({} if mask is None else {"attention_mask": mask.long()})
    outputs = model(**inputs)
    real = [out[kept] if out.shape[:2] == TOKENS.shape else out for out in outputs.values()]
    return torch.cat([out.flatten() for out in real])


def close(answer: Tensor, expected: Tensor) -> bool:
    return torch.allclose(answer, expected, rtol=1e-5, atol=3e-6)


class Adapted(nn.Module):
    """A linear layer below an adapter, as peft's LoRA wraps it."""

    def __init__(self, base_layer: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Linear(base_layer.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base_layer.out_features, bias=False)
        self.train(base_layer.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))
