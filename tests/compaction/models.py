"""Small models with large weights and biases, and tickets that empty rows, columns, heads and matrices."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from sparsebert import Ticket
from sparsebert.bert import resolve, structure
from tests.sparsify.models import TOKENS, build

FAMILIES = (
    "BertForSequenceClassification",
    "RobertaForTokenClassification",
    "ElectraForPreTraining",
    "DistilBertForQuestionAnswering",
)
# All tokens, a padded sentence, and a sentence of nothing but padding.
ATTEND = {
    "all": torch.ones_like(TOKENS),
    "padded": torch.ones_like(TOKENS).index_put((torch.tensor(0), torch.tensor([4, 5])), torch.tensor(0)),
    "nothing": torch.ones_like(TOKENS).index_put((torch.tensor(1),), torch.tensor(0)),
}


def model_of(name: str = FAMILIES[0], dtype: torch.dtype = torch.float64) -> Any:
    """Build a model whose weights and biases are large enough to notice a missing one."""
    model = build(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.5 if parameter.dim() == 1 else 0.25
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.to(dtype)


class Recipe(NamedTuple):
    """Parameters of a random ticket.

    Attributes:
        seed: Seed of the masks.
        weights: Share of weights to keep in each matrix.
        rows: Share of rows to keep.
        columns: Share of columns to keep.
        empty: Matrices to prune entirely, 0 to 11 in model order.
        heads: Heads to prune entirely in each layer.
        mlp: Whether to remove the first feed-forward network.
        biases: Whether to prune half of the biases.
    """

    seed: int
    weights: float
    rows: float
    columns: float
    empty: tuple[int, ...]
    heads: tuple[int, ...]
    mlp: bool
    biases: bool


SHARES = st.sampled_from((0.0, 0.3, 0.7, 1.0))
RECIPES = st.builds(
    Recipe,
    seed=st.integers(0, 2**16),
    weights=st.sampled_from((0.05, 0.3, 0.8, 1.0)),
    rows=SHARES,
    columns=SHARES,
    empty=st.lists(st.integers(0, 11), max_size=3, unique=True).map(tuple),
    heads=st.lists(st.integers(0, 2), max_size=3, unique=True).map(tuple),
    mlp=st.booleans(),
    biases=st.booleans(),
)


def ticket_of(model: Any, recipe: Recipe) -> Ticket:
    generator = torch.Generator().manual_seed(recipe.seed)
    encoder = structure(model)
    masks: dict[str, Tensor] = {}
    for number, key in enumerate(encoder.linears):
        rows, columns = resolve(model, key).weight.shape
        mask = torch.rand(rows, columns, generator=generator) < recipe.weights
        mask &= torch.rand(rows, 1, generator=generator) < recipe.rows
        mask &= torch.rand(1, columns, generator=generator) < recipe.columns
        masks[key] = mask if number not in recipe.empty else torch.zeros_like(mask)
    for query, key, value, output in encoder.heads:
        for head in recipe.heads:
            part = slice(head * encoder.head_size, (head + 1) * encoder.head_size)
            for matrix in (query, key, value):
                masks[matrix][part] = False
            masks[output][:, part] = False
    removed, biases = [], {}
    if recipe.mlp:
        for key in encoder.neurons[0]:
            masks[key][:] = False
        removed = [key.removesuffix(".dense") for key in encoder.neurons[0]]
    if recipe.biases:
        biases = {key: torch.rand(len(mask), generator=generator) < 0.5 for key, mask in masks.items()}
    return Ticket(masks, bias_masks=biases, removed=removed)


def masked(model: Any, ticket: Ticket) -> Any:
    return ticket.apply_(copy.deepcopy(model))


def answers(model: Any, attend: str = "all", **inputs: Any) -> tuple[Tensor, ...]:
    """Return every tensor of the model's output, without gradients."""
    with torch.no_grad():
        output = model(TOKENS, attention_mask=ATTEND[attend], **inputs)
    return tuple(tensor for tensor in output.to_tuple() if isinstance(tensor, Tensor))


def error(outputs: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Return the largest difference, relative to the largest entry or 1."""
    pairs = list(zip(outputs, expected, strict=True))
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in pairs)
