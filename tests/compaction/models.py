"""Small models whose every term matters, and tickets that empty rows, columns, heads and whole matrices."""

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
    """With weights and biases large enough that a missing one shows."""
    model = build(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.5 if parameter.dim() == 1 else 0.25
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.to(dtype)


class Recipe(NamedTuple):
    """How a random ticket is drawn: the share of weights, rows and columns that stay in each matrix.

    empty: matrices (0 to 11, in model order) that keep nothing; ``heads``: those that go whole, of each layer
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
    found = structure(model)
    masks: dict[str, Tensor] = {}
    for number, key in enumerate(found.linears):
        rows, columns = resolve(model, key).weight.shape
        mask = torch.rand(rows, columns, generator=generator) < recipe.weights
        mask &= torch.rand(rows, 1, generator=generator) < recipe.rows
        mask &= torch.rand(1, columns, generator=generator) < recipe.columns
        masks[key] = mask if number not in recipe.empty else torch.zeros_like(mask)
    for query, key, value, output in found.heads:
        for head in recipe.heads:
            part = slice(head * found.head_size, (head + 1) * found.head_size)
            for matrix in (query, key, value):
                masks[matrix][part] = False
            masks[output][:, part] = False
    removed, biases = [], {}
    if recipe.mlp:
        for key in found.neurons[0]:
            masks[key][:] = False
        removed = [key.removesuffix(".dense") for key in found.neurons[0]]
    if recipe.biases:
        biases = {key: torch.rand(len(mask), generator=generator) < 0.5 for key, mask in masks.items()}
    return Ticket(masks, bias_masks=biases, removed=removed)


def masked(model: Any, ticket: Ticket) -> Any:
    return ticket.apply_(copy.deepcopy(model))


def answers(model: Any, attend: str = "all", **inputs: Any) -> tuple[Tensor, ...]:
    """Every tensor that the model answers with; without gradients."""
    with torch.no_grad():
        output = model(TOKENS, attention_mask=ATTEND[attend], **inputs)
    return tuple(tensor for tensor in output.to_tuple() if isinstance(tensor, Tensor))


def error(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest difference, over the largest entry or one."""
    pairs = list(zip(found, expected, strict=True))
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in pairs)
