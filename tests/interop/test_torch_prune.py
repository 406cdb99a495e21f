"""Models pruned by torch.nn.utils.prune: written and read again."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import prune as torch_prune

from sparsebert.bert import resolve
from sparsebert.interop.torch_prune import to_torch_prune_
from sparsebert.pruning import prune
from sparsebert.tickets.ticket import Ticket
from tests.interop.models import bert, without_an_mlp


class TestTorchPrune:
    def test_a_model_pruned_with_a_ticket_gives_the_ticket(self) -> None:
        model = bert("BertForSequenceClassification")
        ticket = prune(model, "random", sparsity=0.5)
        first = next(iter(ticket.masks))
        ticket = Ticket(ticket.masks, bias_masks={first: torch.tensor([1, 0, 1, 1, 0, 1]).bool()})
        assert to_torch_prune_(ticket, model) is model
        assert Ticket.from_torch_prune(model) == ticket
        zeroed = ticket.apply_(bert("BertForSequenceClassification"))
        for key in ticket.masks:
            assert torch.equal(resolve(model, key).weight, resolve(zeroed, key).weight)
            assert torch.equal(resolve(model, key).bias, resolve(zeroed, key).bias)

    def test_a_second_ticket_leaves_what_both_keep(self) -> None:
        model = bert()
        first, second = (prune(model, "random", sparsity=0.5, seed=seed) for seed in (1, 2))
        to_torch_prune_(second, to_torch_prune_(first, model))
        assert Ticket.from_torch_prune(model) == first & second

    def test_what_does_not_fit_leaves_the_model_alone(self) -> None:
        model = bert()
        ticket = prune(bert(layers=2), "random", sparsity=0.5)
        with pytest.raises(ValueError, match="ticket of another model"):
            to_torch_prune_(ticket, model)
        with pytest.raises(ValueError, match=r"torch\.nn\.utils\.prune cannot express removed modules"):
            to_torch_prune_(without_an_mlp(prune(model, "random", sparsity=0.5)), model)
        assert not torch_prune.is_pruned(model)
