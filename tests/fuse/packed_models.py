"""Models whose fused layers run packed, as on a GPU, with the reference of every operator on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsebert import fuse_, prune
from sparsebert.nn.packed_layers import on_cpu
from tests.fuse.models import make
from tests.sparsify.models import WIDTH

transformers = pytest.importorskip("transformers")

MARKS = [pytest.mark.usefixtures("as_on_a_gpu"), pytest.mark.filterwarnings("error:the fused encoder")]
NAMES = (
    "BertModel",
    "BertForSequenceClassification",
    "RobertaForTokenClassification",
    "XLMRobertaModel",
    "CamembertModel",
    "ElectraModel",
    "ElectraForPreTraining",
    "DistilBertForQuestionAnswering",
)
PADDED = torch.arange(23) < torch.tensor([[17], [1], [9], [13]])
HOLED = PADDED & (torch.arange(23) != 4)
MASKS = {
    "ragged": PADDED,
    "between tokens": HOLED,
    "all true": torch.ones_like(PADDED),
    "none": None,
    "one token": torch.ones(1, 1, dtype=torch.bool),
    "equal lengths, padded": (torch.arange(23) < 9).expand(4, -1),
}


@pytest.fixture
def as_on_a_gpu() -> Iterator[None]:
    with on_cpu():
        yield


def elsewhere() -> Any:
    """Let models run as on a CPU."""
    return on_cpu(False)


def wide(hidden: int = 64) -> Any:
    """A BERT whose matrices have whole blocks of 16."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **WIDTH | {"hidden_size": hidden, "num_attention_heads": 4, "intermediate_size": 128}
    )
    return scattered(transformers.BertModel(config).eval())


def scattered(model: Any) -> Any:
    """A model whose parameters all matter."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.2
    return model


def blocks(model: Any) -> Any:
    return prune(model, "random", sparsity=0.5, granularity="block", block_size=(16, 16))


def made(name: str) -> Any:
    return scattered(make(name))


def fused(name: str) -> Any:
    return fuse_(made(name))


def inputs(mask: Tensor | None) -> dict[str, Tensor]:
    shape = PADDED.shape if mask is None else mask.shape
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, shape, generator=generator)
    return {"input_ids": ids} | ({} if mask is None else {"attention_mask": mask.long()})


@torch.inference_mode()
def answers(model: Any, mask: Tensor | None, **others: Any) -> Tensor:
    """All answers at tokens, without padding."""
    given = inputs(mask) | others
    outputs = model(**given)
    kept = torch.ones(given["input_ids"].shape, dtype=torch.bool) if mask is None else mask
    real = [out[kept] if out.shape[:2] == kept.shape else out for out in outputs.values()]
    return torch.cat([out.flatten() for out in real])


def exact(model: Any, mask: Tensor | None) -> Tensor:
    """The answers in float64 of the model as it is, unfused."""
    return answers(copy.deepcopy(model).double(), mask)


def same(answer: Tensor, expected: Tensor) -> bool:
    return torch.allclose(answer, expected, rtol=1e-5, atol=1e-5)


def ragged(mask: Tensor = PADDED, spare: int = 0) -> dict[str, Any]:
    """The inputs of a batch in one row, with spare tokens and an empty sequence behind."""
    bounds = F.pad(mask.sum(1).cumsum(0), (1, 0)).int()
    bounds = torch.cat((bounds, bounds[-1:]))
    row = F.pad(inputs(mask)["input_ids"][mask], (0, spare), value=7)[None]
    length = int(mask.sum(1).max())
    return {
        "input_ids": row,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": length,
        "max_length_k": length,
    }
