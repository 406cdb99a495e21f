"""Training runs: what a ticket of the user loses before it is trained."""

from __future__ import annotations

import pytest
import torch

from sparsebert.lottery.experiment import RunConfig
from sparsebert.lottery.method import lottery_method
from sparsebert.tasks.registry import find_task
from sparsebert.tickets.ticket import Ticket
from sparsebert.workflows.train import POOLER, _without_absent_pooler

QUERY = "encoder.layer.0.attention.self.query"


@pytest.mark.parametrize(("task", "keys"), [("sst2", {QUERY, POOLER}), ("wikitext-2", {QUERY})])
def test_masks_of_an_absent_pooler_go_weights_and_bias(task: str, keys: set[str]) -> None:
    masks = {key: torch.eye(4, dtype=torch.bool) for key in (QUERY, POOLER)}
    biases = {key: torch.tensor([True, True, True, False]) for key in masks}
    config = RunConfig(lottery_method("ticket"), ticket=Ticket(masks, bias_masks=biases))
    ticket = _without_absent_pooler(config, find_task(task)).ticket
    assert ticket is not None
    assert ticket.masks.keys() == ticket.bias_masks.keys() == keys
