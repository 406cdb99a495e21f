"""What a healed model reproduces: the dense model's hidden states, and its sentence embeddings or logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsebert.bert import base_model, prunable, weight_of
from sparsebert.tickets.apply import shape_text

# How the hidden states of a text become its embedding, as sentence-transformers names it.
POOLINGS = ("mean", "cls")
_SPANS = ("start_logits", "end_logits")


@dataclass(frozen=True)
class Targets:
    """Outputs of a model for texts of one length, all of one kind.

    Attributes:
        states: Hidden states after each layer [layers, texts, tokens, features].
        logits: Logits of the model's head, classes last; None for a model without a head for a task, whose
            sentence embeddings count instead.
    """

    states: Tensor
    logits: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return self.states.nbytes + (0 if self.logits is None else self.logits.nbytes)


class Reader:
    """Reads the targets of the models that share an architecture.

    Args:
        model: One of them, a Hugging Face model.
        pooling: How embeddings are made of hidden states: "mean" or "cls".
    """

    def __init__(self, model: nn.Module, pooling: str = "mean") -> None:
        self._pooling = pooling
        self._has_logits = _has_task_head(model)
        config: Any = getattr(model, "config", None)
        self._several_labels = getattr(config, "problem_type", None) == "multi_label_classification"

    @property
    def has_logits(self) -> bool:
        """Whether the models have a head for a task."""
        return self._has_logits

    def __call__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Targets:
        """Return the targets for inputs, int64 [texts, tokens], none of them padding."""
        part = model if self._has_logits else base_model(model)
        output = part(**inputs, output_hidden_states=True)
        # The first entry is the output of the embeddings.
        return Targets(torch.stack(output.hidden_states[1:]), self._logits(output))

    def embedding(self, states: Tensor) -> Tensor:
        """Return sentence embeddings [texts, features] of hidden states [texts, tokens, features]."""
        return states.mean(1) if self._pooling == "mean" else states[:, 0]

    def loss(self, output: Targets, target: Targets) -> Tensor:
        """Return the distance of hidden states and outputs from their targets, a scalar of float32.

        The mean over layers of the squared error's share in the variance of the target's states, plus the
        :meth:`output_loss`.
        """
        wanted = target.states.float()
        error = (output.states.float() - wanted).square().sum((1, 2, 3))
        spread = (wanted - wanted.mean((1, 2), keepdim=True)).square().sum((1, 2, 3))
        loss = (error / spread.clamp_min(torch.finfo(torch.float32).tiny)).mean()
        return loss + self.output_loss(output, target)

    def output_loss(self, output: Targets, target: Targets) -> Tensor:
        """Return the distance of outputs alone from their targets, a scalar of float32.

        The mean over texts of 1 - cosine of the embeddings, or over examples of KL(target || output) of the
        logits (where no softmax follows, for scores and several labels at once: the squared error).
        """
        if output.logits is None or target.logits is None:
            return 1 - self.agreement(output, target).mean()
        logits, wanted = output.logits.float(), target.logits.float()
        if logits.shape[-1] == 1 or self._several_labels:
            return F.mse_loss(logits, wanted)
        divergence = F.kl_div(
            logits.log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True
        )
        return divergence.sum(-1).mean()

    def agreement(self, output: Targets, target: Targets) -> Tensor:
        """Return the cosine of each text's embeddings, or of its logits, float32 [texts]."""
        if output.logits is None or target.logits is None:
            pair = self.embedding(output.states[-1].float()), self.embedding(target.states[-1].float())
            return F.cosine_similarity(*pair, dim=1)
        return F.cosine_similarity(output.logits.flatten(1), target.logits.flatten(1), dim=1)

    def _logits(self, output: Any) -> Tensor | None:
        if not self._has_logits:
            return None
        if _SPANS[0] in output:
            return torch.stack([output[name] for name in _SPANS], dim=1)  # [texts, 2, tokens]
        logits: Tensor = output["logits"]
        return logits


class TargetCache:
    """The targets of a fixed model, computed once per text and kept in bf16 up to a limit of memory.

    Args:
        model: The dense model.
        read: Reads its targets.
        limit: Bytes to keep; targets beyond are computed every time.
    """

    def __init__(self, model: nn.Module, read: Reader, limit: int) -> None:
        self._model, self._read, self._limit = model, read, limit
        self._kept: dict[int, Targets] = {}
        self._size = 0

    def __call__(self, texts: Sequence[int], inputs: Mapping[str, Tensor]) -> Targets:
        """Return the targets of texts of one length.

        Args:
            texts: Number of each text, by which its targets are kept.
            inputs: Their inputs, int64 [texts, tokens].
        """
        if all(text in self._kept for text in texts):
            return _joined([self._kept[text] for text in texts])
        with torch.no_grad():
            targets = self._read(self._model, inputs)
        # In bf16 from the start, so that a kept target is the target of the first time.
        targets = Targets(targets.states.bfloat16(), targets.logits)
        if self._size + targets.nbytes <= self._limit:
            self._size += targets.nbytes
            self._kept |= {text: _part(targets, index) for index, text in enumerate(texts)}
        return targets


def require_same_architecture(model: nn.Module, teacher: nn.Module) -> None:
    """Raise ValueError, naming the first difference, unless a model can reproduce the states of another."""
    keys, others = prunable(model), prunable(teacher)
    ours, theirs = type(model).__name__, type(teacher).__name__
    if len(keys) != len(others):
        raise ValueError(
            f"the teacher must have the model's architecture: it has {len(others)} encoder matrices, the "
            f"model {len(keys)}"
        )
    for key in keys:
        shapes = shape_text(weight_of(model, key)), shape_text(weight_of(teacher, key))
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the teacher must have the model's architecture: {key} is {shapes[1]} in the teacher and "
                f"{shapes[0]} in the model"
            )
    if _has_task_head(model) and ours != theirs:
        raise ValueError(f"the teacher must have the model's head: it is a {theirs}, the model a {ours}")


def _has_task_head(model: nn.Module) -> bool:
    """Whether the model has the head of a classifier or of question answering."""
    return type(model).__name__.endswith(("Classification", "QuestionAnswering"))


def _joined(targets: Sequence[Targets]) -> Targets:
    logits = [each.logits for each in targets if each.logits is not None]
    return Targets(torch.cat([each.states for each in targets], 1), torch.cat(logits) if logits else None)


def _part(targets: Targets, index: int) -> Targets:
    # A copy: a view would keep the whole batch.
    states = targets.states[:, index : index + 1].clone()
    logits = None if targets.logits is None else targets.logits[index : index + 1].clone()
    return Targets(states, logits)
