"""From the hidden states of an encoder to what a user reads: an embedding, or logits of a trained head."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsebert.tasks.sentence_pooling import SentenceHead, mean_of_tokens, sentence_head

Kind = Literal["embedding", "classes", "tokens", "span"]

# Heads by the end of a class's name in transformers. Other heads, such as those of language models, do not
# matter for the use of an encoder: its mean embedding is read.
_KINDS: dict[str, Kind] = {
    "ForSequenceClassification": "classes",
    "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "span",
}


@dataclass(frozen=True)
class Head:
    """What follows an encoder, computed in float32 by torch whatever runs the encoder.

    Attributes:
        kind: "embedding", "classes" (logits of a text), "tokens" (logits of each token) or "span" (logits of
            an answer's start and end).
        pool: From hidden states and mask to embeddings; None with a trained head.
        model: The model with its trained head; None for embeddings.
    """

    kind: Kind
    pool: SentenceHead | None = None
    model: Any = None

    @torch.no_grad()
    def outputs(self, states: Tensor, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the output of each text, without padding.

        Args:
            states: Last hidden states, [texts, tokens, hidden].
            batch: The inputs that they belong to.

        Returns:
            float32 for each text: [1, features] of an embedding, [1, classes], [tokens, labels], or
            [2, tokens] with the logits of start and end.
        """
        mask = batch["attention_mask"]
        if self.pool is not None:
            return list(self.pool(states.float(), mask)[:, None])
        result = _after_encoder(self.model, states.float())(**batch)
        if self.kind == "classes":
            return list(result.logits[:, None])
        if self.kind == "tokens":
            return [rows[kept] for rows, kept in zip(result.logits, mask.bool(), strict=True)]
        ends = torch.stack([result.start_logits, result.end_logits], dim=1)
        return [rows[:, kept] for rows, kept in zip(ends, mask.bool(), strict=True)]


def head_of(model: Any, name: str) -> Head:
    """Return the head of a loaded model.

    Args:
        model: A model of transformers; the head shares its weights.
        name: Hub id or folder that it was loaded from, whose sentence-transformers modules define the
            pooling. Other models without a trained head are read as the mean of their tokens.

    Raises:
        ValueError: As :func:`sparsebert.tasks.sentence_pooling.sentence_head`.
    """
    for suffix, kind in _KINDS.items():
        if type(model).__name__.endswith(suffix):
            return Head(kind, model=model.eval())
    return Head("embedding", pool=sentence_head(name) or mean_of_tokens)


class _Given(nn.Module):
    """Stands in for an encoder: returns hidden states that another one computed, and what its pooler says."""

    def __init__(self, states: Tensor, pooler: nn.Module | None) -> None:
        super().__init__()
        self._result = _Result(states, None if pooler is None else pooler(states))

    def forward(self, *args: Any, **kwargs: Any) -> _Result:
        return self._result


class _Result:
    """The fields of an encoder's result that heads read, by name and by position."""

    hidden_states = attentions = None

    def __init__(self, states: Tensor, pooled: Tensor | None) -> None:
        self.last_hidden_state, self.pooler_output = states, pooled

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state, self.pooler_output)[index]


def _after_encoder(model: Any, states: Tensor) -> Any:
    """Return the model with its encoder replaced by the states that it would return."""
    base = model.base_model
    head = copy.copy(model)
    vars(head)["_modules"] = {
        **model._modules,
        model.base_model_prefix: _Given(states, getattr(base, "pooler", None)),
    }
    return head
